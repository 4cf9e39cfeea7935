#!/usr/bin/env bash
# Looks for memory errors of the kernels, with a nightly toolchain (NIGHTLY names another than "nightly"):
# AddressSanitizer over the kernels' tests and over the graphs of one operator each that ONNX Runtime executes, then Miri over the
# kernels' tests in portable code. Miri interprets: it has neither ONNX Runtime nor the processor's integer products.
set -euo pipefail
cd "$(dirname "$0")/.."
nightly=${NIGHTLY:-nightly}
target=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=target/sanitize

if ! rustc "+$nightly" --version >/dev/null 2>&1; then
    echo "sanitize: there is no toolchain \"$nightly\"; run: rustup toolchain install nightly --component miri --component rust-src" >&2
    exit 1
fi

echo "AddressSanitizer, $(rustc "+$nightly" --version):"
export RUSTFLAGS=-Zsanitizer=address
cargo "+$nightly" test --locked --target "$target" -p marionette-kernels --lib
cargo "+$nightly" test --locked --target "$target" -p marionette-runtime --lib -- operators
unset RUSTFLAGS

if ! cargo "+$nightly" miri --version >/dev/null 2>&1; then
    echo "sanitize: AddressSanitizer found nothing, but Miri did not run: the toolchain \"$nightly\" lacks it;" \
        "run: rustup component add --toolchain $nightly miri rust-src" >&2
    exit 1
fi
if ! cargo "+$nightly" miri setup --target "$target"; then
    echo "sanitize: AddressSanitizer found nothing, but Miri did not run: its standard library cannot be built, which needs the" \
        "component rust-src and, the first time, the network" >&2
    exit 1
fi
echo "Miri, $(cargo "+$nightly" miri --version):"
cargo "+$nightly" miri test --locked --target "$target" -p marionette-kernels --lib
