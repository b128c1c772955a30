#!/usr/bin/env bash
# PTX of all kernels, as nvcc makes it for Hopper (or PTX_ARCH, such as 80): one file for each kernels/*.cu in the folder that is named
# (target/ptx). A file is made anew where its source or a header of kernels/ is newer, or the settings are others. The host driver runs it (SIMT_PTX=target/ptx), tools/check_overlap.sh reads it.
#
#   tools/compile_ptx.sh [FOLDER]
#
# Environment: NVCC or CUDA_HOME (else nvcc on PATH or .toolchain/cuda); PTX_FLAGS: more of its options.
set -euo pipefail
cd "$(dirname "$0")/.."

source tools/find_nvcc.sh
export nvcc ptx=${1:-target/ptx} PTX_FLAGS=${PTX_FLAGS:-} PTX_ARCH=${PTX_ARCH:-90a}
mkdir -p "$ptx"
# Files that were made in another way are no use.
settings="$nvcc $PTX_ARCH $PTX_FLAGS"
[ "$(cat "$ptx/settings" 2> /dev/null)" = "$settings" ] || { rm -f "$ptx"/*.ptx; echo "$settings" > "$ptx/settings"; }
export newest=$(ls -t kernels/*.cuh | head -1)

for file in "$ptx"/*.ptx; do # of kernels that are gone
  [ -e "kernels/$(basename "$file" .ptx).cu" ] || rm -f "$file"
done
# shellcheck disable=SC2016 # expanded by the inner shell
printf '%s\n' kernels/*.cu | xargs -P "$(nproc)" -I{} bash -c '
  file="$ptx/$(basename {} .cu).ptx"
  [ "$file" -nt {} ] && [ "$file" -nt "$newest" ] && exit 0
  "$nvcc" -ptx -O3 -std=c++17 -Ikernels -arch=compute_$PTX_ARCH $PTX_FLAGS {} -o "$file.part" && mv "$file.part" "$file"'
