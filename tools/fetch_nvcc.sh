#!/usr/bin/env bash
# Fetch nvcc 13.0 from PyPI into .toolchain/cuda, where build.rs looks for it. 110 MB to download, 160 MB on disk; needs no GPU.
# Usage: tools/fetch_nvcc.sh        (does nothing when the pinned version is already there)
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/unpack_wheels.sh

pins=tools/nvcc-requirements.txt
home=.toolchain/cuda

if up_to_date "$pins" "$home"; then
    echo "nvcc is already in $home"
    exit 0
fi

mkdir -p .toolchain
scratch=$(mktemp -d .toolchain/nvcc.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

echo "fetching nvcc 13.0 from PyPI (110 MB) ..."
unpack_wheels "$pins" "$scratch"
cuda=$scratch/nvidia/cu13
[ -f "$cuda/bin/nvcc" ] || fail "the wheels of $pins do not contain nvidia/cu13/bin/nvcc"

# What compiling device code to a fatbin does not use: libraries, device linking, the C++ standard library for devices.
rm -rf "$cuda"/lib "$cuda"/bin/{nvlink,__nvcc_device_query} "$cuda"/include/cccl/{cub,thrust,cuda}
chmod -R u+rwX "$cuda"
chmod u+x "$cuda"/bin/* "$cuda"/nvvm/bin/*
"$cuda/bin/nvcc" --version >/dev/null || fail "the fetched nvcc does not start on this machine"

cp "$pins" "$cuda/requirements.txt"
rm -rf "$home"
mv "$cuda" "$home"
echo "nvcc is in $home: $("$home/bin/nvcc" --version | sed -n 's/^Cuda compilation tools, //p')"
