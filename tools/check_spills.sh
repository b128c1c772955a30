#!/usr/bin/env bash
# Compiles every kernel for every architecture and prints its registers; fails on a register spill, on an array that is not in registers, and where
# ptxas waits for wgmma before the kernel does: what is then lost shows in no test.
# Environment: NVCC or CUDA_HOME (else nvcc on PATH or .toolchain/cuda), CUDA_ARCHS (default: all that CI builds).
set -euo pipefail
cd "$(dirname "$0")/.."

source tools/find_nvcc.sh
archs=${CUDA_ARCHS:-80;89;90a;100a;120}
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

gencode=()
for arch in ${archs//;/ }; do gencode+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
export nvcc log flags="-fatbin -O3 -std=c++17 -Ikernels ${gencode[*]} -Xptxas -v"
# shellcheck disable=SC2016 # expanded by the inner shell
if ! printf '%s\n' kernels/*.cu | xargs -P "$(nproc)" -I{} bash -c '
  name=$(basename {}); "$nvcc" $flags {} -o "$log/$name.fatbin" > "$log/$name.log" 2>&1 || { cat "$log/$name.log" >&2; exit 1; }'
then
  exit 1
fi

# ptxas names the kernel in one line and its spills and registers in the next two.
awk -v OFS='  ' '
  /Compiling entry function/ { split($0, q, "\047"); kernel = q[2]; arch = q[4] }
  /wgmma.*serialized|warpgroup.*injected/ { print "WAITS FOR WGMMA", $0; failed = 1 }
  /bytes spill stores/ {
    spilled = ($0 !~ / 0 bytes spill stores, 0 bytes spill loads/)
    framed = ($0 !~ /^ *0 bytes stack frame/)
  }
  /Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5) + 0
    kernels++
    if (registers > most[arch]) { most[arch] = registers; which[arch] = kernel }
    if (spilled) { print "SPILLS", arch, kernel, registers " registers"; failed = 1 }
    else if (framed) { print "HAS LOCAL MEMORY", arch, kernel; failed = 1 }
  }
  END {
    for (a in most) print a, "most registers: " most[a], which[a]
    print kernels + 0 " kernel images, " (failed ? "some are not as they should be" : "no spills")
    exit failed || kernels == 0
  }' "$log"/*.log
