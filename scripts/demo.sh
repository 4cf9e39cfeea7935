#!/usr/bin/env bash
# The main job, from dialogues to a persona that answers: meta-train, export, check, adapt, measure, talk.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=target/release
data=models/tiny/dialogues
out=demo
shots=5

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
# dialogues FIRST LAST: so many dialogues of the test file, which is in the order of its personas.
dialogues() { awk -v first="$1" -v last="$2" '/^1 / { n++ } n >= first && n <= last' "$data/test.txt"; }

rm -rf "$out"
mkdir -p "$out"
start=$SECONDS

step "1. Meta-training: 80 personas teach the adapters how to learn one from a few dialogues"
"$bin/marionette-train" run --base models/tiny --data "$data/train.txt" --valid "$data/valid.txt" --out "$out/run" \
    --iterations 60 --validate-every 10 --meta-batch 4 --support-dialogues "$shots"

step "2. Export to ONNX, and the parity check: does ONNX Runtime compute here what libtorch did?"
"$bin/marionette-export" "$out/run" --out "$out/bundle"
"$bin/marionette" inspect "$out/bundle" --check

step "3. Adapting to a persona that no training saw, with $shots of its dialogues"
dialogues 1 "$shots" >"$out/persona.txt"
dialogues $((shots + 1)) 8 >"$out/persona-other.txt"
head -n 40 "$out/persona.txt" | sed -n 's/^[0-9]* your persona: /   who it is: /p' | sort -u
printf '   (these sentences are for you: it only sees the dialogues)\n'
"$bin/marionette" adapt "$out/bundle" --home "$out/home" --persona demo --dialogues "$out/persona.txt"

step "4. Its $((8 - shots)) other dialogues, before and after"
printf 'before\n'
"$bin/marionette" evaluate "$out/bundle" --dialogues "$out/persona-other.txt" --shots 0 2>/dev/null
printf 'after\n'
"$bin/marionette" evaluate "$out/bundle" --home "$out/home" --persona demo --dialogues "$out/persona-other.txt" --shots 0 2>/dev/null

step "5. Three replies side by side: the second question of each of these dialogues"
prompts=$(awk -F '\t' '/^1 / { exchange = 0 } NF > 1 && ++exchange == 2 { sub(/^[0-9]+ /, "", $1); print $1 "\t" $2 }' \
    "$out/persona-other.txt" | head -n 3)
reply() { "$bin/marionette" generate "$out/bundle" --home "$out/home" --temperature 0 --prompt "$@" 2>/dev/null; }
while IFS=$'\t' read -r question own; do
    printf '\n   they say   %s\n   before     %s\n   after      %s\n   its own    %s\n' "$question" \
        "$(reply "$question")" "$(reply "$question" --persona demo)" "$own"
done <<<"$prompts"

step "Done in $((SECONDS - start)) s. To talk with it:"
printf '   %s chat %s --home %s --persona demo\n' "$bin/marionette" "$out/bundle" "$out/home"
