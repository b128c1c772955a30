#include "json.hpp"

#include <stdlib.h>
#include <string.h>

#include <algorithm>

namespace simt {

namespace {

constexpr int deepest = 64;

class Parser {
 public:
  Parser(const std::string& text, std::string* problem)
      : at_(text.c_str()), begin_(at_), end_(at_ + text.size()), problem_(problem) {}

  bool document(Json* value) {
    if (!parse(value, 0)) return false;
    skip_space();
    return at_ == end_ || fail("text after the value");
  }

 private:
  bool parse(Json* value, int depth) {
    if (depth > deepest) return fail("nested too deeply");
    skip_space();
    if (at_ == end_) return fail("unexpected end");
    switch (*at_) {
      case '{':
        return object(value, depth);
      case '[':
        return array(value, depth);
      case '"':
        value->kind = Json::Kind::string;
        return string(&value->string);
      case 't':
        value->boolean = true;
        value->kind = Json::Kind::boolean;
        return word("true");
      case 'f':
        value->kind = Json::Kind::boolean;
        return word("false");
      case 'n':
        return word("null");
      default:
        return number(value);
    }
  }

  bool object(Json* value, int depth) {
    value->kind = Json::Kind::object;
    return list('}', [&] {
      std::string key;
      skip_space();
      if (at_ == end_ || *at_ != '"') return fail("a key in quotes is expected");
      if (!string(&key)) return false;
      if (value->object.count(key)) return fail("duplicate key \"" + key + "\"");
      skip_space();
      if (at_ == end_ || *at_++ != ':') return fail("':' is expected after \"" + key + "\"");
      return parse(&value->object[key], depth + 1);
    });
  }

  bool array(Json* value, int depth) {
    value->kind = Json::Kind::array;
    return list(']', [&] {
      value->array.emplace_back();
      return parse(&value->array.back(), depth + 1);
    });
  }

  template <class Item>
  bool list(char close, Item item) {
    at_++;
    skip_space();
    if (at_ != end_ && *at_ == close) return at_++, true;
    for (;;) {
      if (!item()) return false;
      skip_space();
      char next = at_ == end_ ? 0 : *at_++;
      if (next == close) return true;
      if (next != ',') return fail(std::string("',' or '") + close + "' is expected");
    }
  }

  bool string(std::string* out) {
    for (at_++; at_ != end_ && *at_ != '"'; at_++) {
      if (static_cast<unsigned char>(*at_) < 0x20) return fail("control character in a string");
      if (*at_ != '\\') {
        *out += *at_;
        continue;
      }
      static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
      const char* escape = ++at_ == end_ || !*at_ ? nullptr : strchr(from, *at_);
      if (!escape) return fail("unsupported escape in a string");
      *out += to[escape - from];
    }
    return at_ == end_ ? fail("unterminated string") : (at_++, true);
  }

  // strtod accepts more than JSON does, so the characters are checked first.
  bool number(Json* value) {
    const char* p = at_;
    auto digits = [&] {
      const char* first = p;
      while (p != end_ && *p >= '0' && *p <= '9') p++;
      return p != first;
    };
    if (p != end_ && *p == '-') p++;
    bool leading_zero = p != end_ && *p == '0';
    const char* integer = p;
    bool ok = digits() && !(leading_zero && p - integer > 1);
    if (ok && p != end_ && *p == '.') p++, ok = digits();
    if (ok && p != end_ && (*p == 'e' || *p == 'E')) {
      p++;
      if (p != end_ && (*p == '+' || *p == '-')) p++;
      ok = digits();
    }
    if (!ok) return fail("a value is expected");
    value->kind = Json::Kind::number;
    value->number = strtod(at_, nullptr);
    at_ = p;
    return true;
  }

  bool word(const char* expected) {
    size_t length = strlen(expected);
    if (size_t(end_ - at_) < length || strncmp(at_, expected, length)) return fail("a value is expected");
    at_ += length;
    return true;
  }

  void skip_space() {
    while (at_ != end_ && strchr(" \t\r\n", *at_) && *at_) at_++;
  }

  bool fail(const std::string& what) {
    *problem_ = "line " + std::to_string(1 + std::count(begin_, at_, '\n')) + ": " + what;
    return false;
  }

  const char *at_, *begin_, *end_;
  std::string* problem_;
};

}  // namespace

bool parse_json(const std::string& text, Json* value, std::string* problem) {
  return Parser(text, problem).document(value);
}

}  // namespace simt
