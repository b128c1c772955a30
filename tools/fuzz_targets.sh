#!/usr/bin/env bash
# Runs the fuzz targets in fuzz/, one after another, each from its seeds on; a crash, a hang or too much memory is an error.
# Usage: tools/fuzz_targets.sh SECONDS [TARGET...]        (needs a nightly compiler; CARGO_FUZZ is cargo-fuzz, if it is not in the PATH)
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
shift
cargo_fuzz=${CARGO_FUZZ:-cargo-fuzz}
export RUSTUP_TOOLCHAIN=${FUZZ_TOOLCHAIN:-nightly}

if [ $# -eq 0 ]; then
    mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)
    set -- "${targets[@]}"
fi
for target in "$@"; do
    echo "== $target, $seconds s"
    mkdir -p "fuzz/corpus/$target"
    # The code is safe Rust, but for what maps files: coverage and checked arithmetic find more in the time than AddressSanitizer.
    "$cargo_fuzz" run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -max_len=8192 -print_final_stats=1 -verbosity=0
done
