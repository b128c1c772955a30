// Entry point: tensor maps. What a GPU's driver refuses is refused, and what this one cannot do: anything but
// matrices of 16-bit elements, whole and without a gap between elements.
#include "bulk_copy.hpp"
#include "driver.hpp"

using namespace simt;

// Of cuda.h.
enum : int { type_u16 = 1, type_f16 = 6, type_bf16 = 9 };
enum : int { swizzle_none, swizzle_32, swizzle_64, swizzle_128 };

DRIVER_API cuTensorMapEncodeTiled(TensorMap* map, int type, uint32_t rank, void* base, const uint64_t* dims,
                                  const uint64_t* strides, const uint32_t* box,
                                  const uint32_t* element_strides, int interleave, int swizzle, int promotion,
                                  int fill) {
  ENTER_DRIVER();
  auto refuse = [](Result code, const std::string& what) {
    return error(code, "cuTensorMapEncodeTiled: " + what);
  };
  auto cannot = [&](const char* what) { return refuse(CUDA_ERROR_NOT_SUPPORTED, what); };
  auto wrong = [&](const std::string& what) { return refuse(CUDA_ERROR_INVALID_VALUE, what); };
  if (reinterpret_cast<uintptr_t>(map) % 64) return wrong("the map is not aligned to 64 bytes");
  if (type != type_u16 && type != type_f16 && type != type_bf16)
    return cannot("elements that do not have 16 bits");
  if (rank != 2) return cannot("a tensor that is no matrix");
  if (interleave || fill) return cannot("interleaved layouts, and NaN for what is out of bounds");
  if (swizzle < swizzle_none || swizzle > swizzle_128) return cannot("a swizzle of other atoms");
  if (promotion < 0 || promotion > 3) return wrong("an unknown promotion");
  for (int i = 0; i < 2; i++) {
    if (element_strides[i] != 1) return cannot("element strides other than 1");
    if (!dims[i] || dims[i] > uint64_t(1) << 32)
      return wrong("dimension " + std::to_string(i) + " is " + std::to_string(dims[i]) + ", not 1 to 2^32");
    if (!box[i] || box[i] > 256)
      return wrong("a box of " + std::to_string(box[i]) + " elements, not 1 to 256");
  }
  if (!base || reinterpret_cast<uintptr_t>(base) % 16)
    return wrong("the tensor's address is no multiple of 16 bytes");
  if (strides[0] % 16 || strides[0] >= uint64_t(1) << 40)
    return wrong("a row stride of " + std::to_string(strides[0]) + " bytes, no multiple of 16 below 2^40");
  if (strides[0] < dims[0] * 2) return wrong("rows that overlap");
  const uint32_t inner_bytes = box[0] * 2, span = swizzle == swizzle_none ? 512 : 16u << swizzle;
  if (inner_bytes % 16) return wrong("a box whose rows are no multiple of 16 bytes");
  if (inner_bytes > span)
    return wrong("a box whose rows have " + std::to_string(inner_bytes) + " bytes, but its swizzle " +
                 std::to_string(span));
  *map = {.base = static_cast<const unsigned char*>(base),
          .columns = dims[0],
          .rows = dims[1],
          .row_bytes = strides[0],
          .box_columns = box[0],
          .box_rows = box[1],
          .swizzle_mask = (1u << swizzle) - 1,
          .signature = TensorMap::kSignature};
  return CUDA_SUCCESS;
}
