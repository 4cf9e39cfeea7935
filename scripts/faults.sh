#!/usr/bin/env bash
# Breaks each system call of a save, an export and a checkpoint: killed before it, and failing with EIO and ENOSPC. Needs strace (Linux).
set -euo pipefail
cd "$(dirname "$0")/.."
if ! strace -V >/dev/null 2>&1; then
    echo "faults: there is no strace; install it with the system's package manager" >&2
    exit 1
fi
cargo build --locked --workspace --bins
cargo test --locked -p marionette-tests --test programs everywhere -- --include-ignored --nocapture
