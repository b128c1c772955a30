// A thread that runs a program: its slots, where it stands, and reading and writing of slots by type.
#pragma once
#include <array>
#include <memory>

#include "../block.hpp"
#include "program.hpp"

namespace simt::ptx {

// Sums of wgmma between their issue and the wait: the runtime wants them side by side.
struct Sums {
  const Operand* registers;
  uint32_t count;
  std::array<float, 128> values;
};

// A fragment of A that a product under way may still read.
struct FragmentOfA {
  const Operand* registers;  // null: A is a tile
  std::array<uint32_t, 4> values;
};

struct Frame {
  uint64_t* slots;
  const Program* program;
  Block* block;
  uint32_t next = 0;  // instruction
  bool has_ended = false;
  bool sees_cluster = false;  // the arrival at the cluster's barrier released and acquires
  std::vector<std::unique_ptr<Sums>> sums{};
  std::vector<std::unique_ptr<FragmentOfA>>
      fragments{};             // of its products that are not known to be done, oldest first
  uint64_t arguments[4] = {};  // of a call: st.param fills them

  [[noreturn]] void fail(const Instruction& instruction, const std::string& what) const;
};

template <class T>
inline T get(const Frame& frame, const Operand& operand) {
  T value;
  memcpy(&value, &frame.slots[operand.slot], sizeof value);
  return value;
}

template <class T>
inline void set(Frame& frame, const Operand& operand, T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  frame.slots[operand.slot] = bits;
}

// As wide as the register may be: a load of a signed type extends its sign.
template <class T>
inline void set_extended(Frame& frame, const Operand& operand, T value) {
  if constexpr (std::is_signed_v<T> && std::is_integral_v<T>)
    set<int64_t>(frame, operand, value);
  else
    set(frame, operand, value);
}

// d, a
template <class To, class From, auto compute>
void unary(Frame& f, const Instruction& i) {
  set<To>(f, i[0], compute(get<From>(f, i[1])));
}

// While an instruction ".aligned" runs: all lanes of the warp have to be in this very one.
class Aligned {
 public:
  explicit Aligned(const Instruction& instruction) { current_fiber()->place = instruction.line; }
  ~Aligned() { current_fiber()->place = 0; }
  Aligned(const Aligned&) = delete;
};

// ---- addresses ----------------------------------------------------------------------------------------------

// Shared memory of the block is an offset in its arena; that of others in the cluster has the rank, plus one, above.
constexpr uint32_t rank_shift = 24;

// The host's address of `bytes` at an address of a space, if it is a multiple of `alignment`.
unsigned char* locate(Frame& frame, const Instruction& instruction, Space space, const Operand& address,
                      uint32_t bytes, uint32_t alignment);

// The names of types, as instructions end with them.
template <class T>
constexpr const char* type_name = nullptr;
template <>
constexpr const char* type_name<uint16_t> = "u16";
template <>
constexpr const char* type_name<int16_t> = "s16";
template <>
constexpr const char* type_name<uint32_t> = "u32";
template <>
constexpr const char* type_name<int32_t> = "s32";
template <>
constexpr const char* type_name<uint64_t> = "u64";
template <>
constexpr const char* type_name<int64_t> = "s64";
template <>
constexpr const char* type_name<float> = "f32";
template <>
constexpr const char* type_name<double> = "f64";

}  // namespace simt::ptx
