// Integers, floating-point numbers, predicates and branches.
#include <fenv.h>
#include <math.h>

#include <bit>
#include <limits>

#include "frame.hpp"

namespace simt::ptx {

namespace {

// ---- shapes of instructions: how many operands of which types --------------------------------------------------

template <class To, class From, auto compute>
void binary(Frame& f, const Instruction& i) {
  set<To>(f, i[0], compute(get<From>(f, i[1]), get<From>(f, i[2])));
}
template <class T, auto compute>
void ternary(Frame& f, const Instruction& i) {
  set<T>(f, i[0], compute(get<T>(f, i[1]), get<T>(f, i[2]), get<T>(f, i[3])));
}
// The second operand is a number of bits.
template <class T, auto compute>
void shift(Frame& f, const Instruction& i) {
  set<T>(f, i[0], compute(get<T>(f, i[1]), get<uint32_t>(f, i[2])));
}
template <class T, auto compare>
void set_predicate(Frame& f, const Instruction& i) {
  set<uint8_t>(f, i[0], compare(get<T>(f, i[1]), get<T>(f, i[2])));
}
template <class T>
void select(Frame& f, const Instruction& i) {
  set<T>(f, i[0], get<T>(f, get<uint8_t>(f, i[3]) & 1 ? i[1] : i[2]));
}

template <auto compute, class... T>
void add_unary(Actions& to, const std::string& name) {
  ((to[name + "." + type_name<T>] = unary<T, T, compute>), ...);
}
template <auto compute, class... T>
void add_binary(Actions& to, const std::string& name) {
  ((to[name + "." + type_name<T>] = binary<T, T, compute>), ...);
}
template <auto compare, class... T>
void add_comparison(Actions& to, const std::string& name) {
  ((to["setp." + name + "." + type_name<T>] = set_predicate<T, compare>), ...);
}

// ---- what is not one operator of C++ ---------------------------------------------------------------------------

// What a division by zero gives is not said; no kernel may depend on it.
template <class T>
T quotient(T a, T b) {
  if (b == 0) return T(-1);
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return T(0 - std::make_unsigned_t<T>(a));
  return T(a / b);
}
template <class T>
T remainder_of(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return 0;
  return T(a % b);
}

// Numbers win over NaN, and +0 over -0.
template <class T>
T greater(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b == b ? b : std::numeric_limits<T>::quiet_NaN();
    if (b != b) return a;
    if (a == b) return signbit(a) ? b : a;
  }
  return a < b ? b : a;
}
template <class T>
T lesser(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b == b ? b : std::numeric_limits<T>::quiet_NaN();
    if (b != b) return a;
    if (a == b) return signbit(a) ? a : b;
  }
  return b < a ? b : a;
}

float flushed(float v) {
  return fpclassify(v) == FP_SUBNORMAL ? copysignf(0, v) : v;
}

// As nvcc's exponentials want it.
float fma_down(float a, float b, float c) {
  const int rounding = fegetround();
  fesetround(FE_DOWNWARD);
  volatile float va = a, vb = b, vc = c;
  volatile float result = fmaf(va, vb, vc);
  fesetround(rounding);
  return result;
}

void multiply_wide_u16(Frame& f, const Instruction& i) {
  set<uint32_t>(f, i[0], uint32_t(get<uint16_t>(f, i[1])) * get<uint16_t>(f, i[2]));
}
void multiply_wide_u32(Frame& f, const Instruction& i) {
  set<uint64_t>(f, i[0], uint64_t(get<uint32_t>(f, i[1])) * get<uint32_t>(f, i[2]));
}
void multiply_wide_s32(Frame& f, const Instruction& i) {
  set<int64_t>(f, i[0], int64_t(get<int32_t>(f, i[1])) * get<int32_t>(f, i[2]));
}

// Each of four bytes is one of the eight of two registers, or its sign.
void permute(Frame& f, const Instruction& i) {
  const uint64_t bytes = uint64_t(get<uint32_t>(f, i[2])) << 32 | get<uint32_t>(f, i[1]);
  const uint32_t selector = get<uint32_t>(f, i[3]);
  uint32_t result = 0;
  for (unsigned k = 0; k < 4; k++) {
    const uint32_t choice = selector >> 4 * k & 15;
    uint32_t byte = uint32_t(bytes >> 8 * (choice & 7)) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * k;
  }
  set(f, i[0], result);
}

// bfi d, a, b, position, length: the low bits of a in b.
template <class T>
void insert_bits(Frame& f, const Instruction& i) {
  constexpr uint32_t width = sizeof(T) * 8;
  const uint32_t position = get<uint32_t>(f, i[3]) & 255, length = get<uint32_t>(f, i[4]) & 255;
  const T b = get<T>(f, i[2]);
  if (position >= width || length == 0) return set<T>(f, i[0], b);
  const T ones = length >= width ? T(~T(0)) : T((T(1) << length) - 1);
  set<T>(f, i[0], T((b & ~(ones << position)) | (get<T>(f, i[1]) & ones) << position));
}

// How far the highest one has to go to the left to be the first bit.
void find_shift(Frame& f, const Instruction& i) {
  const uint32_t a = get<uint32_t>(f, i[1]);
  set<uint32_t>(f, i[0], a ? uint32_t(std::countl_zero(a)) : ~0u);
}

uint32_t reverse_bits(uint32_t v) {
  uint32_t result = 0;
  for (int k = 0; k < 32; k++) result |= (v >> k & 1) << (31 - k);
  return result;
}

// mov, or several registers in one, or one in several: the first lowest.
template <class T, class Part>
void move(Frame& f, const Instruction& i) {
  if (i.num_operands == 2) {
    // The address of a name, a register, a constant.
    set<T>(f, i[0], T(get<T>(f, i[1]) + T(i[1].offset)));
    return;
  }
  if constexpr (!std::is_void_v<Part>) {
    if (i.group == 2) {
      const T whole = get<T>(f, i[2]);
      set<Part>(f, i[0], Part(whole));
      set<Part>(f, i[1], Part(whole >> sizeof(Part) * 8));
    } else {
      set<T>(f, i[0], T(T(get<Part>(f, i[2])) << sizeof(Part) * 8 | get<Part>(f, i[1])));
    }
  }
}

void move_float(Frame& f, const Instruction& i) {
  set(f, i[0], get<uint32_t>(f, i[1]));
}
void move_predicate(Frame& f, const Instruction& i) {
  set<uint8_t>(f, i[0], get<uint8_t>(f, i[1]) & 1);
}

void branch(Frame& f, const Instruction& i) {
  f.next = i.target;
}
void end(Frame& f, const Instruction&) {
  f.has_ended = true;
}

constexpr auto add = [](auto a, auto b) { return decltype(a)(a + b); };
constexpr auto subtract = [](auto a, auto b) { return decltype(a)(a - b); };
constexpr auto multiply = [](auto a, auto b) { return decltype(a)(a * b); };
constexpr auto divide_real = [](auto a, auto b) { return a / b; };
constexpr auto both = [](auto a, auto b) { return decltype(a)(a & b); };
constexpr auto either = [](auto a, auto b) { return decltype(a)(a | b); };
constexpr auto differ = [](auto a, auto b) { return decltype(a)(a ^ b); };
constexpr auto invert = [](auto a) { return decltype(a)(~a); };
constexpr auto shift_left = [](auto a, uint32_t n) {
  return n >= sizeof a * 8 ? decltype(a)(0) : decltype(a)(a << n);
};
constexpr auto shift_right = [](auto a, uint32_t n) {
  if (n < sizeof a * 8) return decltype(a)(a >> n);
  return decltype(a)(std::is_signed_v<decltype(a)> && a < 0 ? -1 : 0);
};

template <class T>
void add_bits(Actions& to, const std::string& type) {
  to["and." + type] = binary<T, T, both>;
  to["or." + type] = binary<T, T, either>;
  to["xor." + type] = binary<T, T, differ>;
  to["not." + type] = unary<T, T, invert>;
  to["shl." + type] = shift<T, shift_left>;
  to["selp." + type] = select<T>;
  to["setp.eq." + type] = set_predicate<T, [](T a, T b) { return a == b; }>;
  to["setp.ne." + type] = set_predicate<T, [](T a, T b) { return a != b; }>;
}

template <class... T>
void add_integers(Actions& to) {
  add_binary<add, T...>(to, "add");
  add_binary<subtract, T...>(to, "sub");
  add_binary<multiply, T...>(to, "mul.lo");
  add_binary<[](auto a, auto b) { return quotient(a, b); }, T...>(to, "div");
  add_binary<[](auto a, auto b) { return remainder_of(a, b); }, T...>(to, "rem");
  add_unary<[](auto a) { return decltype(a)(0 - a); }, T...>(to, "neg");
  ((to[std::string("shr.") + type_name<T>] = shift<T, shift_right>), ...);
  ((to[std::string("mad.lo.") + type_name<T>] = ternary<T, [](T a, T b, T c) { return T(a * b + c); }>), ...);
}

// Comparisons of whole numbers, and those of numbers that are ordered.
template <class... T>
void add_comparisons(Actions& to) {
  add_comparison<[](auto a, auto b) { return a == b; }, T...>(to, "eq");
  add_comparison<[](auto a, auto b) { return a < b; }, T...>(to, "lt");
  add_comparison<[](auto a, auto b) { return a <= b; }, T...>(to, "le");
  add_comparison<[](auto a, auto b) { return b < a; }, T...>(to, "gt");
  add_comparison<[](auto a, auto b) { return b <= a; }, T...>(to, "ge");
}

template <class... T>
void add_reals(Actions& to) {
  // Not ordered: true where one is NaN.
  add_comparison<[](auto a, auto b) { return a < b || b < a; }, T...>(to, "ne");
  add_comparison<[](auto a, auto b) { return !(a < b || b < a); }, T...>(to, "equ");
  add_comparison<[](auto a, auto b) { return a != b; }, T...>(to, "neu");
  add_comparison<[](auto a, auto b) { return !(b <= a); }, T...>(to, "ltu");
  add_comparison<[](auto a, auto b) { return !(b < a); }, T...>(to, "leu");
  add_comparison<[](auto a, auto b) { return !(a <= b); }, T...>(to, "gtu");
  add_comparison<[](auto a, auto b) { return !(a < b); }, T...>(to, "geu");
  add_comparison<[](auto a, auto b) { return a != a || b != b; }, T...>(to, "nan");
  for (const char* rounding : {"", ".rn"}) {
    add_binary<add, T...>(to, std::string("add") + rounding);
    add_binary<subtract, T...>(to, std::string("sub") + rounding);
    add_binary<multiply, T...>(to, std::string("mul") + rounding);
  }
  add_binary<divide_real, T...>(to, "div.rn");
  add_unary<[](auto a) { return -a; }, T...>(to, "neg");
  add_unary<[](auto a) { return decltype(a)(fabs(a)); }, T...>(to, "abs");
  add_unary<[](auto a) { return 1 / a; }, T...>(to, "rcp.rn");
  add_unary<[](auto a) { return decltype(a)(sqrt(a)); }, T...>(to, "sqrt.rn");
}

}  // namespace

void add_arithmetic(Actions& to) {
  add_integers<uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t>(to);
  add_comparisons<uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t, float, double>(to);
  add_comparison<[](auto a, auto b) { return a != b; }, uint16_t, int16_t, uint32_t, int32_t, uint64_t,
                 int64_t>(to, "ne");
  add_reals<float, double>(to);
  add_binary<[](auto a, auto b) { return greater(a, b); }, uint16_t, int16_t, uint32_t, int32_t, uint64_t,
             int64_t, float, double>(to, "max");
  add_binary<[](auto a, auto b) { return lesser(a, b); }, uint16_t, int16_t, uint32_t, int32_t, uint64_t,
             int64_t, float, double>(to, "min");
  add_bits<uint16_t>(to, "b16");
  add_bits<uint32_t>(to, "b32");
  add_bits<uint64_t>(to, "b64");
  to["mul.hi.u32"] =
      binary<uint32_t, uint32_t, [](uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }>;
  to["mul.hi.s32"] =
      binary<int32_t, int32_t, [](int32_t a, int32_t b) { return int32_t(int64_t(a) * b >> 32); }>;
  to["mul.wide.u16"] = multiply_wide_u16;
  to["mul.wide.u32"] = multiply_wide_u32;
  to["mul.wide.s32"] = multiply_wide_s32;
  to["prmt.b32"] = permute;
  to["bfi.b32"] = insert_bits<uint32_t>;
  to["bfi.b64"] = insert_bits<uint64_t>;
  to["bfind.shiftamt.u32"] = find_shift;
  to["brev.b32"] = unary<uint32_t, uint32_t, reverse_bits>;
  to["popc.b32"] = unary<uint32_t, uint32_t, [](uint32_t a) { return uint32_t(std::popcount(a)); }>;
  to["popc.b64"] = unary<uint32_t, uint64_t, [](uint64_t a) { return uint32_t(std::popcount(a)); }>;
  to["clz.b32"] = unary<uint32_t, uint32_t, [](uint32_t a) { return uint32_t(std::countl_zero(a)); }>;

  to["fma.rn.f32"] = ternary<float, [](float a, float b, float c) { return fmaf(a, b, c); }>;
  to["fma.rn.f64"] = ternary<double, [](double a, double b, double c) { return fma(a, b, c); }>;
  to["fma.rm.f32"] = ternary<float, fma_down>;
  to["copysign.f32"] = binary<float, float, [](float sign, float value) { return copysignf(value, sign); }>;
  to["ex2.approx.ftz.f32"] = unary<float, float, [](float a) { return flushed(exp2f(flushed(a))); }>;
  to["rcp.approx.ftz.f32"] = unary<float, float, [](float a) { return flushed(1 / flushed(a)); }>;
  to["rsqrt.approx.f32"] = unary<float, float, [](float a) { return 1 / sqrtf(a); }>;

  to["and.pred"] = binary<uint8_t, uint8_t, [](uint8_t a, uint8_t b) { return uint8_t(a & b & 1); }>;
  to["or.pred"] = binary<uint8_t, uint8_t, [](uint8_t a, uint8_t b) { return uint8_t((a | b) & 1); }>;
  to["xor.pred"] = binary<uint8_t, uint8_t, [](uint8_t a, uint8_t b) { return uint8_t((a ^ b) & 1); }>;
  to["not.pred"] = unary<uint8_t, uint8_t, [](uint8_t a) { return uint8_t(~a & 1); }>;
  for (const char* type : {"u16", "s16"}) to[std::string("selp.") + type] = select<uint16_t>;
  for (const char* type : {"u32", "s32", "f32"}) to[std::string("selp.") + type] = select<uint32_t>;
  for (const char* type : {"u64", "s64", "f64"}) to[std::string("selp.") + type] = select<uint64_t>;

  for (const char* type : {"u16", "b16"}) to[std::string("mov.") + type] = move<uint16_t, void>;
  for (const char* type : {"u32", "b32"}) to[std::string("mov.") + type] = move<uint32_t, uint16_t>;
  for (const char* type : {"u64", "b64"}) to[std::string("mov.") + type] = move<uint64_t, uint32_t>;
  to["mov.f32"] = move_float;
  to["mov.pred"] = move_predicate;
  to["bra"] = to["bra.uni"] = branch;
  to["ret"] = end;
}

}  // namespace simt::ptx
