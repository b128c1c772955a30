// selftest CASE: runs one case and prints what was observed; tests/host_driver/ asserts it. A process per
// case, since a failed kernel leaves its context unusable and the environment selects modes.
#include "harness.hpp"

int main(int count, char** arguments) {
  if (int result = cuInit(0)) {
    observe("cuInit", result);
    return 0;
  }
  for (Case* c = Case::first; c; c = c->next) {
    if (count < 2)
      puts(c->name);
    else if (!strcmp(c->name, arguments[1]))
      return c->run(), 0;
  }
  return count < 2 ? 0 : 2;
}
