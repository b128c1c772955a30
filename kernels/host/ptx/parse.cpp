// From the text of a kernel's PTX to a program.
#include <ctype.h>
#include <stdlib.h>

#include <algorithm>
#include <sstream>

#include "program.hpp"

namespace simt::ptx {

namespace {

const Actions& all_actions() {
  static const Actions actions = [] {
    Actions all;
    add_arithmetic(all);
    add_conversions(all);
    add_memory(all);
    add_warp(all);
    add_hopper(all);
    return all;
  }();
  return actions;
}

const std::unordered_map<std::string_view, Special>& special_registers() {
  static const std::unordered_map<std::string_view, Special> table = {
      {"%tid.x", Special::tid_x},
      {"%tid.y", Special::tid_y},
      {"%tid.z", Special::tid_z},
      {"%ntid.x", Special::ntid_x},
      {"%ntid.y", Special::ntid_y},
      {"%ntid.z", Special::ntid_z},
      {"%ctaid.x", Special::ctaid_x},
      {"%ctaid.y", Special::ctaid_y},
      {"%ctaid.z", Special::ctaid_z},
      {"%nctaid.x", Special::nctaid_x},
      {"%nctaid.y", Special::nctaid_y},
      {"%nctaid.z", Special::nctaid_z},
      {"%laneid", Special::laneid},
      {"%warpid", Special::warpid},
      {"%cluster_ctarank", Special::cluster_ctarank},
      {"%cluster_nctarank", Special::cluster_nctarank}};
  return table;
}

bool is_word(char c) {
  return isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

// Reads statements; what it knows of names is kept in the program.
class Parser {
 public:
  Parser(const std::string& kernel, const Source& source) : text_(source.text), line_(source.first_line) {
    program_.kernel = kernel;
    program_.file = source.file;
  }

  // Declarations of shared variables outside of kernels.
  void read_module(std::string_view before) {
    for (size_t begin = 0; begin < before.size();) {
      const size_t end = std::min(before.find('\n', begin), before.size());
      std::string_view line = before.substr(begin, end - begin);
      begin = end + 1;
      if (line.starts_with(".shared") || line.starts_with(".extern .shared"))
        declare(line.substr(0, line.find(';')));
      else if (line.starts_with(".const") || line.starts_with(".global"))
        fail("variables outside of kernels are not known: " + std::string(line));
    }
  }

  Program read() {
    skip_to('(');
    read_parameters();
    skip_to('{');
    for (int depth = 1; depth > 0;) {
      skip_space();
      if (at_ >= text_.size()) fail("the kernel has no end");
      if (text_[at_] == '{' || text_[at_] == '}') {
        depth += text_[at_++] == '{' ? 1 : -1;
        continue;
      }
      read_statement();
    }
    for (auto& [instruction, label] : branches_) {
      auto found = labels_.find(label);
      if (found == labels_.end()) fail("no label is named " + label);
      program_.code[instruction].target = found->second;
    }
    program_.num_slots = num_slots_;
    return std::move(program_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw program_.file + ":" + std::to_string(line_) + ": " + what;
  }

  void skip_space() {
    for (; at_ < text_.size(); at_++) {
      if (text_.substr(at_, 2) == "//") at_ = std::min(text_.find('\n', at_), text_.size() - 1);
      if (text_[at_] == '\n') line_++;
      if (!isspace(static_cast<unsigned char>(text_[at_]))) return;
    }
  }

  void skip_to(char wanted) {
    for (; at_ < text_.size() && text_[at_] != wanted; at_++)
      if (text_[at_] == '\n') line_++;
    if (at_ >= text_.size()) fail(std::string("the file ends before a ") + wanted);
    at_++;
  }

  // A name, number or type; empty where something else stands.
  std::string_view word() {
    skip_space();
    const size_t begin = at_;
    while (at_ < text_.size() && is_word(text_[at_])) at_++;
    return text_.substr(begin, at_ - begin);
  }

  void read_parameters() {
    const std::string_view list = text_.substr(at_, text_.find(')', at_) - at_);
    uint32_t number = 0;
    for (size_t begin = 0; begin < list.size() && list.find(".param", begin) != list.npos; number++) {
      const size_t end = std::min(list.find(',', begin), list.size());
      std::string_view one = list.substr(begin, end - begin);
      while (!one.empty() && isspace(static_cast<unsigned char>(one.back()))) one.remove_suffix(1);
      one = one.substr(0, one.find('['));
      const size_t name = one.find_last_of(" \t") + 1;
      program_.variables.push_back({Space::parameter, slot_of(one.substr(name)), 0, 1, number, {}});
      begin = end + 1;
    }
  }

  // ".shared .align 16 .b8 name[36]", ".local ...", ".param .b32 name"
  void declare(std::string_view statement) {
    Variable variable{Space::local, 0, 1, 1, 0, {}};
    uint32_t element = 1;
    bool is_outside = false;
    std::istringstream tokens{std::string(statement)};
    for (std::string token; tokens >> token;) {
      if (token == ".shared") {
        variable.space = Space::shared;
      } else if (token == ".param") {
        variable.space = Space::parameter;
      } else if (token == ".extern") {
        is_outside = true;
      } else if (token == ".align") {
        tokens >> variable.alignment;
      } else if (token[0] == '.') {
        if (token.size() > 2 && isdigit(static_cast<unsigned char>(token[2])))
          element = uint32_t(std::stoul(token.substr(2))) / 8;
      } else {
        const size_t bracket = token.find('[');
        const std::string name = token.substr(0, bracket);
        variable.bytes = element;
        if (bracket != token.npos) variable.bytes *= uint32_t(atoi(token.c_str() + bracket + 1));
        variable.slot = slot_of(name);
        program_.names.push_back(name);
        variable.key.name = program_.names.back().c_str();
      }
    }
    if (variable.space == Space::parameter) {  // of a call
      variable.offset = num_call_parameters_++;
      call_parameters_[variable.slot] = variable.offset;
      return;
    }
    if (variable.space == Space::shared && is_outside) variable.space = Space::dynamic_shared;
    // nvcc loads vectors of which the last part is padding.
    variable.bytes = (variable.bytes + variable.alignment - 1) / variable.alignment * variable.alignment;
    if (variable.space == Space::local) {
      program_.local_bytes =
          (program_.local_bytes + variable.alignment - 1) / variable.alignment * variable.alignment;
      variable.offset = program_.local_bytes;
      program_.local_bytes += variable.bytes;
    }
    program_.variables.push_back(variable);
  }

  uint32_t slot_of(std::string_view name) {
    auto [entry, is_new] = slots_.try_emplace(std::string(name), num_slots_);
    if (!is_new) return entry->second;
    auto special = special_registers().find(name);
    if (special != special_registers().end())
      program_.specials.push_back({num_slots_, special->second});
    else if (name.starts_with("%") && name.find('.') != name.npos)
      fail("register " + std::string(name) + " is not known");
    return num_slots_++;
  }

  // 0f3F800000, 0d..., 0x..., and whole numbers.
  bool is_number(std::string_view token) const {
    return isdigit(static_cast<unsigned char>(token[0])) || token[0] == '-';
  }
  uint64_t number(const std::string& token) const {
    char* end = nullptr;
    uint64_t value;
    if (token.starts_with("0f") || token.starts_with("0d"))
      value = strtoull(token.c_str() + 2, &end, 16);
    else if (token[0] == '-')
      value = uint64_t(strtoll(token.c_str(), &end, 0));
    else
      value = strtoull(token.c_str(), &end, 0);
    if (*end) fail("not a number: " + token);
    return value;
  }

  uint32_t constant(const std::string& token) {
    auto [entry, is_new] = slots_.try_emplace("constant " + token, num_slots_);
    if (is_new) program_.constants.push_back({num_slots_++, number(token)});
    return entry->second;
  }

  Operand operand() {
    skip_space();
    std::string token;
    if (text_[at_] == '-') token = text_[at_++];
    token += word();
    if (token.empty()) fail(std::string("an operand is expected before ") + text_[at_]);
    if (is_number(token)) return {constant(token), 0};
    Operand result{slot_of(token), 0};
    skip_space();
    if (text_[at_] != '+') return result;
    at_++;
    skip_space();
    std::string offset;
    if (text_[at_] == '-') offset = text_[at_++];
    offset += word();
    result.offset = int32_t(int64_t(number(offset)));
    return result;
  }

  void read_statement() {
    const size_t begin = at_;
    const uint32_t line = line_;
    if (text_.substr(at_, 5) == ".loc\t") {  // of a source, up to the line's end
      at_ = std::min(text_.find('\n', at_), text_.size());
      return;
    }
    if (text_[at_] == '.') {
      const std::string_view statement = text_.substr(at_, text_.find(';', at_) - at_);
      if (statement.starts_with(".shared") || statement.starts_with(".local") ||
          statement.starts_with(".param"))
        declare(statement);
      else if (!statement.starts_with(".reg") && !statement.starts_with(".pragma"))
        fail("directive that is not known: " + std::string(statement));
      skip_to(';');
      return;
    }
    Instruction instruction{nullptr, nullptr, 0, 0, -1, true, 0, line, nullptr};
    if (text_[at_] == '@') {
      at_++;
      if (text_[at_] == '!') instruction.guard_value = false, at_++;
      instruction.guard = int32_t(slot_of(word()));
    }
    std::string opcode(word());
    if (begin + opcode.size() == at_ && text_[at_] == ':' && text_.substr(at_, 2) != "::") {
      at_++;
      labels_[opcode] = uint32_t(program_.code.size());
      return;
    }
    while (text_.substr(at_, 2) == "::") {
      at_ += 2;
      opcode += "::" + std::string(word());
    }
    auto action = all_actions().find(opcode);
    if (action == all_actions().end()) fail("instruction that is not known: " + opcode);
    instruction.action = action->second;
    instruction.name = action->first.c_str();
    if (opcode.starts_with("wgmma")) program_.multiplies_shared = true;
    if (opcode.starts_with("bra")) {
      branches_.emplace_back(program_.code.size(), std::string(word()));
      skip_to(';');
    } else {
      read_operands(instruction, opcode);
    }
    program_.code.push_back(instruction);
  }

  void read_operands(Instruction& instruction, const std::string& opcode) {
    std::vector<Operand>& list = program_.operands.emplace_back();
    bool in_braces = false;
    for (;;) {
      skip_space();
      if (at_ >= text_.size()) fail("a statement without an end");
      const char c = text_[at_];
      if (c == ';') break;
      if (c == ',' && !in_braces && instruction.group == 0) instruction.group = uint16_t(list.size());
      if (c == '{') in_braces = true;
      if (c == '}') in_braces = false;
      if (strchr(",|[]{}()", c)) {
        at_++;
        continue;
      }
      list.push_back(operand());
    }
    at_++;
    if (instruction.group == 0) instruction.group = uint16_t(list.size());
    // The name of what is called, and parameters of calls, are no slots.
    if (opcode == "st.param.b32" || opcode == "st.param.b64") {
      auto found = list.empty() ? call_parameters_.end() : call_parameters_.find(list[0].slot);
      if (found == call_parameters_.end()) fail("st.param to what is no parameter of a call");
      list[0].offset = int32_t(found->second);
    }
    if (opcode == "call.uni") {
      if (list.empty() || slot_of("cudaGraphSetConditional") != list[0].slot)
        fail("a call of a function that is not known");
      num_call_parameters_ = 0;
    }
    instruction.operands = list.data();
    instruction.num_operands = uint16_t(list.size());
  }

  std::string_view text_;
  size_t at_ = 0;
  uint32_t line_, num_slots_ = 0, num_call_parameters_ = 0;
  Program program_;
  std::unordered_map<std::string, uint32_t> slots_, labels_;
  std::unordered_map<uint32_t, uint32_t> call_parameters_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

Program parse(const std::string& kernel, const Source& entry, std::string_view before) {
  Parser parser(kernel, entry);
  parser.read_module(before);
  return parser.read();
}

}  // namespace simt::ptx
