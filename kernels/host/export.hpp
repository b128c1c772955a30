// Marks what the shared library exports: the driver's entry points and the simt_* functions.
#pragma once
#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))
