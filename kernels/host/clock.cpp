#include "clock.hpp"

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <unordered_map>
#include <vector>

#include "driver.hpp"
#include "json.hpp"

namespace simt {

namespace {

struct Condition {
  size_t argument;
  int64_t value;
};

struct Rule {
  std::vector<Condition> where;
  size_t by = 0;
  bool stepped = false;
  std::vector<std::pair<double, double>> points;  // by value, microseconds; one point: constant
};

struct CostTable {
  std::unordered_map<const Kernel*, std::vector<Rule>> rules;
  double default_us = 0, copy_us = 0;
};

CostTable table;
bool enabled = false;

uint64_t to_ns(double us) {
  return uint64_t(us * 1000 + 0.5);
}

int64_t integer_argument(const Kernel& kernel, void** parameters, size_t index) {
  if (kernel.parameters[index].size == 4) {
    int32_t value;
    memcpy(&value, parameters[index], 4);
    return value;
  }
  int64_t value;
  memcpy(&value, parameters[index], 8);
  return value;
}

double look_up(const Rule& rule, double x) {
  const auto& points = rule.points;
  if (points.size() == 1) return points[0].second;
  size_t right = 0;
  while (right + 1 < points.size() && points[right].first < x) right++;
  if (rule.stepped) return points[right].second;
  right = std::max<size_t>(right, 1);
  auto [x0, y0] = points[right - 1];
  auto [x1, y1] = points[right];
  return std::max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0));
}

// ---- reading the table: every problem is an error that names the place ------------------------------------

struct Reader {
  std::string problem;

  bool fail(const std::string& what) {
    if (problem.empty()) problem = what;
    return false;
  }

  bool only_keys(const Json& object, const std::string& where, std::initializer_list<const char*> known) {
    if (object.kind != Json::Kind::object) return fail(where + " is not an object");
    for (auto& [key, value] : object.object)
      if (std::none_of(known.begin(), known.end(), [&](const char* k) { return key == k; }))
        return fail(where + ": unknown key \"" + key + "\"");
    return true;
  }

  bool number(const Json* value, const std::string& where, double* out) {
    if (!value) return true;
    if (value->kind != Json::Kind::number || value->number < 0) return fail(where + " is not a number >= 0");
    *out = value->number;
    return true;
  }

  bool integer_index(const Kernel& kernel, double number, const std::string& where, size_t* out) {
    *out = size_t(number);
    if (number < 0 || double(*out) != number || *out >= kernel.parameters.size() ||
        !kernel.parameters[*out].is_integer || kernel.parameters[*out].size < 4)
      return fail(where + " is not the index of an integer argument of " + kernel.name);
    return true;
  }

  bool read_points(const Json& points, const std::string& where, Rule* rule) {
    if (points.kind != Json::Kind::array || points.array.empty())
      return fail(where + ".points is not a list of [value, us]");
    for (const Json& point : points.array) {
      bool pair = point.kind == Json::Kind::array && point.array.size() == 2 &&
                  point.array[0].kind == Json::Kind::number && point.array[1].kind == Json::Kind::number;
      if (!pair) return fail(where + ".points is not a list of [value, us]");
      double x = point.array[0].number, us = point.array[1].number;
      if (us < 0 || (!rule->points.empty() && x <= rule->points.back().first))
        return fail(where + ".points must ascend, with times >= 0");
      rule->points.emplace_back(x, us);
    }
    return true;
  }

  bool read_rule(const Json& json, const std::string& where, CostTable* out) {
    if (!only_keys(json, where, {"kernel", "where", "by", "points", "interpolation", "us"})) return false;
    const Json *name = json.find("kernel"), *us = json.find("us"), *points = json.find("points"),
               *by = json.find("by");
    if (!name || name->kind != Json::Kind::string) return fail(where + ".kernel is missing");
    const Kernel* kernel = find_kernel(name->string.c_str());
    if (!kernel) return fail(where + ": no kernel is named " + name->string);
    Rule rule;
    if (!us == !points) return fail(where + " needs either \"us\" or \"by\" and \"points\"");
    if (us) {
      rule.points.emplace_back(0, 0);
      if (!number(us, where + ".us", &rule.points[0].second)) return false;
    } else {
      if (!by || by->kind != Json::Kind::number) return fail(where + ".by is missing");
      if (!integer_index(*kernel, by->number, where + ".by", &rule.by) || !read_points(*points, where, &rule))
        return false;
    }
    if (const Json* interpolation = json.find("interpolation")) {
      rule.stepped = interpolation->string == "step";
      if (!rule.stepped && interpolation->string != "linear")
        return fail(where + ".interpolation is neither \"step\" nor \"linear\"");
    }
    if (const Json* conditions = json.find("where")) {
      if (conditions->kind != Json::Kind::object) return fail(where + ".where is not an object");
      for (auto& [key, value] : conditions->object) {
        char* end = nullptr;
        Condition condition{0, int64_t(value.number)};
        double index = strtod(key.c_str(), &end);
        if (key.empty() || *end) return fail(where + ".where: \"" + key + "\" is not an argument index");
        if (!integer_index(*kernel, index, where + ".where: \"" + key + "\"", &condition.argument))
          return false;
        if (value.kind != Json::Kind::number || double(condition.value) != value.number)
          return fail(where + ".where: argument " + key + " is not compared with an integer");
        rule.where.push_back(condition);
      }
    }
    out->rules[kernel].push_back(std::move(rule));
    return true;
  }

  bool read(const Json& json, CostTable* out) {
    if (!only_keys(json, "the table", {"rules", "default_us", "copy_us"})) return false;
    if (!number(json.find("default_us"), "default_us", &out->default_us)) return false;
    if (!number(json.find("copy_us"), "copy_us", &out->copy_us)) return false;
    const Json* rules = json.find("rules");
    if (!rules) return true;
    if (rules->kind != Json::Kind::array) return fail("rules is not a list");
    for (size_t i = 0; i < rules->array.size(); i++)
      if (!read_rule(rules->array[i], "rules[" + std::to_string(i) + "]", out)) return false;
    return true;
  }
};

bool read_file(const char* path, std::string* text) {
  FILE* file = fopen(path, "rb");
  if (!file) return false;
  char chunk[4096];
  for (size_t n; (n = fread(chunk, 1, sizeof chunk, file)) > 0;) text->append(chunk, n);
  bool ok = !ferror(file);
  fclose(file);
  return ok;
}

}  // namespace

uint64_t wall_ns() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

bool clock_is_virtual() {
  return enabled;
}

uint64_t modelled_copy_ns() {
  return enabled ? to_ns(table.copy_us) : 0;
}

uint64_t modelled_kernel_ns(const Kernel& kernel, void** parameters) {
  if (!enabled) return 0;
  auto found = table.rules.find(&kernel);
  if (found == table.rules.end()) return to_ns(table.default_us);
  for (const Rule& rule : found->second) {
    bool holds = std::all_of(rule.where.begin(), rule.where.end(), [&](const Condition& c) {
      return integer_argument(kernel, parameters, c.argument) == c.value;
    });
    if (!holds) continue;
    double x = rule.points.size() > 1 ? double(integer_argument(kernel, parameters, rule.by)) : 0;
    return to_ns(look_up(rule, x));
  }
  return to_ns(table.default_us);
}

Result load_clock(const char* path) {
  enabled = false;
  table = {};
  if (!path || !*path) return CUDA_SUCCESS;
  std::string text;
  Json json;
  Reader reader;
  if (!read_file(path, &text))
    return error(CUDA_ERROR_INVALID_VALUE, std::string("SIMT_CLOCK: cannot read ") + path);
  if (!parse_json(text, &json, &reader.problem) || !reader.read(json, &table))
    return error(CUDA_ERROR_INVALID_VALUE, std::string("SIMT_CLOCK: ") + path + ": " + reader.problem);
  enabled = true;
  return CUDA_SUCCESS;
}

}  // namespace simt

// Another cost table, or none, in the running process; an error is one of cuInit's.
SIMT_EXPORT int simt_set_clock(const char* path) {
  std::lock_guard driver_lock(simt::driver_mutex);
  return simt::load_clock(path);
}
