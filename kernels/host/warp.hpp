// Barriers, shuffles, votes and atomics with CUDA's names, on top of thread.hpp.
#pragma once
#include "thread.hpp"

inline void __syncthreads() {
  simt::barrier(0, 0, 0);
}
inline int __syncthreads_or(int predicate) {
  return simt::barrier(0, 0, predicate).any;
}
inline int __syncthreads_and(int predicate) {
  return simt::barrier(0, 0, predicate).all;
}
inline int __syncthreads_count(int predicate) {
  return simt::barrier(0, 0, predicate).count;
}
inline void __syncwarp(uint32_t mask = ~0u) {
  simt::rendezvous(mask, simt::WarpOp::syncwarp, nullptr, 0, nullptr);
}
// ThreadSanitizer does not know fences; its build gives every atomic the order that fences around it would.
#if defined(__SANITIZE_THREAD__)
inline void __threadfence() {}
#else
inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
#endif
inline void __threadfence_block() {}

namespace simt {

template <class T>
SIMT_UNTRACKED inline T read_slot(const Slot& slot) {
#if defined(__SANITIZE_THREAD__)  // an inlined memcpy would be seen, a called one intercepted
  T value;
  for (size_t i = 0; i < sizeof(T); i++)
    ((volatile unsigned char*)&value)[i] = ((const volatile unsigned char*)slot)[i];
  return value;
#else
  T value;
  memcpy(&value, slot, sizeof(T));
  return value;
#endif
}

template <class T>
inline T shuffle(uint32_t mask, T value, int source_lane) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  Slot* slots = rendezvous(mask, WarpOp::shuffle, &value, sizeof(T), nullptr);
  if (!(mask >> source_lane & 1)) fail("shuffle reads from a lane that is not in the mask");
  return read_slot<T>(slots[source_lane]);
}

SIMT_UNTRACKED inline uint32_t ballot(uint32_t mask, bool predicate) {
  unsigned char vote = predicate;
  Slot* slots = rendezvous(mask, WarpOp::vote, &vote, 1, nullptr);
  uint32_t result = 0;
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) result |= uint32_t(slots[lane][0] == 1) << lane;
  return result;
}

}  // namespace simt

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  int base = int(simt::current->lane) & ~(width - 1);
  return simt::shuffle(mask, value, base | (source & (width - 1)));
}

template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32) {
  int lane = int(simt::current->lane), source = lane ^ lane_mask;
  bool outside = (source & ~(width - 1)) > (lane & ~(width - 1));
  return simt::shuffle(mask, value, outside ? lane : source);
}

template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32) {
  int lane = int(simt::current->lane);
  return simt::shuffle(mask, value, (lane & (width - 1)) + delta < width ? lane + delta : lane);
}

template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, int delta, int width = 32) {
  int lane = int(simt::current->lane);
  return simt::shuffle(mask, value, (lane & (width - 1)) >= delta ? lane - delta : lane);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  return simt::ballot(mask, predicate != 0);
}
inline int __any_sync(uint32_t mask, int predicate) {
  return simt::ballot(mask, predicate != 0) != 0;
}
inline int __all_sync(uint32_t mask, int predicate) {
  return simt::ballot(mask, predicate == 0) == 0;
}

template <class T>
inline uint32_t __match_any_sync(uint32_t mask, T value) {
  simt::Slot* slots = simt::rendezvous(mask, simt::WarpOp::match, &value, sizeof(T), nullptr);
  uint32_t result = 0;
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) result |= uint32_t(simt::read_slot<T>(slots[lane]) == value) << lane;
  return result;
}

#define SIMT_REDUCE(name, T, combine)                                                              \
  inline T name(uint32_t mask, T value) {                                                          \
    simt::Slot* slots = simt::rendezvous(mask, simt::WarpOp::shuffle, &value, sizeof(T), nullptr); \
    for (int lane = 0; lane < 32; lane++) {                                                        \
      if (!(mask >> lane & 1) || lane == int(simt::current->lane)) continue;                       \
      T other = simt::read_slot<T>(slots[lane]);                                                   \
      value = combine;                                                                             \
    }                                                                                              \
    return value;                                                                                  \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, value + other)
SIMT_REDUCE(__reduce_min_sync, unsigned, min(value, other))
SIMT_REDUCE(__reduce_max_sync, unsigned, max(value, other))
SIMT_REDUCE(__reduce_or_sync, unsigned, value | other)
SIMT_REDUCE(__reduce_and_sync, unsigned, value& other)
#undef SIMT_REDUCE

// ---- atomics: relaxed, as in CUDA; each returns the old value

namespace simt {
#if defined(__SANITIZE_THREAD__)
constexpr int update_order = __ATOMIC_ACQ_REL, load_order = __ATOMIC_ACQUIRE;
#else
constexpr int update_order = __ATOMIC_RELAXED, load_order = __ATOMIC_RELAXED;
#endif
}  // namespace simt

template <class T, class Update>
inline T simt_atomic_update(T* address, Update update) {
  T old, desired;
  __atomic_load(address, &old, simt::load_order);
  do desired = update(old);
  while (!__atomic_compare_exchange(address, &old, &desired, true, simt::update_order, simt::load_order));
  return old;
}

template <class T>
inline T atomicAdd(T* address, std::type_identity_t<T> value) {
  return simt_atomic_update(address, [=](T old) { return T(old + value); });
}
// Counts up to `limit`, then starts again at 0.
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return simt_atomic_update(address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; });
}
template <class T>
inline T atomicSub(T* address, std::type_identity_t<T> value) {
  return simt_atomic_update(address, [=](T old) { return T(old - value); });
}
template <class T>
inline T atomicMax(T* address, std::type_identity_t<T> value) {
  return simt_atomic_update(address, [=](T old) { return max(old, value); });
}
template <class T>
inline T atomicMin(T* address, std::type_identity_t<T> value) {
  return simt_atomic_update(address, [=](T old) { return min(old, value); });
}
template <class T>
inline T atomicOr(T* address, std::type_identity_t<T> value) {
  return __atomic_fetch_or(address, value, simt::update_order);
}
template <class T>
inline T atomicAnd(T* address, std::type_identity_t<T> value) {
  return __atomic_fetch_and(address, value, simt::update_order);
}
template <class T>
inline T atomicExch(T* address, std::type_identity_t<T> value) {
  return simt_atomic_update(address, [=](T) { return value; });
}
template <class T>
inline T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  __atomic_compare_exchange(address, &expected, &value, false, simt::update_order, simt::load_order);
  return expected;
}
