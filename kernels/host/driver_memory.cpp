// Entry points: allocation and copies.
#include <string.h>

#include "clock.hpp"
#include "driver.hpp"
#include "options.hpp"

using namespace simt;

namespace {

unsigned char* at(DevicePointer p) {
  return reinterpret_cast<unsigned char*>(p);
}

enum class Direction { to_device, to_host, on_device };

// `height` rows of `width` bytes. A plain copy is one row.
struct Copy : Operation {
  unsigned char* to;
  const unsigned char* from;
  size_t width, height, to_pitch, from_pitch;
  Direction direction;
  std::vector<unsigned char>
      staged;  // pageable sources are read when the call is made, as the real driver does

  // Until the copy has run a reader of the destination sees poison, not what happened to be there.
  void submitted(Stream*) override {
    if (direction != Direction::to_host || !options().lazy.load()) return;
    for (size_t row = 0; row < height; row++) memset(to + row * to_pitch, 0xFF, width);
  }

  Result run(uint64_t& now) override {
    const unsigned char* source = staged.empty() ? from : staged.data();
    for (size_t row = 0; row < height; row++) memmove(to + row * to_pitch, source + row * from_pitch, width);
    now += modelled_copy_ns();
    return CUDA_SUCCESS;
  }
};

struct Fill : Operation {
  unsigned char* to;
  size_t count;
  uint32_t value;
  int value_bytes;

  Result run(uint64_t& now) override {
    if (value_bytes == 1)
      memset(to, int(value), count);
    else
      for (size_t i = 0; i < count; i++) memcpy(to + i * 4, &value, 4);
    now += modelled_copy_ns();
    return CUDA_SUCCESS;
  }
};

struct Free : Operation {
  DevicePointer pointer;
  explicit Free(DevicePointer p) : pointer(p) {}
  Result run(uint64_t&) override { return free_device(pointer, "cuMemFreeAsync"); }
};

Result check_rows(const char* call, DevicePointer p, size_t width, size_t height, size_t pitch) {
  return check_range(p, height ? (height - 1) * pitch + width : 0, call);
}

Result submit_copy(const char* call, Copy copy, void* stream_handle, bool synchronous) {
  std::lock_guard driver_lock(driver_mutex);
  RETURN_IF_ERROR(sticky_state());
  Stream* stream = stream_from_handle(stream_handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (synchronous) RETURN_IF_ERROR(refuse_during_capture(call));
  if (!copy.width || !copy.height) return CUDA_SUCCESS;
  auto address = [](const void* p) { return reinterpret_cast<DevicePointer>(p); };
  if (copy.direction != Direction::to_host)
    RETURN_IF_ERROR(check_rows(call, address(copy.to), copy.width, copy.height, copy.to_pitch));
  if (copy.direction != Direction::to_device)
    RETURN_IF_ERROR(check_rows(call, address(copy.from), copy.width, copy.height, copy.from_pitch));

  bool pageable = (copy.direction == Direction::to_device && !is_pinned(copy.from)) ||
                  (copy.direction == Direction::to_host && !is_pinned(copy.to));
  if (pageable && copy.direction == Direction::to_device && !stream->capture && options().lazy.load())
    copy.staged.assign(copy.from, copy.from + (copy.height - 1) * copy.from_pitch + copy.width);
  RETURN_IF_ERROR(submit(stream, std::make_shared<Copy>(std::move(copy))));
  // A copy to pageable memory returns when it is done: the real driver has to stage it.
  bool returns_done = synchronous || (pageable && copy.direction == Direction::to_host && !stream->capture);
  return returns_done ? synchronize(stream) : CUDA_SUCCESS;
}

Copy linear(Direction direction, void* to, const void* from, size_t bytes) {
  Copy copy;
  copy.to = static_cast<unsigned char*>(to);
  copy.from = static_cast<const unsigned char*>(from);
  copy.width = copy.to_pitch = copy.from_pitch = bytes;
  copy.height = 1;
  copy.direction = direction;
  return copy;
}

Result submit_fill(const char* call, DevicePointer to, uint32_t value, int value_bytes, size_t count,
                   void* handle) {
  std::lock_guard driver_lock(driver_mutex);
  RETURN_IF_ERROR(sticky_state());
  Stream* stream = stream_from_handle(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  RETURN_IF_ERROR(check_range(to, count * size_t(value_bytes), call));
  auto fill = std::make_shared<Fill>();
  fill->to = at(to);
  fill->count = count;
  fill->value = value;
  fill->value_bytes = value_bytes;
  return submit(stream, fill);
}

}  // namespace

// ---- allocation -------------------------------------------------------------------------------------------

DRIVER_API cuMemAlloc_v2(DevicePointer* pointer, size_t bytes) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuMemAlloc"));
  return allocate_device(pointer, bytes);
}

DRIVER_API cuMemAllocAsync(DevicePointer* pointer, size_t bytes, void* handle) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuMemAllocAsync"));
  Stream* stream = stream_from_handle(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                 "cuMemAllocAsync on a capturing stream: allocate before the capture");
  return allocate_device(pointer, bytes);
}

// Freeing waits for all work, which may still use the memory.
DRIVER_API cuMemFree_v2(DevicePointer pointer) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuMemFree"));
  RETURN_IF_ERROR(synchronize(nullptr));
  return free_device(pointer, "cuMemFree");
}

DRIVER_API cuMemFreeAsync(DevicePointer pointer, void* handle) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuMemFreeAsync"));
  Stream* stream = stream_from_handle(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuMemFreeAsync on a capturing stream");
  return submit(stream, std::make_shared<Free>(pointer));
}

DRIVER_API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuMemHostAlloc"));
  return allocate_host(pointer, bytes);
}

// Kernels see host memory at its own address.
DRIVER_API cuMemHostGetDevicePointer_v2(DevicePointer* device_pointer, void* pointer, unsigned) {
  ENTER_DRIVER();
  if (!is_pinned(pointer))
    return error(CUDA_ERROR_INVALID_VALUE, "cuMemHostGetDevicePointer: not pinned memory");
  *device_pointer = reinterpret_cast<DevicePointer>(pointer);
  return CUDA_SUCCESS;
}

DRIVER_API cuMemFreeHost(void* pointer) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuMemFreeHost"));
  RETURN_IF_ERROR(synchronize(nullptr));
  return free_host(pointer);
}

DRIVER_API cuMemGetInfo_v2(size_t* free, size_t* total) {
  std::lock_guard driver_lock(driver_mutex);
  MemoryUse use = memory_use();
  *free = use.total - use.used;
  *total = use.total;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemGetAddressRange_v2(DevicePointer* base, size_t* bytes, DevicePointer pointer) {
  ENTER_DRIVER();
  AllocationRange range;
  if (!find_allocation(pointer, &range))
    return error(CUDA_ERROR_INVALID_VALUE, "cuMemGetAddressRange: not device memory");
  if (base) *base = range.begin;
  if (bytes) *bytes = range.bytes;
  return CUDA_SUCCESS;
}

DRIVER_API cuPointerGetAttribute(void* value, int attribute, DevicePointer pointer) {
  ENTER_DRIVER();
  AllocationRange range;
  bool device = find_allocation(pointer, &range);
  if (!device && !is_pinned(at(pointer)))
    return error(CUDA_ERROR_INVALID_VALUE, "cuPointerGetAttribute: unknown pointer");
  if (attribute == 2)
    *static_cast<unsigned*>(value) = device ? 2 : 1;  // MEMORY_TYPE
  else if (attribute == 3)
    *static_cast<DevicePointer*>(value) = pointer;  // DEVICE_POINTER
  else if (attribute == 9)
    *static_cast<int*>(value) = 0;  // DEVICE_ORDINAL
  else if (attribute == 11 && device)
    *static_cast<DevicePointer*>(value) = range.begin;  // RANGE_START_ADDR
  else if (attribute == 12 && device)
    *static_cast<size_t*>(value) = range.bytes;  // RANGE_SIZE
  else
    return error(CUDA_ERROR_NOT_SUPPORTED, "cuPointerGetAttribute: attribute " + std::to_string(attribute));
  return CUDA_SUCCESS;
}

// ---- copies and fills -------------------------------------------------------------------------------------

DRIVER_API cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, size_t bytes, void* stream) {
  return submit_copy("cuMemcpyHtoDAsync", linear(Direction::to_device, at(to), from, bytes), stream, false);
}
DRIVER_API cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, size_t bytes, void* stream) {
  return submit_copy("cuMemcpyDtoHAsync", linear(Direction::to_host, to, at(from), bytes), stream, false);
}
DRIVER_API cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t bytes, void* stream) {
  return submit_copy("cuMemcpyDtoDAsync", linear(Direction::on_device, at(to), at(from), bytes), stream,
                     false);
}
DRIVER_API cuMemcpyHtoD_v2(DevicePointer to, const void* from, size_t bytes) {
  return submit_copy("cuMemcpyHtoD", linear(Direction::to_device, at(to), from, bytes), nullptr, true);
}
DRIVER_API cuMemcpyDtoH_v2(void* to, DevicePointer from, size_t bytes) {
  return submit_copy("cuMemcpyDtoH", linear(Direction::to_host, to, at(from), bytes), nullptr, true);
}
DRIVER_API cuMemcpyDtoD_v2(DevicePointer to, DevicePointer from, size_t bytes) {
  return submit_copy("cuMemcpyDtoD", linear(Direction::on_device, at(to), at(from), bytes), nullptr, true);
}

struct CUDA_MEMCPY2D {
  size_t from_x, from_y;
  unsigned from_type;  // 1 host, 2 device
  const unsigned char* from_host;
  DevicePointer from_device;
  void* from_array;
  size_t from_pitch;
  size_t to_x, to_y;
  unsigned to_type;
  unsigned char* to_host;
  DevicePointer to_device;
  void* to_array;
  size_t to_pitch;
  size_t width, height;
};

DRIVER_API cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* d, void* stream) {
  if (d->from_type - 1 > 1 || d->to_type - 1 > 1 || (d->from_type == 1 && d->to_type == 1))
    return error(CUDA_ERROR_NOT_SUPPORTED,
                 "cuMemcpy2DAsync: only between device memory and device or host memory");
  Copy copy;
  copy.width = d->width;
  copy.height = d->height;
  copy.from_pitch = d->from_pitch ? d->from_pitch : d->width;
  copy.to_pitch = d->to_pitch ? d->to_pitch : d->width;
  if (copy.from_pitch < d->width || copy.to_pitch < d->width)
    return error(CUDA_ERROR_INVALID_VALUE, "cuMemcpy2DAsync: a pitch is less than the width");
  copy.from =
      (d->from_type == 1 ? d->from_host : at(d->from_device)) + d->from_y * copy.from_pitch + d->from_x;
  copy.to = (d->to_type == 1 ? d->to_host : at(d->to_device)) + d->to_y * copy.to_pitch + d->to_x;
  copy.direction = d->from_type == 1 ? Direction::to_device
                   : d->to_type == 1 ? Direction::to_host
                                     : Direction::on_device;
  return submit_copy("cuMemcpy2DAsync", std::move(copy), stream, false);
}

DRIVER_API cuMemsetD8Async(DevicePointer to, unsigned char value, size_t count, void* stream) {
  return submit_fill("cuMemsetD8Async", to, value, 1, count, stream);
}
DRIVER_API cuMemsetD32Async(DevicePointer to, unsigned value, size_t count, void* stream) {
  return submit_fill("cuMemsetD32Async", to, value, 4, count, stream);
}
DRIVER_API cuMemsetD8_v2(DevicePointer to, unsigned char value, size_t count) {
  return submit_fill("cuMemsetD8", to, value, 1, count, nullptr);
}
