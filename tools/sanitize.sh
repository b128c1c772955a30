#!/bin/sh
# Races, out-of-bounds accesses and undefined behaviour of the CUDA kernels, found on the CPU.
#
#   tools/sanitize.sh thread|address [FOLDER | selftest CASE]
#
# FOLDER holds launches dumped by any run of the normal host driver, for example
#   SIMT_DUMP=/tmp/launches cargo test --test kernels
# They are replayed by an executable that holds the host driver and all kernels, compiled with ThreadSanitizer or with
# Address- and UndefinedBehaviorSanitizer. Exits nonzero when a launch fails or a sanitizer reports something.
# It is an executable of its own because a sanitizer's runtime has to come first in a process: such a library would load
# into a Rust program only if the runtime were preloaded. Of each kernel the REPLAY_PER_KERNEL (2) smallest launches run, of flat grids and of others.
# `selftest CASE` runs a case of the host driver's self-test instead. The build is kept in target/sanitize-*; only what
# changed is compiled again. $CXX selects the compiler (g++).
set -eu

usage() { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }

cd "$(dirname "$0")/.."
sanitizer=${1:-}
out=target/sanitize-$sanitizer
cxx=${CXX:-g++}
common="-std=c++20 -O1 -g -fno-omit-frame-pointer -fno-strict-aliasing -pthread -Wno-unknown-pragmas -w -Wno-psabi -Ikernels -Ikernels/host"
case $sanitizer in
  # The runtime is not instrumented: it tells ThreadSanitizer what orders its fibers (kernels/host/sanitizer.hpp).
  thread)
    runtime_flags="$common -DSIMT_TSAN"
    kernel_flags="$common -fsanitize=thread"
    link_flags="-fsanitize=thread"
    export TSAN_OPTIONS="exitcode=66 report_thread_leaks=0 history_size=4 ${TSAN_OPTIONS:-}" ;;
  address)
    runtime_flags="$common -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    kernel_flags=$runtime_flags
    link_flags="-fsanitize=address,undefined"
    export ASAN_OPTIONS="detect_leaks=0 detect_stack_use_after_return=0 ${ASAN_OPTIONS:-}" ;;
  *) usage ;;
esac

mkdir -p "$out"
# compile SOURCE FLAGS...: prints the command that makes $out/NAME.o, unless it is newer than all it was made from.
compile() {
  source=$1; shift
  object=$out/$(echo "$source" | tr '/' '-').o
  if [ -e "$object" ] && [ -e "$object.d" ] &&
     ! find $(sed 's/^[^:]*://; s/\\$//' "$object.d") -newer "$object" 2>&1 | grep -q .; then return; fi
  echo "$cxx $* -MMD -MF $object.d -x c++ -c $source -o $object"
}
objects() { for source in "$@"; do echo "$out/$(echo "$source" | tr '/' '-').o"; done; }

runtime=$(ls kernels/host/*.cpp kernels/host/ptx/*.cpp)
case ${2:-} in
  selftest) program=selftest host=$(ls kernels/host/selftest/*.cpp) kernels=$(ls kernels/host/selftest/*.cu) ;;
  *) program=replay host=$(ls kernels/host/replay/*.cpp) kernels=$(ls kernels/*.cu) ;;
esac
{
  for source in $runtime $host; do compile "$source" $runtime_flags; done
  for source in $kernels; do compile "$source" $kernel_flags; done
} > "$out/commands"
xargs -r -P "${JOBS:-2}" -I{} sh -c '{}' < "$out/commands"
$cxx -pthread -rdynamic $link_flags $(objects $runtime $host $kernels) -o "$out/$program" -ldl

case ${2:-} in
  '') ;;
  selftest) exec "$out/selftest" "${3:?selftest needs a CASE}" ;;
  *) exec "$out/replay" "$2"/*.launch ;;
esac
