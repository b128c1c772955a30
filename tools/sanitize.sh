#!/bin/sh
# Races, out-of-bounds accesses and undefined behaviour of the CUDA kernels, found on the CPU.
#
#   tools/sanitize.sh thread|address [FOLDER | selftest CASE]
#
# FOLDER holds launches dumped by any run of the normal host driver, for example
#   SIMT_DUMP=/tmp/launches cargo test --test kernels
# They are replayed by an executable that holds the host driver and all kernels, compiled with ThreadSanitizer or with
# Address- and UndefinedBehaviorSanitizer. Exits nonzero when a launch fails or a sanitizer reports something.
# `selftest CASE` runs a case of the host driver's self-test instead. The build is kept in target/sanitize-*; only what
# changed is compiled again. $CXX selects the compiler (g++).
set -eu

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }

cd "$(dirname "$0")/.."
sanitizer=${1:-}
out=target/sanitize-$sanitizer
cxx=${CXX:-g++}
common="-std=c++20 -O1 -g -fno-omit-frame-pointer -fno-strict-aliasing -pthread -Wno-unknown-pragmas -w -Ikernels -Ikernels/host"
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
newest_header=$(find kernels -name '*.hpp' -o -name '*.cuh' -o -name '*.cu' | xargs ls -t | head -1)
# compile SOURCE FLAGS...: to $out/NAME.o, unless that is newer than the source and all headers.
compile() {
  source=$1; shift
  object=$out/$(echo "$source" | tr '/' '-').o
  if [ ! -e "$object" ] || [ "$source" -nt "$object" ] || [ "$newest_header" -nt "$object" ]; then
    echo "$cxx $* -x c++ -c $source -o $object"
  fi
}
{
  for source in kernels/host/*.cpp kernels/host/replay/*.cpp; do compile "$source" $runtime_flags; done
  for source in kernels/host/selftest/*.cpp; do compile "$source" $runtime_flags; done
  for source in kernels/*.cu kernels/host/selftest/*.cu; do [ ! -e "$source" ] || compile "$source" $kernel_flags; done
} > "$out/commands"
xargs -P "${JOBS:-2}" -I{} sh -c '{}' < "$out/commands"

runtime=$(ls "$out"/kernels-host-[a-z_]*.cpp.o | grep -v -e kernels-host-replay- -e kernels-host-selftest-)
kernels=$(ls "$out"/kernels-*.cu.o | grep -v kernels-host-selftest- || true)
selftest=$(ls "$out"/kernels-host-selftest-*.o)
$cxx -pthread -rdynamic $link_flags $runtime $kernels $selftest -o "$out/selftest" -ldl 2>/dev/null ||
  $cxx -pthread -rdynamic $link_flags $runtime $selftest -o "$out/selftest" -ldl
$cxx -pthread -rdynamic $link_flags $runtime $kernels "$out"/kernels-host-replay-*.o \
  "$out"/kernels-host-selftest-planted.cu.o -o "$out/replay" -ldl

case ${2:-} in
  '') ;;
  selftest) exec "$out/selftest" "${3:?selftest needs a CASE}" ;;
  *) exec "$out/replay" "$2"/*.launch ;;
esac
