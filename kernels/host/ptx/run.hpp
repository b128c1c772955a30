// Running kernels as nvcc's PTX has them, in place of their C++ (SIMT_PTX).
#pragma once
#include "../error.hpp"
#include "../kernel_registry.hpp"

namespace simt::ptx {

// Under SIMT_PTX the kernel's program is what its folder has under the kernel's name; an error if nothing has, or if there
// is something that is not known.
Result load(Kernel& kernel);

// The running thread does the whole kernel.
void run(const Program& program, void** parameters);

}  // namespace simt::ptx
