#!/usr/bin/env bash
# Runs one part of the carried checks on this machine's GPU, each below eight minutes; exit status 1 if anything failed. Made by
# tools/gpu_check.sh, which puts it beside its executables; docs/gpu-check.md explains the results.
# Usage: gpu-check/run.sh [conformance] [RESULTS_DIR]                tests against oracles, compute-sanitizer where it works
#        gpu-check/run.sh kernels [RESULTS_DIR]                      ceilings, our kernels, others' in turn with them
#        gpu-check/run.sh end-to-end [RESULTS_DIR] [MODELS_DIR]      policies against plain decoding; MODELS_DIR/{target,drafter},
#                                                                    or the demo pair
# Environment: SMART_DEVICE (cuda:0; `host` tries the script itself on the CPU, at tiny shapes), PYTHON (python3),
#   GPU_CHECK_PATIENCE (1: factor of all time limits), GPU_CHECK_SECONDS (how long `kernels` and `end-to-end` measure, if not 410 and 430 times that)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export SMART_TEST_ROOT=${SMART_TEST_ROOT:-$(dirname "$here")}
export SMART_DEVICE=${SMART_DEVICE:-cuda:0}
[ "$SMART_DEVICE" = host ] || export SMART_REQUIRE_GPU=1
patience=${GPU_CHECK_PATIENCE:-1}
seconds=${GPU_CHECK_SECONDS:-}
[[ $patience =~ ^[1-9][0-9]*$ && ( -z $seconds || $seconds =~ ^[1-9][0-9]*$ ) ]] ||
  { echo "GPU_CHECK_PATIENCE and GPU_CHECK_SECONDS are whole numbers above 0" >&2; exit 2; }
python=${PYTHON:-python3}
# How long a test may say nothing, in seconds: on a GPU its kernel does not end then. Tests of the engine build many of them.
stall=$((20 * patience))
[ "$SMART_DEVICE" = host ] && stall=$((300 * patience))
tools=$SMART_TEST_ROOT/tools
# A toolkit's stub of the driver would be found before the driver.
[ -z "${LD_LIBRARY_PATH:-}" ] || export LD_LIBRARY_PATH=$(tr ':' '\n' <<< "$LD_LIBRARY_PATH" | grep -v '/stubs/*$' | paste -sd:)
usage() { sed -n '/^# Usage/,/^# Environment/p' "$0" | sed '$d; s/^# //' >&2; exit 2; }
mode=${1:-conformance}
case $mode in conformance | kernels | end-to-end) ;; *) usage ;; esac
results=${2:-$here/results}
models=${3:-}
mkdir -p "$results"
results=$(cd "$results" && pwd)
report=$results/$mode.txt
scratch=$(mktemp -d)
watcher=
trap 'rm -rf "$scratch"; [ -z "$watcher" ] || kill "$watcher" 2>/dev/null' EXIT
exec > >(tee "$report") 2>&1 # written as it goes: a killed run keeps what it has

# unpack FILE: beside this script it may lie packed.
unpack() {
  [ -e "$here/$1" ] && { cp "$here/$1" "$scratch/$1"; return; }
  xz --decompress --stdout "$here/$1.xz" > "$scratch/$1" 2>/dev/null ||
    "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' \
      "$here/$1.xz" "$scratch/$1" || { echo "$here/$1.xz cannot be unpacked: neither xz nor $python did it"; exit 1; }
  chmod +x "$scratch/$1"
}
check=$scratch/gpu_check
smart_run=$scratch/smart-run

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
    78) summary+=("TO READ $name") ;;
    124 | 137) summary+=("FAILED  $name: over $limit s") ;;
    *) summary+=("FAILED  $name: exit status $status") ;;
  esac
}

machine() {
  cat "$here/build.txt"
  echo "run $(date -u +%Y-%m-%dT%H:%MZ) on $SMART_DEVICE, $(uname -rm)"
  echo "command: ${SMART_DEVICE:+SMART_DEVICE=$SMART_DEVICE }gpu-check/run.sh $mode${models:+ RESULTS_DIR $models}"
  [ "$SMART_DEVICE" = host ] && return
  # Some drivers do not know the last two any more.
  timeout "$limit" nvidia-smi --format=csv \
    --query-gpu=name,driver_version,memory.total,power.limit,power.draw,temperature.gpu,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,clocks_throttle_reasons.active,mig.mode.current ||
    timeout "$limit" nvidia-smi || return 77
}

# ---- conformance

# tests FILTER[,FILTER]...: in that order, each test whatever became of those before it. Without Python all in one process, with the rest lost to a fault.
tests() {
  if "$python" -c '' 2>/dev/null; then
    timeout --kill-after=5 $((limit + 15)) "$python" "$tools/gpu_check_tests.py" "$check" --seconds "$limit" --stall "$stall" "$@"
    return
  fi
  local filters=("$@")
  plain_tests ${filters[*]//,/ }
}

# plain_tests ARGUMENT...: libtest's own; status 1 also when nothing matches.
plain_tests() {
  timeout --kill-after=5 "$limit" "$check" --test-threads=1 "$@" | tee "$scratch/tests.log"
  local status=${PIPESTATUS[0]}
  grep -q '^running 0 tests' "$scratch/tests.log" && return 1
  return "$status"
}

# sanitize TOOL: kernels at tiny shapes under compute-sanitizer. Status 77 where it cannot work, 78 where what it says has to be read.
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
  if [ "$1" = racecheck ] && [ $status = 86 ]; then
    echo "racecheck may take what mbarriers and clusters order for hazards: to be read, not counted"
    return 78
  fi
  return $status
}

conformance() {
  unpack gpu_check
  step "primitives against their oracles" 40 tests kernels::prims
  # Attention and linear layers last: they have the newest instructions, and what does not end takes the time of others.
  local first=kernels::advance_rows,kernels::control,kernels::copy_rows,kernels::draft,kernels::embedding,kernels::gather_norm,kernels::gather_rows,kernels::gelu
  first+=,kernels::host_words,kernels::kv_compact,kernels::layernorm,kernels::penalties,kernels::prefetch,kernels::rmsnorm,kernels::rope,kernels::sampler
  first+=,kernels::silu_residual,kernels::token_mask,kernels::verify,kernels::vision
  SMART_DUMP=$scratch/device.dump step "kernels against their oracles" 130 tests "$first" kernels::tree_attention kernels::
  if [ -e "$here/host.dump" ] || [ -e "$here/host.dump.xz" ]; then
    unpack host.dump
    SMART_DUMPS=$scratch/host.dump:$scratch/device.dump step "kernels against the host driver" 10 \
      plain_tests --ignored --nocapture dumps_agree
  else
    summary+=("SKIPPED kernels against the host driver: no host.dump here")
  fi
  [ "$SMART_DEVICE" = host ] || stall=$((45 * patience))
  step "engine" 160 tests engine::lossless,engine::pass_graphs,engine::run_ahead engine::
  if [ "$SMART_DEVICE" = host ]; then
    summary+=("SKIPPED compute-sanitizer: it needs a GPU")
  else
    step "compute-sanitizer memcheck" 50 sanitize memcheck
    step "compute-sanitizer racecheck" 50 sanitize racecheck
  fi
}

# ---- kernels

# rows SECONDS: ours and others' in turn, none begun after so long; without Python ours alone.
rows() {
  local few=()
  [ "$SMART_DEVICE" = host ] && few=(--most 3)
  if "$python" -c '' 2>/dev/null; then
    timeout --kill-after=5 "$limit" "$python" "$tools/gpu_check_kernels.py" "$check" "$results/kernels.jsonl" \
      --seconds "$1" "${few[@]}"
  else
    echo "$python does not start: our kernels alone"
    SMART_BENCH_JSON=$results/kernels.jsonl timeout --kill-after=5 "$limit" \
      "$check" --ignored --exact --nocapture --test-threads=1 times
  fi
}

kernels() {
  unpack gpu_check
  rm -f "$results/kernels.jsonl"
  local all=${seconds:-$((410 * patience))}
  step "our kernels and others' in turn" $((all / patience + 45)) rows "$all"
}

# ---- end to end

# bench BATCH TEMPERATURE: one line of end-to-end.jsonl.
bench() {
  local arguments=(--batch "$1" --temperature "$2" --ignore-eos --format json)
  local policies=(smart chain:1 chain:3 eagle2:4,2,8 eagle2:4,4,16 eagle2:10,5,60)
  if [ "$SMART_DEVICE" = host ]; then
    policies=(smart chain:1)
    arguments+=(--max-new-tokens 4 --requests 1 --repetitions 1)
  else
    arguments+=(--repetitions 3)
  fi
  arguments+=(--model "$pair/target" --draft "$pair/drafter" --prompts "$prompts")
  for policy in "${policies[@]}"; do arguments+=(--policy "$policy"); done
  timeout --kill-after=5 "$limit" "$smart_run" bench "${arguments[@]}" > "$scratch/bench.json" || return
  # Line breaks inside of JSON's texts are escaped.
  tr -d '\n' < "$scratch/bench.json" >> "$results/end-to-end.jsonl"
  echo >> "$results/end-to-end.jsonl"
  echo "smart-run bench ${arguments[*]}"
}

# profile NAME FLAG...: what passes cost, as NAME.json: of the pair, or of the shape of a Llama-3.1-8B and its EAGLE-3 drafter.
profile() {
  local arguments=(--format json --model "$shape/target" --draft "$shape/drafter" "${dummy[@]}" "${@:2}")
  timeout --kill-after=5 "$limit" "$smart_run" profile "${arguments[@]}" > "$scratch/profile.json" || return
  tr -d '\n' < "$scratch/profile.json" > "$results/$1.json"
  echo "smart-run profile ${arguments[*]}"
}

# decode SECONDS: plain decoding by PyTorch, of the target's shape. Status 77 without PyTorch.
decode() {
  local few=(--context 1024)
  [ "$SMART_DEVICE" = host ] && few=(--context 64 --modes default)
  "$python" -c 'import torch' 2>/dev/null || { echo "$python has no PyTorch"; return 77; }
  timeout --kill-after=5 "$limit" "$python" "$tools/gpu_check_decode.py" "$shape/target" "$results/decode.jsonl" --seconds "$1" "${few[@]}"
}

end_to_end() {
  unpack smart-run
  rm -f "$results/end-to-end.jsonl" "$results/decode.jsonl" "$results"/profile-*.json "$results/breakdown.json"
  # Relative, so that results name no folder of this machine.
  local pair=assets/demo prompts=assets/demo/prompts.jsonl shape=tools/shapes/llama-3.1-8b dummy=(--dummy-weights)
  [ "$SMART_DEVICE" = host ] && shape=assets/demo
  if [ -n "$models" ]; then
    pair=$(cd "$models" && pwd) || { summary+=("FAILED  $models: no such folder"); return; }
    [ -e "$pair/prompts.jsonl" ] && prompts=$pair/prompts.jsonl
    shape=$pair dummy=()
  fi
  cd "$SMART_TEST_ROOT" || exit 1
  local all=$((${seconds:-$((430 * patience))} + 20)) part batches="1 8 32 64 4 16 2"
  [ "$SMART_DEVICE" = host ] && batches="1 2"
  # Plain decoding: ours, PyTorch's, ours again, and where its time goes, in five eighths of the time at the most.
  step "passes" $((all / patience / 8 + 1)) profile profile-1
  step "plain decoding by PyTorch" $((all / patience / 4 + 1)) decode $((all / 10))
  step "passes again" $((all / patience / 8 + 1)) profile profile-2
  step "passes taken apart" $((all / patience / 8 + 1)) profile breakdown --breakdown 1,64
  for part in $(for t in 0 1; do for b in $batches; do echo "$b:$t"; done; done); do
    if ((SECONDS > all - 20)); then
      summary+=("SKIPPED batch ${part%:*} at temperature ${part#*:}: no time left")
      continue
    fi
    step "batch ${part%:*} at temperature ${part#*:}" $(((all - SECONDS) / patience + 1)) bench "${part%:*}" "${part#*:}"
  done
}

step "machine" 20 machine
if [ "$SMART_DEVICE" != host ] && command -v nvidia-smi > /dev/null; then
  # While nobody uses a GPU the driver may put it away, and each of our processes would wait until it is there again.
  nvidia-smi dmon -d 10 > /dev/null 2>&1 &
  watcher=$!
fi
case $mode in
  conformance) conformance ;;
  kernels) kernels ;;
  end-to-end) end_to_end ;;
esac
step "machine afterwards" 20 machine

printf '\n== summary of %s, %d s\n' "$mode" "$SECONDS"
printf '%s\n' "${summary[@]}"
if "$python" "$tools/gpu_check_tables.py" "$results" > "$scratch/tables.md" 2> "$scratch/tables.log"; then
  cp "$scratch/tables.md" "$results/tables.md"
  echo "tables: $results/tables.md"
else
  tail -n 1 "$scratch/tables.log"
  echo "no tables; tools/gpu_check_tables.py makes them of this folder elsewhere"
fi
if printf '%s\n' "${summary[@]}" | grep -q '^FAILED'; then
  echo "GPU CHECK FAILED"
  exit 1
fi
echo "GPU CHECK PASSED"
