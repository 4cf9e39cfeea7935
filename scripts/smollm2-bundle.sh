#!/usr/bin/env bash
# Makes the bundle of SmolLM2-135M-Instruct with the meta-learned start of models/smollm2-persona: all that a device needs, in eight bits.
#
#   scripts/smollm2-bundle.sh OUT
#
# The model is fetched once, into .deps/smollm2/.
set -euo pipefail
out=$(realpath -m -- "${1:?the bundle to make}")
cd "$(dirname "$0")/.."
start=models/smollm2-persona
digest=a01fdd8ddfe663c0e7625414e6cda9bade185b8f76abe8b21fadbe54a7ea5130
model=.deps/smollm2/model

scripts/smollm2.sh
printf '%s  %s\n' "$digest" "$start"/checkpoints/step-*/adapters.safetensors | sha256sum --check --quiet - >&2 || {
    printf 'smollm2-bundle: the adapters of %s are not those that were measured: restore the folder\n' "$start" >&2
    exit 1
}
# The context is a part of what the adapters were learned for.
[ -d "$model" ] ||
    target/release/marionette-export import .deps/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --context 2048 --out "$model"
target/release/marionette-export "$start" --base "$model" --precision int8 --out "$out"
