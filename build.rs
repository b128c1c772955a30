//! Builds what is not Rust: the device images (nvcc, one fatbin per `kernels/*.cu`) and the host driver (the same
//! kernels compiled by the host's C++ compiler into one shared library). Both end up inside the crate.
//!
//! Environment: `NVCC`, `CUDA_HOME`, `CUDA_PATH` (where nvcc is), `CUDA_ARCHS` (default `80;90a`), `REQUIRE_NVCC=1`
//! (no nvcc is an error instead of a warning), `CXX` (the host compiler).

#[path = "build/compile.rs"]
mod compile;
#[path = "build/host_driver.rs"]
mod host_driver;
#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_ARCHS", "REQUIRE_NVCC", "CXX"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if std::env::var_os("CARGO_FEATURE_ENGINE").is_none() {
        return;
    }
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let outcome = nvcc::build(&out_dir).and_then(|()| host_driver::build(&out_dir));
    if let Err(reason) = outcome {
        eprintln!("{reason}");
        std::process::exit(1);
    }
}
