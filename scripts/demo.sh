#!/usr/bin/env bash
# The main job, from dialogues to a persona that answers: a start, export, check, adapt, measure, talk.
#
#   scripts/demo.sh [tiny]      the bundled GPT-2, and invented personas of few words: the start is meta-trained here
#   scripts/demo.sh smollm2     SmolLM2-135M-Instruct, which speaks English, with the bundled start
set -euo pipefail
cd "$(dirname "$0")/.."
bin=target/release
model=${1:-tiny}

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
# dialogues FILE FIRST LAST: so many dialogues of a file in ConvAI2's format.
dialogues() { awk -v first="$2" -v last="$3" '/^1 / { n++ } n >= first && n <= last' "$1"; }

out=demo shots=5 who=models/tiny/dialogues/test.txt last=8
# All are learned from: it is measured below on others.
adapting=(--holdout 0 --replies 0) talking=()
case $model in
tiny) ;;
smollm2)
    out=demo-smollm2 who=models/people/maud.txt last=12
    # So small a model repeats itself, greedy or not, unless it is told.
    adapting+=(--epochs 3) talking=(--repetition-penalty 1.2 --max-tokens 48)
    ;;
*)
    printf 'demo: there is no demo of %s: tiny, smollm2\n' "$model" >&2
    exit 2
    ;;
esac
rm -rf "$out"
mkdir -p "$out"
start=$SECONDS

if [ "$model" = tiny ]; then
    step "1. Meta-training: many personas teach the adapters how to learn one from a few dialogues"
    "$bin/marionette-train" run --base models/tiny --data models/tiny/dialogues/train.txt --valid models/tiny/dialogues/valid.txt \
        --out "$out/run" --iterations 60 --validate-every 10 --meta-batch 4 --support-dialogues "$shots"
    step "2. Export to ONNX, and the parity check: does ONNX Runtime compute here what libtorch did?"
    "$bin/marionette-export" "$out/run" --out "$out/bundle"
else
    step "1. Meta-training was done before: models/smollm2-persona"
    step "2. SmolLM2 out of a GGUF file, export to ONNX in eight bits, and the parity check: does ONNX Runtime compute here what libtorch did?"
    scripts/smollm2-bundle.sh "$out/bundle"
fi
"$bin/marionette" inspect "$out/bundle" --check

step "3. Adapting to a persona that no training saw, with $shots of its dialogues"
dialogues "$who" 1 "$shots" >"$out/persona.txt"
dialogues "$who" $((shots + 1)) "$last" >"$out/persona-other.txt"
head -n 40 "$out/persona.txt" | sed -n 's/^[0-9]* your persona: /   who it is: /p' | sort -u
printf '   (these sentences are for you: it only sees the dialogues)\n'
"$bin/marionette" adapt "$out/bundle" --home "$out/home" --persona demo --dialogues "$out/persona.txt" "${adapting[@]}"

step "4. Its $(grep -c '^1 ' "$out/persona-other.txt") other dialogues, before and after"
printf 'before\n'
"$bin/marionette" evaluate "$out/bundle" --dialogues "$out/persona-other.txt" --shots 0 2>/dev/null
printf 'after\n'
"$bin/marionette" evaluate "$out/bundle" --home "$out/home" --persona demo --dialogues "$out/persona-other.txt" --shots 0 2>/dev/null

step "5. Three replies side by side: the second question of each of these dialogues"
prompts=$(awk -F '\t' '/^1 / { exchange = 0 } NF > 1 && ++exchange == 2 { sub(/^[0-9]+ /, "", $1); print $1 "\t" $2 }' \
    "$out/persona-other.txt" | head -n 3)
reply() { "$bin/marionette" generate "$out/bundle" --home "$out/home" --temperature 0 "${talking[@]}" --prompt "$@" 2>/dev/null; }
while IFS=$'\t' read -r question own; do
    printf '\n   they say   %s\n   before     %s\n   after      %s\n   its own    %s\n' "$question" \
        "$(reply "$question")" "$(reply "$question" --persona demo)" "$own"
done <<<"$prompts"

step "Done in $((SECONDS - start)) s. To talk with it:"
printf '   %s\n' "$bin/marionette chat $out/bundle --home $out/home --persona demo ${talking[*]}"
