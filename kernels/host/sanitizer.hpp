// What the runtime tells ThreadSanitizer and AddressSanitizer; nothing at all in a plain build.
//
// ThreadSanitizer: kernels are compiled with -fsanitize=thread, the runtime without it but with -DSIMT_TSAN.
// It sees every fiber as a thread of its own that is ordered with others only by the acquire/release pairs
// given here: a happens-before race detector for shared and global memory that does not depend on the
// schedule.
#pragma once
#include <stddef.h>

#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt::tsan {

#if defined(SIMT_TSAN)
constexpr bool enabled = true;
inline void* create_fiber() {
  return __tsan_create_fiber(0);
}
inline void destroy_fiber(void* fiber) {
  __tsan_destroy_fiber(fiber);
}
inline void* current_fiber() {
  return __tsan_get_current_fiber();
}
inline void switch_to(void* fiber) {
  __tsan_switch_to_fiber(fiber, 1 /* creates no order */);
}
inline void acquire(void* object) {
  __tsan_acquire(object);
}
inline void release(void* object) {
  __tsan_release(object);
}
inline void reads(const void* p, size_t n) {
  __tsan_read_range(const_cast<void*>(p), n);
}
inline void writes(void* p, size_t n) {
  __tsan_write_range(p, n);
}

// While one lives, this fiber's accesses (libc's memcpy and memset are intercepted) are not the kernel's.
struct Ignore {
  Ignore() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Ignore() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
constexpr bool enabled = false;
inline void* create_fiber() {
  return nullptr;
}
inline void destroy_fiber(void*) {}
inline void* current_fiber() {
  return nullptr;
}
inline void switch_to(void*) {}
inline void acquire(void*) {}
inline void release(void*) {}
inline void reads(const void*, size_t) {}
inline void writes(void*, size_t) {}
struct Ignore {
  Ignore() {}
};
#endif

}  // namespace simt::tsan

namespace simt::asan {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool enabled = true;
inline void* start_switch(const void* stack, size_t bytes, bool abandon = false) {
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(abandon ? nullptr : &fake, stack, bytes);
  return fake;
}
inline void finish_switch(void* fake) {
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
inline void poison(const void* p, size_t n) {
  __asan_poison_memory_region(p, n);
}
inline void unpoison(const void* p, size_t n) {
  __asan_unpoison_memory_region(p, n);
}
#else
constexpr bool enabled = false;
inline void* start_switch(const void*, size_t, bool = false) {
  return nullptr;
}
inline void finish_switch(void*) {}
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

}  // namespace simt::asan
