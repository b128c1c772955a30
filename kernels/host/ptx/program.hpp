// A kernel as nvcc's PTX has it, ready to be run by the threads of the host driver: instructions, each with the
// function that does it, over numbered slots of 8 bytes.
#pragma once
#include <stdint.h>
#include <string.h>

#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "../thread.hpp"

namespace simt::ptx {

struct Frame;
struct Instruction;
using Action = void (*)(Frame&, const Instruction&);

// A register, constant or name, and what is added to it where it is an address.
struct Operand {
  uint32_t slot;
  int32_t offset;
};

struct Instruction {
  Action action;
  const Operand* operands;  // in the order of the text, without braces and brackets
  uint16_t num_operands;
  uint16_t group;  // operands of the first, which may be several in braces
  int32_t guard;   // slot of the predicate before it, or -1
  bool guard_value;
  uint32_t target;  // of a branch
  uint32_t line;    // in the file
  const char* name;

  const Operand& operator[](unsigned i) const { return operands[i]; }
};

// What a thread knows without being told.
enum class Special : uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  cluster_ctarank,
  cluster_nctarank
};

enum class Space : uint8_t { generic, global, parameter, shared, dynamic_shared, local, cluster };

// A name that is an address: of a parameter, of a variable.
struct Variable {
  Space space;
  uint32_t slot;
  uint32_t bytes, alignment;
  uint32_t offset;  // parameter: its number; local: in the thread's own memory
  SharedKey key;
};

struct Program {
  std::string kernel, file;
  std::vector<Instruction> code;
  std::deque<std::vector<Operand>> operands;  // of the instructions, which point to them
  uint32_t num_slots = 0, local_bytes = 0;
  struct Constant {
    uint32_t slot;
    uint64_t value;
  };
  struct Given {
    uint32_t slot;
    Special special;
  };
  std::vector<Constant> constants;
  std::vector<Given> specials;
  std::deque<Variable> variables;  // a SharedKey is known by its address
  std::deque<std::string> names;   // what keys name
  bool multiplies_shared = false;  // wgmma: what threads store is noted for it
};

// Instructions by name; what the files of this folder know.
using Actions = std::unordered_map<std::string, Action>;
void add_arithmetic(Actions& actions);
void add_conversions(Actions& actions);
void add_memory(Actions& actions);
void add_warp(Actions& actions);
void add_hopper(Actions& actions);

// From a kernel's ".entry" on, and where that stands.
struct Source {
  std::string_view text;
  std::string file;
  uint32_t first_line;
};
// `before` is what the file declares before its kernels. Throws std::string: what is wrong with which line.
Program parse(const std::string& kernel, const Source& entry, std::string_view before);

}  // namespace simt::ptx
