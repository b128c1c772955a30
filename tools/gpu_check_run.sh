#!/usr/bin/env bash
# Runs the carried checks on this machine's GPU: tests against oracles, the comparison with the host driver, compute-sanitizer
# where it works, a table of times. Below eight minutes; exit status 1 if anything failed. Made by tools/gpu_check.sh, which
# puts it beside its executable; docs/gpu-check.md explains the result.
# Usage: gpu-check/run.sh [RESULTS_DIR]
# Environment: SMART_DEVICE (cuda:0; `host` tries the script itself on the CPU), GPU_CHECK_PATIENCE (1: factor of all time limits)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export SMART_TEST_ROOT=${SMART_TEST_ROOT:-$(dirname "$here")}
export SMART_DEVICE=${SMART_DEVICE:-cuda:0}
[ "$SMART_DEVICE" = host ] || export SMART_REQUIRE_GPU=1
patience=${GPU_CHECK_PATIENCE:-1}
check=$here/gpu_check
results=${1:-$here/results}
mkdir -p "$results"
report=$results/gpu-check.txt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
exec > >(tee "$report") 2>&1 # written as it goes: a killed run keeps what it has

summary=()
# step NAME SECONDS FUNCTION [ARGUMENT...]: runs it, with `limit` for what it starts, and keeps how it went.
step() {
  local name=$1 start=$SECONDS status
  limit=$(($2 * patience))
  shift 2
  printf '\n== %s\n' "$name"
  "$@"
  status=$?
  case $status in
    0) summary+=("ok      $name ($((SECONDS - start)) s)") ;;
    77) summary+=("SKIPPED $name") ;;
    124 | 137) summary+=("FAILED  $name: over $limit s") ;;
    *) summary+=("FAILED  $name: exit status $status") ;;
  esac
}

machine() {
  cat "$here/build.txt"
  echo "run $(date -u +%Y-%m-%dT%H:%MZ) on $SMART_DEVICE, $(uname -rm)"
  [ "$SMART_DEVICE" = host ] || timeout "$limit" nvidia-smi --format=csv \
    --query-gpu=name,driver_version,memory.total,power.limit,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,mig.mode.current
}

# tests FILTER...: status 1 also when nothing matches.
tests() {
  timeout --kill-after=5 "$limit" "$check" --test-threads=1 "$@" | tee "$scratch/tests.log"
  local status=${PIPESTATUS[0]}
  grep -q '^running 0 tests' "$scratch/tests.log" && return 1
  return "$status"
}

# sanitize TOOL: kernels at tiny shapes under compute-sanitizer. Status 77 where it cannot work.
sanitize() {
  local sanitizer log=$scratch/$1.log status
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || { echo "compute-sanitizer is not installed"; return 77; }
  timeout --kill-after=5 "$limit" "$sanitizer" --tool "$1" --error-exitcode 86 --print-limit 20 \
    "$check" --test-threads=1 kernels::prims schedule_ schedules risky_trees > "$log" 2>&1
  status=$?
  tail -n 60 "$log"
  grep -q '^running 0 tests' "$log" && return 1
  if grep -qiE 'device not supported|internal sanitizer error|no attachable process|before first instrumented' "$log" ||
    { [ $status != 124 ] && ! grep -q SUMMARY "$log"; }; then
    echo "compute-sanitizer does not work on this machine"
    return 77
  fi
  if [ $status = 124 ] && ! grep -qE '^=+ (Invalid|Error|ERROR|Race|Program hit)' "$log"; then
    echo "compute-sanitizer reported nothing within $limit s, but did not finish"
    return 77
  fi
  return $status
}

step "machine" 5 machine
step "primitives against their oracles" 15 tests kernels::prims
SMART_DUMP=$scratch/device.dump step "kernels against their oracles" 110 tests kernels::
SMART_DUMPS=$here/host.dump:$scratch/device.dump step "kernels against the host driver" 10 tests --ignored --nocapture dumps_agree
step "engine" 140 tests engine::
if [ "$SMART_DEVICE" = host ]; then
  summary+=("SKIPPED compute-sanitizer: it needs a GPU")
else
  step "compute-sanitizer memcheck" 40 sanitize memcheck
  step "compute-sanitizer racecheck" 40 sanitize racecheck
fi
SMART_BENCH_JSON=$scratch/times.jsonl step "times" 80 tests --ignored --exact --nocapture times
printf '\n== times as JSON\n'
cat "$scratch/times.jsonl" 2>/dev/null
step "machine afterwards" 5 machine

printf '\n== summary, %d s\n' "$SECONDS"
printf '%s\n' "${summary[@]}"
if printf '%s\n' "${summary[@]}" | grep -q '^FAILED'; then
  echo "GPU CHECK FAILED"
  exit 1
fi
echo "GPU CHECK PASSED"
