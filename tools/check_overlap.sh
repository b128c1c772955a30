#!/usr/bin/env bash
# Launches that overlap (programmatic dependent launch) must touch nothing of their predecessors before they have waited for them. Says by
# the PTX whether every kernel that waits does so before its first access of global memory: compilers move loads that they take for
# constant. The linear layers alone may fetch before, weights, by cp.async. (Ceilings, which read what nobody writes, are left out.)
# Environment: as tools/compile_ptx.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/compile_ptx.sh target/ptx
overlapping=$(grep -lE 'take_turn|wait_for_predecessors|tree_attention_(mma|wgmma)' kernels/*.cu | grep -v ceilings)

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
