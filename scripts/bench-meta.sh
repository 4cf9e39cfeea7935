#!/usr/bin/env bash
# The exact meta-gradient on GPT-2 small's shapes beside a PyTorch program for the same, where there is one: PEER is its file (it
# takes MODEL_DIR B T S REPEATS [--first-order]), PYTHON the interpreter, MODEL a folder with such a GPT-2, or another model. The two alternate.
# FROZEN=int8: ours beside integers; WORKERS=2: ours two tasks side by side, as a run on two threads computes them.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-3}
model=${MODEL:-}
shape=(2 128 2 3)
cargo build --release --locked -p marionette-benches --example meta
ours() { target/release/examples/meta ${model:+"$model"} "$@" ${FROZEN:+--frozen "$FROZEN"} ${WORKERS:+--workers "$WORKERS"}; }

for order in "" --first-order; do
    for ((round = 0; round < rounds; round++)); do
        ours "${shape[@]}" $order
        if [[ -n ${PEER:-} ]]; then "${PYTHON:-python3}" "$PEER" "$model" "${shape[@]}" $order 2>/dev/null; fi
    done | tee >(cat >&2) | awk '
        match($0, /[0-9]+ ms a task/) { split(substr($0, RSTART), time, " "); match($0, /peak [0-9]+/); peak = substr($0, RSTART + 5, RLENGTH - 5)
            name = $1; times[name] = times[name] " " time[1]; count[name]++; if (peak > peaks[name]) peaks[name] = peak }
        function median(list,   words, n, i, j, t) { n = split(list, words, " "); for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++)
            if (words[j] + 0 < words[i] + 0) { t = words[i]; words[i] = words[j]; words[j] = t }; return words[int((n + 1) / 2)] }
        END { ours = median(times["marionette"])
            for (name in times) if (name != "marionette") printf "-> %.2f times as fast, %.2f of the peak memory\n",
                median(times[name]) / ours, peaks["marionette"] / peaks[name] }'
done
echo "memory by the number of inner steps:"
for steps in 1 2 5; do ours 2 128 "$steps" 1; done
