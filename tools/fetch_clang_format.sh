#!/usr/bin/env bash
# Fetch the pinned clang-format from PyPI as .toolchain/clang-format/clang-format, for `make lint`. 2 MB.
# Usage: tools/fetch_clang_format.sh        (does nothing when the pinned version is already there)
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/unpack_wheels.sh

pins=tools/clang-format-requirements.txt
home=.toolchain/clang-format

if up_to_date "$pins" "$home"; then
    echo "clang-format is already in $home"
    exit 0
fi

mkdir -p .toolchain
scratch=$(mktemp -d .toolchain/clang-format.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

echo "fetching clang-format from PyPI (2 MB) ..."
unpack_wheels "$pins" "$scratch"
folder=$scratch/clang_format/data/bin
[ -f "$folder/clang-format" ] || fail "the wheel of $pins does not contain clang_format/data/bin/clang-format"

chmod u+x "$folder/clang-format"
"$folder/clang-format" --version >/dev/null || fail "the fetched clang-format does not start on this machine"

cp "$pins" "$folder/requirements.txt"
rm -rf "$home"
mv "$folder" "$home"
echo "clang-format is in $home: $("$home/clang-format" --version)"
