// What every driver entry point begins with.
#pragma once
#include "error.hpp"
#include "export.hpp"
#include "memory.hpp"
#include "stream.hpp"

#define DRIVER_API SIMT_EXPORT int

// One caller at a time; nothing works any more once a kernel has failed, as on a GPU.
#define ENTER_DRIVER()                       \
  std::lock_guard driver_lock(driver_mutex); \
  if (Result sticky = sticky_state()) return sticky

#define RETURN_IF_ERROR(expression) \
  if (Result result_ = (expression)) return result_
