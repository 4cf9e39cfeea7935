#!/usr/bin/env bash
# Runs cargo-deny; builds the pinned version into .deps/ where the machine has none.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
deny=.deps/cargo-deny/bin/cargo-deny
if command -v cargo-deny >/dev/null 2>&1; then
    deny=cargo-deny
elif ! "$deny" --version 2>/dev/null | grep -q " $version$"; then
    printf 'cargo-deny: building %s (once, a few minutes)\n' "$version" >&2
    # Its own target folder, so that it shares no build with the project.
    cargo install --quiet --locked --root .deps/cargo-deny --target-dir .deps/cargo-deny/build "cargo-deny@$version"
    rm -rf .deps/cargo-deny/build
fi
exec "$deny" "$@"
