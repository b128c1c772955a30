#!/usr/bin/env bash
# Builds gpu-check/: the kernel and engine tests in one executable, the command line for whole runs, what the host driver computes
# for the same cases, and run.sh, which runs it all on a machine that has a GPU but neither cargo nor a network. Runs the tests at
# once if this machine has a GPU. See docs/gpu-check.md.
# Usage: tools/gpu_check.sh        Environment: NVCC, CUDA_HOME, CUDA_ARCHS as for any build (CUDA_ARCHS=90a builds sooner);
#   CUDA_LINEINFO=1 for source lines in what compute-sanitizer says; GPU_CHECK_SMART_RUN, a smart-run built already
set -euo pipefail
cd "$(dirname "$0")/.."

# Without source lines in the device images, which are a third of what is to be carried: compute-sanitizer names kernels and offsets.
export CUDA_LINEINFO=${CUDA_LINEINFO:-0}

# The profile of `make test`, with its overflow checks: what runs on the GPU is what the tests here ran. Kernels are
# optimised in every profile.
built=$(REQUIRE_NVCC=1 cargo test --test gpu_check --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*gpu_check-[^"]*\)".*/\1/p' | tail -1)
[ -n "$built" ] || { echo "gpu-check: cargo built no executable" >&2; exit 1; }
# Whole runs want the host's code as users have it. The demo pair travels with the repository, so not in here once more.
program=${GPU_CHECK_SMART_RUN:-}
if [ -z "$program" ]; then
  REQUIRE_NVCC=1 cargo build --release --no-default-features --features cli
  program=target/release/smart-run
fi

rm -rf gpu-check
mkdir gpu-check
strip -o gpu-check/gpu_check "$built"
strip -o gpu-check/smart-run "$program"
cp tools/gpu_check_run.sh gpu-check/run.sh
{
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ', modified')"
  echo "built $(date -u +%Y-%m-%dT%H:%MZ) by $(rustc --version), sha256 $(sha256sum gpu-check/gpu_check | cut -c1-16)"
} > gpu-check/build.txt

echo "gpu-check: the host driver's own results ..."
SMART_DEVICE=host SMART_DUMP=gpu-check/host.dump gpu-check/gpu_check --test-threads=1 --quiet kernels:: > gpu-check/host.log ||
  { cat gpu-check/host.log >&2; exit 1; }
# A file that cannot be read should not be found on the GPU's time.
SMART_DEVICE=host SMART_DUMPS=gpu-check/host.dump:gpu-check/host.dump gpu-check/gpu_check --ignored --quiet dumps_agree \
  > gpu-check/host.log 2>&1 || { cat gpu-check/host.log >&2; exit 1; }
rm gpu-check/host.log

# Images for several architectures are alike, so this leaves a sixth; run.sh unpacks it.
xz -9 gpu-check/gpu_check gpu-check/smart-run gpu-check/host.dump
ls -l gpu-check
# What docs/gpu-check.md says of their size.
tracked=$(git ls-files -z | xargs -0 stat --printf='%s\n' | awk '{ sum += $1 } END { print sum }')
room() {
  local bytes=$tracked file
  for file in run.sh build.txt "${@:2}"; do bytes=$((bytes + $(stat --printf=%s "gpu-check/$file"))); done
  echo "repository and files for $1: $((bytes / 1000)) kB$( ((bytes > 64 << 20)) && echo ', more than 64 MiB')"
}
room "conformance and kernels" gpu_check.xz host.dump.xz
room end-to-end smart-run.xz

if nvidia-smi -L >/dev/null 2>&1; then
  exec gpu-check/run.sh conformance gpu-check/results
fi
echo "No GPU on this machine. Copy the repository with gpu-check/ to one that has a GPU (driver R580 or newer) and run there:
  gpu-check/run.sh conformance|kernels|end-to-end RESULTS_DIR"
