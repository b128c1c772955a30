// A wild memory access of a kernel becomes the launch's error, not the end of the process.
#pragma once

namespace simt {

// Call on every OS thread before it runs fibers. Nothing in sanitizer builds: they report faults themselves.
void catch_faults_on_this_thread();

}  // namespace simt
