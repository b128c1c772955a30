#!/usr/bin/env bash
# Launches that overlap (programmatic dependent launch) must touch nothing of their predecessors before they have waited for them. Says by
# the PTX, and by what ptxas makes of it, whether every kernel that waits does so before its first access of global memory: compilers move loads
# that they take for constant. The linear layers alone may fetch before, weights, by copies that nobody has waited for yet. (Ceilings, which read
# what nobody writes, are left out.)
# Environment: as tools/compile_ptx.sh; NVDISASM (else nvdisasm beside nvcc, or on PATH, or in .toolchain/cuda).
set -euo pipefail
cd "$(dirname "$0")/.."

overlapping=$(grep -lE 'take_turn|wait_for_predecessors|tree_attention_(mma|wgmma)' kernels/*.cu | grep -v ceilings)
tools/compile_ptx.sh target/ptx

awk '
  function close_kernel() {
    if (kernel == "") return
    kernels++
    if (!waited) { print "NEVER WAITS", kernel; failed = 1 }
    if (kernel ~ /^linear/ && kernel !~ /f32$/ && !fetched) { print "FETCHES NO WEIGHTS BEFORE IT WAITS", kernel; failed = 1 }
  }
  /\.entry/ { close_kernel(); split($0, part, /[ (]+/); kernel = ""
    for (i in part) if (part[i - 1] == ".entry") kernel = part[i]
    waited = fetched = 0 }
  /griddepcontrol\.wait/ { waited = 1 }
  !waited && /cp\.async\.cg/ { fetched = 1; if (kernel !~ /^linear/) { print "COPIES BEFORE IT WAITS", kernel; failed = 1 } }
  !waited && /(^|[ \t])(ld|st|atom|red)\.[a-z0-9_.]*global/ { print "TOUCHES MEMORY BEFORE IT WAITS", kernel ":" $0; failed = 1 }
  END {
    close_kernel()
    print kernels + 0 " kernels that overlap, " (failed ? "some too early" : "none too early")
    exit failed || kernels == 0
  }' $(printf '%s\n' "$overlapping" | sed 's|kernels/\(.*\)\.cu|target/ptx/\1.ptx|')

# ---- the same of machine code

source tools/find_nvcc.sh
for nvdisasm in "${NVDISASM:-}" "$(dirname "$nvcc")/nvdisasm" "$(command -v nvdisasm || true)" .toolchain/cuda/bin/nvdisasm; do
  [ -x "$nvdisasm" ] && break
done
[ -x "$nvdisasm" ] || { echo "nvdisasm not found: set NVDISASM, or run tools/fetch_nvcc.sh" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export nvcc nvdisasm folder arch="${PTX_ARCH:-90a}"
# shellcheck disable=SC2016 # expanded by the inner shell
printf '%s\n' $overlapping | xargs -P "$(nproc)" -I{} bash -c '
  name=$(basename {} .cu)
  "$nvcc" -cubin -O3 -std=c++17 -Ikernels -arch=sm_$arch {} -o "$folder/$name.cubin" && "$nvdisasm" -c "$folder/$name.cubin" > "$folder/$name.sass"'

# ACQBULK waits; LDGSTS and UTMALDG are copies to shared memory. An access by a generic address (LD, ST) may be one of global memory.
awk '
  function close_kernel() {
    if (kernel == "") return
    kernels++
    if (!waited) { print "NEVER WAITS", kernel; failed = 1 }
  }
  /^\.text\./ { close_kernel(); kernel = $1; sub(/^\.text\./, "", kernel); sub(/:$/, "", kernel); waited = 0 }
  kernel == "" || waited { next }
  /ACQBULK/ { waited = 1; next }
  /[ \t](LDGSTS|UTMALDG|UBLKCP)[. ]/ { if (kernel !~ /^linear/) { print "COPIES BEFORE IT WAITS", kernel ":" $0; failed = 1 }; next }
  /[ \t](LDG|STG|ATOMG|ATOM|REDG|RED|LD|ST)[. ]/ { print "TOUCHES MEMORY BEFORE IT WAITS", kernel ":" $0; failed = 1 }
  /[ \t]EXIT/ { print "MAY END BEFORE IT WAITS", kernel ":" $0; failed = 1 }
  END {
    close_kernel()
    print kernels + 0 " of them as machine code, " (failed ? "some too early" : "none too early")
    exit failed || kernels == 0
  }' "$folder"/*.sass
