// Loads, stores, atomics, copies that are waited for later, and fences.
#include "../condition.hpp"
#include "../mbarrier.hpp"
#include "../warp.hpp"
#include "../warpgroup.hpp"
#include "frame.hpp"

namespace simt::ptx {

namespace {

// d or {d...}, [address]
template <Space space, class T>
void load(Frame& f, const Instruction& i) {
  const uint32_t count = i.group, bytes = count * sizeof(T);
  const unsigned char* from = locate(f, i, space, i[count], bytes, bytes);
  for (uint32_t k = 0; k < count; k++) {
    T value;
    memcpy(&value, from + k * sizeof value, sizeof value);
    set_extended<T>(f, i[k], value);
  }
}

// Tensor cores read shared memory behind the threads' backs: what these have stored there has to be fenced.
void note_store(Frame& f, Space space, const unsigned char* at, uint32_t bytes) {
  if (!f.program->multiplies_shared || (space != Space::shared && space != Space::generic)) return;
  for (uint32_t k = 0; k < bytes; k += 16) f.block->note_write(at + k, true);
}

// [address], v or {v...}
template <Space space, class T>
void store(Frame& f, const Instruction& i) {
  const uint32_t count = i.num_operands - 1u, bytes = count * sizeof(T);
  unsigned char* to = locate(f, i, space, i[0], bytes, bytes);
  for (uint32_t k = 0; k < count; k++) {
    const T value = get<T>(f, i[k + 1]);
    memcpy(to + k * sizeof value, &value, sizeof value);
  }
  note_store(f, space, to, bytes);
}

void store_release(Frame& f, const Instruction& i) {
  auto* to = reinterpret_cast<int32_t*>(locate(f, i, Space::global, i[0], 4, 4));
  __atomic_store_n(to, get<int32_t>(f, i[1]), __ATOMIC_RELEASE);
}

// d, [address], value
template <Space space, class T, auto update>
void atomic(Frame& f, const Instruction& i) {
  unsigned char* place = locate(f, i, space, i[1], sizeof(T), sizeof(T));
  note_store(f, space, place, sizeof(T));
  auto* at = reinterpret_cast<T*>(place);
  const T value = get<T>(f, i[2]);
  set<T>(f, i[0], simt_atomic_update(at, [=](T old) { return T(update(old, value)); }));
}

template <Space space>
void add_types(Actions& to, const std::string& name, const char* orders = "") {
  const auto add = [&](const char* type, Action ld, Action st) {
    for (const char* vector : {"", ".v2", ".v4"}) {
      to["ld" + name + orders + vector + type] = ld;
      if (!*orders) to["st" + name + vector + type] = st;
    }
  };
  add(".u8", load<space, uint8_t>, store<space, uint8_t>);
  add(".s8", load<space, int8_t>, store<space, int8_t>);
  add(".b8", load<space, uint8_t>, store<space, uint8_t>);
  add(".u16", load<space, uint16_t>, store<space, uint16_t>);
  add(".s16", load<space, int16_t>, store<space, int16_t>);
  add(".b16", load<space, uint16_t>, store<space, uint16_t>);
  add(".u32", load<space, uint32_t>, store<space, uint32_t>);
  add(".s32", load<space, int32_t>, store<space, int32_t>);
  add(".b32", load<space, uint32_t>, store<space, uint32_t>);
  add(".f32", load<space, float>, store<space, float>);
  add(".u64", load<space, uint64_t>, store<space, uint64_t>);
  add(".s64", load<space, int64_t>, store<space, int64_t>);
  add(".b64", load<space, uint64_t>, store<space, uint64_t>);
  add(".f64", load<space, double>, store<space, double>);
}

template <Space space>
void add_atomics(Actions& to, const std::string& name) {
  constexpr auto sum = [](auto old, auto value) { return old + value; };
  constexpr auto either = [](auto old, auto value) { return old | value; };
  constexpr auto count = [](auto old, auto limit) { return old >= limit ? 0 : old + 1; };
  constexpr auto greater = [](auto old, auto value) { return old < value ? value : old; };
  constexpr auto lesser = [](auto old, auto value) { return value < old ? value : old; };
  to["atom." + name + ".add.u32"] = atomic<space, uint32_t, sum>;
  to["atom." + name + ".add.u64"] = atomic<space, uint64_t, sum>;
  to["atom." + name + ".add.f32"] = atomic<space, float, sum>;
  to["atom." + name + ".or.b32"] = atomic<space, uint32_t, either>;
  to["atom." + name + ".inc.u32"] = atomic<space, uint32_t, count>;
  to["atom." + name + ".max.u32"] = atomic<space, uint32_t, greater>;
  to["atom." + name + ".max.s32"] = atomic<space, int32_t, greater>;
  to["atom." + name + ".min.u32"] = atomic<space, uint32_t, lesser>;
  to["atom." + name + ".min.s32"] = atomic<space, int32_t, lesser>;
}

void fence(Frame&, const Instruction&) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// [shared], [global], 16, bytes that are read
void copy_async(Frame& f, const Instruction& i) {
  const uint32_t bytes = get<uint32_t>(f, i[2]), valid = i.num_operands > 3 ? get<uint32_t>(f, i[3]) : bytes;
  if (valid > bytes) f.fail(i, "cp.async reads more than it writes");
  unsigned char* shared = locate(f, i, Space::shared, i[0], bytes, bytes);
  async_copy(shared, locate(f, i, Space::global, i[1], valid, bytes), int(bytes), int(valid));
}
void commit_copies(Frame&, const Instruction&) {
  async_copy_commit();
}
void wait_for_copies(Frame& f, const Instruction& i) {
  async_copy_wait(get<int32_t>(f, i[0]));
}

// Reads what a prefetch names, so that an address that is none is found; nothing is moved to the lanes, so nothing is counted.
void prefetch(Frame& f, const Instruction& i) {
  (void)*static_cast<const volatile unsigned char*>(locate(f, i, Space::generic, i[0], 1, 1));
}

// ---- the one call ------------------------------------------------------------------------------------------------

void store_argument(Frame& f, const Instruction& i) {
  f.arguments[i[0].offset] = get<uint64_t>(f, i[1]);
}
void call_set_condition(Frame& f, const Instruction&) {
  set_condition(f.arguments[0], uint32_t(f.arguments[1]));
}

}  // namespace

void add_memory(Actions& to) {
  add_types<Space::generic>(to, "");
  add_types<Space::global>(to, ".global");
  for (const char* cache : {".nc", ".cg", ".cs"}) add_types<Space::global>(to, ".global", cache);
  add_types<Space::parameter>(to, ".param");
  add_types<Space::shared>(to, ".shared");
  add_types<Space::cluster>(to, ".shared::cluster");
  add_types<Space::local>(to, ".local");
  to["st.param.b32"] = to["st.param.b64"] = store_argument;
  to["call.uni"] = call_set_condition;
  to["st.release.sys.global.s32"] = store_release;
  add_atomics<Space::global>(to, "global");
  add_atomics<Space::shared>(to, "shared");
  to["membar.gl"] = to["membar.sys"] = to["membar.cta"] = to["fence.acq_rel.gpu"] = fence;
  to["cp.async.cg.shared.global"] = copy_async;
  to["cp.async.commit_group"] = commit_copies;
  to["cp.async.wait_group"] = wait_for_copies;
  to["prefetch.global.L2"] = to["prefetch.tensormap"] = prefetch;
}

}  // namespace simt::ptx
