// Which file of the folder has a kernel, and what became of it.
#include <dirent.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <map>
#include <sstream>

#include "../options.hpp"
#include "program.hpp"
#include "run.hpp"

namespace simt::ptx {

namespace {

// From ".visible .entry NAME(" to the end of the file: the parser stops where the body does.
struct Entry {
  const std::string* file;
  const std::string* text;
  size_t begin;
};

struct Library {
  std::map<std::string, std::string> files;
  std::map<std::string, Entry, std::less<>> entries;
  std::deque<Program> programs;

  explicit Library(const std::string& folder) {
    DIR* listing = opendir(folder.c_str());
    while (dirent* one = listing ? readdir(listing) : nullptr) {
      const std::string name = one->d_name;
      if (!name.ends_with(".ptx")) continue;
      std::ifstream in(folder + "/" + name);
      std::ostringstream text;
      text << in.rdbuf();
      auto [file, is_new] = files.emplace(name, text.str());
      note_entries(file->first, file->second);
    }
    if (listing) closedir(listing);
  }

  void note_entries(const std::string& file, const std::string& text) {
    static const std::string mark = ".entry ";
    for (size_t at = text.find(mark); at != text.npos; at = text.find(mark, at + 1)) {
      const size_t name = at + mark.size();
      entries.emplace(text.substr(name, text.find('(', name) - name), Entry{&file, &text, at});
    }
  }
};

}  // namespace

Result load(Kernel& kernel) {
  if (options().counts_file && !options().ptx_folder)
    return error(CUDA_ERROR_INVALID_VALUE,
                 "SIMT_PTX_COUNTS counts kernels that run as PTX: set SIMT_PTX, too");
  if (!options().ptx_folder || kernel.program) return CUDA_SUCCESS;
  static Library library(options().ptx_folder);
  auto entry = library.entries.find(kernel.name);
  if (entry == library.entries.end() && !is_hopper())
    return error(CUDA_ERROR_NOT_FOUND, std::string("no GPU before Hopper has kernel ") + kernel.name);
  if (entry == library.entries.end())
    return error(CUDA_ERROR_INVALID_PTX,
                 std::string("no file of ") + options().ptx_folder + " (SIMT_PTX) has kernel " + kernel.name);
  const auto& [file, text, begin] = entry->second;
  const std::string_view all(*text);
  const auto line = uint32_t(1 + std::count(all.begin(), all.begin() + long(begin), '\n'));
  const std::string_view before = all.substr(0, all.find(".entry"));
  try {
    library.programs.push_back(parse(kernel.name, {all.substr(begin), *file, line}, before));
  } catch (const std::string& what) {
    return error(CUDA_ERROR_INVALID_PTX, what);
  }
  kernel.program = &library.programs.back();
  return CUDA_SUCCESS;
}

}  // namespace simt::ptx
