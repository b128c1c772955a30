// A strict JSON reader for small configuration files.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace simt {

struct Json {
  enum class Kind { null, boolean, number, string, array, object };
  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;
  std::string string;
  std::vector<Json> array;
  std::map<std::string, Json> object;

  const Json* find(const std::string& key) const {
    auto found = object.find(key);
    return found == object.end() ? nullptr : &found->second;
  }
};

// False: `problem` says what is wrong and on which line. No comments, no trailing commas, no duplicate keys.
bool parse_json(const std::string& text, Json* value, std::string* problem);

}  // namespace simt
