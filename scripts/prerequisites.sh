#!/usr/bin/env bash
# Names the first prerequisite that is missing, with its remedy.
set -euo pipefail

die() { printf 'marionette: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

have cargo || die "cargo is missing: install Rust 1.95 or newer (rustup)"
version=$(cargo --version | sed -E 's/cargo ([0-9]+)\.([0-9]+).*/\1 \2/')
read -r major minor <<<"$version"
[ "$major" -gt 1 ] || [ "$minor" -ge 95 ] || die "cargo $major.$minor is too old: install Rust 1.95 or newer (rustup update)"
have c++ || have g++ || have clang++ || die "a C++ compiler is missing: apt-get install g++"
have "${PYTHON:-python3}" || die "python3 is missing: apt-get install python3 python3-pip"
"${PYTHON:-python3}" -m pip --version >/dev/null 2>&1 || die "pip is missing: apt-get install python3-pip"
have sha256sum || die "sha256sum is missing: apt-get install coreutils"
