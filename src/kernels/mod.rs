//! Typed, shape-checked launch wrappers: one module per `kernels/*.cu`, the only code that launches.
