#include "counts.hpp"

#include <stdio.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "../options.hpp"

namespace simt::ptx {

namespace {

constexpr uint32_t sector_bytes = 32, bank_bytes = 4, num_banks = 32, wavefront_bytes = 128;

// Of one instruction in one space: sectors or wavefronts, and how few would have done.
struct Tally {
  uint64_t requests = 0, moved = 0, least = 0;
};

// By instruction, twice its number, and one more for shared memory (cp.async has both).
using Tallies = std::map<uint32_t, Tally>;

struct Totals {
  std::mutex mutex;
  std::map<const Program*, Tallies> of_program;

  // At the process's end: a line of JSON for each instruction.
  ~Totals() {
    FILE* out = fopen(options().counts_file, "w");
    if (!out) {
      perror(options().counts_file);
      return;
    }
    for (const auto& [program, tallies] : of_program) {
      for (const auto& [number, tally] : tallies) {
        const Instruction& instruction = program->code[number / 2];
        fprintf(out,
                "{\"kernel\": \"%s\", \"file\": \"%s\", \"line\": %u, \"instruction\": \"%s\", \"space\": "
                "\"%s\", ",
                program->kernel.c_str(), program->file.c_str(), instruction.line, instruction.name,
                number % 2 ? "shared" : "global");
        fprintf(out, "\"requests\": %lu, \"moved\": %lu, \"least\": %lu}\n", tally.requests, tally.moved,
                tally.least);
      }
    }
    fclose(out);
  }
};

Totals& totals() {
  static Totals instance;
  return instance;
}

size_t distinct(std::vector<uint64_t>& values) {
  std::sort(values.begin(), values.end());
  return size_t(std::unique(values.begin(), values.end()) - values.begin());
}

// Units of so many bytes that the lanes [first, first + count) touch.
std::vector<uint64_t> touched(const Request& request, unsigned first, unsigned count, uint32_t unit_bytes) {
  std::vector<uint64_t> units;
  for (unsigned lane = first; lane < first + count; lane++) {
    if (!(request.lanes >> lane & 1)) continue;
    const uint64_t begin = request.address[lane], end = begin + request.bytes;
    for (uint64_t unit = begin / unit_bytes; unit * unit_bytes < end; unit++) units.push_back(unit);
  }
  units.resize(distinct(units));
  return units;
}

void tally_global(const Request& request, Tally& tally) {
  tally.moved += touched(request, 0, 32, sector_bytes).size();
  tally.least += (touched(request, 0, 32, 1).size() + sector_bytes - 1) / sector_bytes;
}

// As many lanes at a time as a wavefront's bytes are for; of a bank, a word at a time.
void tally_shared(const Request& request, Tally& tally) {
  const unsigned together = std::min(32u, wavefront_bytes / request.bytes);
  for (unsigned first = 0; first < 32; first += together) {
    const std::vector<uint64_t> words = touched(request, first, together, bank_bytes);
    uint32_t of_bank[num_banks] = {}, most = 0;
    for (uint64_t word : words) most = std::max(most, ++of_bank[word % num_banks]);
    tally.moved += most;
    tally.least += (words.size() + num_banks - 1) / num_banks;
  }
}

}  // namespace

bool is_counting() {
  return options().counts_file != nullptr;
}

void begin_counting(const Program& program) {
  current_fiber()->times.assign(program.code.size() * 2, 0);
}

void note_access(Frame& frame, const Instruction& instruction, Space space, uint64_t address,
                 uint32_t bytes) {
  if (bytes == 0 || (space != Space::shared && space != Space::global)) return;
  Fiber& self = *current_fiber();
  const auto number = uint32_t(&instruction - frame.program->code.data()) * 2 + (space == Space::shared);
  const uint64_t key = uint64_t(self.warp) << 56 | uint64_t(number) << 32 | self.times[number]++;
  Request& request = frame.block->requests[key];
  request.bytes = bytes;
  request.lanes |= 1u << self.lane;
  request.address[self.lane] = address;
}

void count_accesses(Block& block) {
  Tallies tallies;
  for (const auto& [key, request] : block.requests) {
    const uint32_t number = uint32_t(key >> 32) & 0xffffff;
    Tally& tally = tallies[number];
    tally.requests++;
    (number % 2 ? tally_shared : tally_global)(request, tally);
  }
  block.requests.clear();
  std::lock_guard lock(totals().mutex);
  for (const auto& [number, tally] : tallies) {
    Tally& sum = totals().of_program[block.kernel->program][number];
    sum.requests += tally.requests, sum.moved += tally.moved, sum.least += tally.least;
  }
}

}  // namespace simt::ptx
