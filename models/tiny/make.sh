#!/usr/bin/env bash
# Makes models/tiny again: the dialogues from our generator, then the model, pre-trained on those of the pre-training personas.
# The pre-training dialogues (18 MB) stay out of the repository: the generator gives the same bytes every time.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo run --release --locked --package marionette-dialogues --example synthesize -- --seed 7 --out "$work/dialogues"
target/release/marionette-train pretrain \
    --data "$work/dialogues/pretrain.txt" --valid "$work/dialogues/valid.txt" --out "$work/model" \
    --vocab-size 2048 --n-positions 512 --n-embd 192 --n-layer 6 --n-head 6 \
    --epochs 3 --seed 7 --storage f16
mkdir -p models/tiny/dialogues
for split in train valid test; do mv "$work/dialogues/$split.txt" "models/tiny/dialogues/$split.txt"; done
for file in config.json model.safetensors tokenizer.json; do mv "$work/model/$file" "models/tiny/$file"; done
