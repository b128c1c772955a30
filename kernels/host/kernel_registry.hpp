// EXPORT_KERNEL: makes a kernel known to the driver by name, with its parameter list taken from the C++
// signature.
#pragma once
#include <array>
#include <span>
#include <utility>

#include "language.hpp"

namespace simt {

namespace ptx {
struct Program;
}

// A device pointer inside a parameter: which parameter, and where in it.
struct PointerField {
  uint16_t parameter, offset;
};

struct Parameter {
  uint32_t offset, size;
  bool is_integer;
};

// Where the bytes of arguments are kept: a struct among them may ask for as much alignment as a tensor map does.
struct alignas(128) ArgumentLine {
  unsigned char bytes[128];
};

struct Kernel {
  const char* name;
  void (*invoke)(void** parameters);
  std::span<const Parameter> parameters;
  std::span<const PointerField> pointers;
  const char* source;  // the .cu file, for error texts
  bool is_for_hopper;  // exists on sm_90a alone
  const struct NativeTwin* twin = nullptr;
  const ptx::Program* program = nullptr;  // what runs instead, under SIMT_PTX
  // What cuFuncSetAttribute has set.
  uint32_t max_dynamic_shared = 48 << 10;
  bool asks_for_shared = false;  // max_dynamic_shared is not the default
  bool allows_large_clusters = false;
  const Kernel* next = nullptr;
  Kernel(const char* name, void (*invoke)(void**), std::span<const Parameter>, std::span<const PointerField>,
         const char* source, bool is_for_hopper);
};

Kernel* find_kernel(const char* name);

// Device pointers inside parameter structs are declared, so that they are checked like pointer parameters:
//   POINTER_FIELDS(AttentionParams, &AttentionParams::q, &AttentionParams::k)
// A member may be a pointer or an array of pointers. A struct without pointers declares
// POINTER_FIELDS(Struct).
template <class T>
struct PointerFields {
  static constexpr bool declared = !std::is_class_v<T>;
  static constexpr size_t count = std::is_pointer_v<T> ? 1 : 0;
  static void append(PointerField*& out, uint16_t parameter) {
    if (count) *out++ = {parameter, 0};
  }
};

template <class Struct, class... Members>
struct DeclaredPointerFields {
  static constexpr bool declared = true;
  static constexpr size_t count = (0 + ... + (sizeof(Members) / sizeof(void*)));
  template <class M>
  static void append_member(PointerField*& out, uint16_t parameter, M Struct::* member) {
    static_assert(std::is_pointer_v<std::remove_all_extents_t<M>>, "POINTER_FIELDS lists pointers");
    alignas(Struct) unsigned char storage[sizeof(Struct)];
    auto* object = reinterpret_cast<Struct*>(storage);
    auto offset = reinterpret_cast<unsigned char*>(&(object->*member)) - storage;
    for (size_t i = 0; i < sizeof(M) / sizeof(void*); i++)
      *out++ = {parameter, uint16_t(offset + i * sizeof(void*))};
  }
};

template <class Struct, class... Members>
DeclaredPointerFields<Struct, Members...> declared_pointer_fields(Members Struct::*...);

#define POINTER_FIELDS(Struct, ...)                                                                   \
  template <>                                                                                         \
  struct simt::PointerFields<Struct> : decltype(simt::declared_pointer_fields<Struct>(__VA_ARGS__)) { \
    static void append(simt::PointerField*& out, uint16_t parameter) {                                \
      [&](auto... members) { (append_member(out, parameter, members), ...); }(__VA_ARGS__);           \
    }                                                                                                 \
  };

// The tables and the typed call of one kernel signature.
template <class... Args>
struct Signature {
  static constexpr size_t num_pointers = (0 + ... + PointerFields<Args>::count);

  static constexpr std::array<Parameter, sizeof...(Args)> parameters = [] {
    std::array<Parameter, sizeof...(Args)> table{};
    uint32_t offset = 0;
    size_t i = 0;
    ((offset = (offset + alignof(Args) - 1) / alignof(Args) * alignof(Args),
      table[i++] = {offset, uint32_t(sizeof(Args)), std::is_integral_v<Args>}, offset += sizeof(Args)),
     ...);
    return table;
  }();

  static std::span<const PointerField> pointers() {
    static const auto table = [] {
      std::array<PointerField, num_pointers ? num_pointers : 1> fields{};
      PointerField* out = fields.data();
      uint16_t parameter = 0;
      (PointerFields<Args>::append(out, parameter++), ...);
      return fields;
    }();
    return {table.data(), num_pointers};
  }

  // `parameters` as cuLaunchKernel has them: one address per argument.
  template <size_t... I, class Function, class... Leading>
  static void call(Function function, void** parameters, std::index_sequence<I...>,
                   const Leading&... leading) {
    function(leading..., *static_cast<Args*>(parameters[I])...);
  }

  static_assert((PointerFields<Args>::declared && ...),
                "a struct parameter needs POINTER_FIELDS(Struct, ...)");
  static_assert((std::is_trivially_copyable_v<Args> && ...), "kernel parameters are plain data");
  static_assert(((alignof(Args) <= alignof(ArgumentLine)) && ...), "arguments are kept in lines");
};

template <class... Args>
Signature<Args...> signature_of(void (*)(Args...));

}  // namespace simt

#define EXPORT_KERNEL(kernel) SIMT_REGISTER(kernel, false)
#define EXPORT_HOPPER_KERNEL(kernel) SIMT_REGISTER(kernel, true)
#define SIMT_REGISTER(kernel, is_for_hopper)                                                            \
  static simt::Kernel simt_kernel_##kernel{#kernel,                                                     \
                                           [](void** parameters) {                                      \
                                             using S = decltype(simt::signature_of(&kernel));           \
                                             S::call(&kernel, parameters,                               \
                                                     std::make_index_sequence<S::parameters.size()>{}); \
                                           },                                                           \
                                           decltype(simt::signature_of(&kernel))::parameters,           \
                                           decltype(simt::signature_of(&kernel))::pointers(),           \
                                           __FILE__,                                                    \
                                           is_for_hopper};
