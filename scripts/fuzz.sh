#!/usr/bin/env bash
# Fuzzes every parser with libFuzzer: fuzz.sh MINUTES [TARGET…]. The minutes are shared out among the targets. An input that crashes, takes more
# than a second or a gibibyte is kept in target/fuzz/found, and ends the run with 1; what is found goes to fuzz/regressions, where the
# tests run it. The corpus stays in target/fuzz/corpus, so that the next run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-12}
shift || true
corpus=target/fuzz/corpus
mkdir -p target/fuzz/found

all=$(cargo run --quiet --locked -p marionette-fuzz --example seeds -- "$corpus")
# libFuzzer is told by the compiler which branches an input takes; a toolchain of its own is not needed.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
-Cdebug-assertions -Coverflow-checks -Ccodegen-units=1" \
    cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')" --target-dir target/fuzz/build \
    -p marionette-fuzz --features libfuzzer --bin fuzz
binary=$(echo target/fuzz/build/*/release/fuzz)

chosen=("$@")
[ ${#chosen[@]} -gt 0 ] || mapfile -t chosen < <(cut -d' ' -f1 <<<"$all")
seconds=$((minutes * 60 / ${#chosen[@]}))
status=0
inputs=0
for target in "${chosen[@]}"; do
    longest=$(sed -n "s/^$target //p" <<<"$all")
    log=target/fuzz/$target.log
    FUZZ_TARGET=$target "$binary" "$corpus/$target" -max_total_time="$seconds" -max_len="$longest" -timeout=1 \
        -rss_limit_mb=1024 -malloc_limit_mb=1024 -artifact_prefix="target/fuzz/found/$target-" -print_final_stats=1 \
        >"$log" 2>&1 || {
        status=1
        echo "$target: found something, see $log" >&2
    }
    done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    memory=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    slowest=$(sed -n 's/^stat::slowest_unit_time_sec: *//p' "$log")
    inputs=$((inputs + ${done:-0}))
    printf '%-12s %12s inputs   slowest %s s   at most %s MB\n' "$target" "${done:-?}" "${slowest:-?}" "${memory:-?}"
done
echo "$inputs inputs"
exit $status
