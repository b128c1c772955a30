#include "options.hpp"

#include <stdlib.h>
#include <string.h>

#include "export.hpp"

namespace simt {

static uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* text = getenv(variable);
  return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

Options& options() {
  static Options instance{
      .seed = number_from("SIMT_SEED", 0),
      .lazy = number_from("SIMT_LAZY", 0),
      .threads = number_from("SIMT_THREADS", 0),
      .native = number_from("SIMT_NATIVE", 1),
      .dump_max = number_from("SIMT_DUMP_MAX", 16 << 20),
      .sm = number_from("SIMT_SM", 90),
      .clock_file = getenv("SIMT_CLOCK"),
      .dump_folder = getenv("SIMT_DUMP"),
      .ptx_folder = getenv("SIMT_PTX"),
      .counts_file = getenv("SIMT_PTX_COUNTS"),
  };
  return instance;
}

}  // namespace simt

// Tests toggle a switch inside one process. Unknown names are ignored, so that an older library accepts newer
// tests.
SIMT_EXPORT void simt_set_option(const char* name, uint64_t value) {
  simt::Options& o = simt::options();
  struct {
    const char* name;
    std::atomic<uint64_t>& option;
  } const table[] = {{"seed", o.seed},
                     {"lazy", o.lazy},
                     {"threads", o.threads},
                     {"native", o.native},
                     {"dump_max", o.dump_max}};
  for (auto& row : table)
    if (!strcmp(row.name, name)) row.option = value;
}
