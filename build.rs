//! Builds what is not Rust: the device images (nvcc, one fatbin per `kernels/*.cu`) and the host driver (the same
//! kernels compiled by the host's C++ compiler into one shared library). Both end up inside the crate.
//!
//! Environment: `NVCC`, `CUDA_HOME`, `CUDA_PATH` (where nvcc is), `CUDA_ARCHS` (default `80;90a`), `REQUIRE_NVCC=1`
//! (no nvcc is an error instead of a warning), `CUDA_LINEINFO=0` (no source lines in the device images of a debug build, where
//! size matters), `CXX` (the host compiler).

#[path = "build/compile.rs"]
mod compile;
#[path = "build/host_driver.rs"]
mod host_driver;
#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_ARCHS", "CUDA_LINEINFO", "REQUIRE_NVCC", "CXX"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    name_commit();
    if std::env::var_os("CARGO_FEATURE_ENGINE").is_none() {
        return;
    }
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let outcome = nvcc::build(&out_dir).and_then(|()| host_driver::build(&out_dir));
    if let Err(reason) = outcome {
        eprintln!("{reason}");
        std::process::exit(1);
    }
    // Whatever kernels and host driver are made of, with which measured costs are kept apart.
    let sources = compile::files(Path::new("kernels"), &["cu", "cpp"], true);
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    println!("cargo::rustc-env=SMART_KERNELS={}", compile::content_hash(&[], &sources, None));
}

/// Passes the commit on as `SMART_COMMIT`, for measurements. Release builds only: others need not be made again after each commit.
fn name_commit() {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release")
        && let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"])
        && let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
    {
        println!("cargo::rerun-if-changed={log}");
        println!("cargo::rerun-if-changed=src");
        let modified = if git(&["diff", "--quiet", "HEAD"]).is_some() { "" } else { ", modified" };
        println!("cargo::rustc-env=SMART_COMMIT={commit}{modified}");
    }
}
