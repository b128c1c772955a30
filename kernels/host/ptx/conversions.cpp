// cvt: between numbers of different kinds, and addresses of different spaces.
#include <math.h>

#include <limits>

#include "frame.hpp"

namespace simt::ptx {

namespace {

// To whole numbers: towards zero, and to the nearest that there is; NaN is 0.
template <class To, class From>
To truncated(From v) {
  if (v != v) return 0;
  if (v <= From(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (v >= From(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return To(v);
}

float saturated(float v) {
  return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f;  // of NaN, too, 0
}

// The first of two in the high half.
template <class T, auto round>
void pack_two(Frame& f, const Instruction& i) {
  set<uint32_t>(f, i[0], uint32_t(round(get<float>(f, i[1])).x) << 16 | round(get<float>(f, i[2])).x);
}

template <class To, class From>
void add_cast(Actions& to, const std::string& rounding) {
  // A register may be wider than its type: signs are extended.
  to["cvt." + rounding + type_name<To> + "." + type_name<From>] = [](Frame& f, const Instruction& i) {
    set_extended<To>(f, i[0], To(get<From>(f, i[1])));
  };
}
template <class To, class... From>
void add_casts(Actions& to, const std::string& rounding) {
  (add_cast<To, From>(to, rounding), ...);
}
template <class From, class... To>
void add_truncations(Actions& to) {
  ((to[std::string("cvt.rzi.") + type_name<To> + "." + type_name<From>] =
        unary<To, From, truncated<To, From>>),
   ...);
}

// d, a: an address in another space, or none; those of global, local and parameters are what they are.
void same_address(Frame& f, const Instruction& i) {
  set<uint64_t>(f, i[0], get<uint64_t>(f, i[1]));
}
void generic_of_shared(Frame& f, const Instruction& i) {
  set<uint64_t>(f, i[0], reinterpret_cast<uint64_t>(f.block->shared_begin() + get<uint64_t>(f, i[1])));
}
void shared_of_generic(Frame& f, const Instruction& i) {
  set<uint64_t>(f, i[0], get<uint64_t>(f, i[1]) - reinterpret_cast<uint64_t>(f.block->shared_begin()));
}

}  // namespace

void add_conversions(Actions& to) {
  add_casts<uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t>(to, "");
  add_casts<int16_t, uint16_t, uint32_t, int32_t, uint64_t, int64_t>(to, "");
  add_casts<uint32_t, uint16_t, int16_t, int32_t, uint64_t, int64_t>(to, "");
  add_casts<int32_t, uint16_t, int16_t, uint32_t, uint64_t, int64_t>(to, "");
  add_casts<uint64_t, uint16_t, int16_t, uint32_t, int32_t, int64_t>(to, "");
  add_casts<int64_t, uint16_t, int16_t, uint32_t, int32_t, uint64_t>(to, "");
  add_casts<float, uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t, double>(to, "rn.");
  add_casts<double, uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t>(to, "rn.");
  add_cast<double, float>(to, "");
  add_truncations<float, uint32_t, int32_t, uint64_t, int64_t>(to);
  add_truncations<double, uint32_t, int32_t, uint64_t, int64_t>(to);
  to["cvt.rpi.f64.f64"] = unary<double, double, [](double v) { return ceil(v); }>;
  to["cvt.rmi.f64.f64"] = unary<double, double, [](double v) { return floor(v); }>;
  to["cvt.sat.f32.f32"] = unary<float, float, saturated>;
  to["cvt.f32.bf16"] = unary<float, __nv_bfloat16, __bfloat162float>;
  to["cvt.f32.f16"] = unary<float, __half, __half2float>;
  to["cvt.rn.bf16.f32"] = unary<__nv_bfloat16, float, __float2bfloat16>;
  to["cvt.rn.f16.f32"] = unary<__half, float, __float2half>;
  to["cvt.rn.bf16x2.f32"] = pack_two<__nv_bfloat16, __float2bfloat16>;
  to["cvt.rn.f16x2.f32"] = pack_two<__half, __float2half>;
  for (const char* space : {"global", "local", "param"}) {
    to[std::string("cvta.") + space + ".u64"] = same_address;
    to[std::string("cvta.to.") + space + ".u64"] = same_address;
  }
  to["cvta.shared.u64"] = generic_of_shared;
  to["cvta.to.shared.u64"] = shared_of_generic;
}

}  // namespace simt::ptx
