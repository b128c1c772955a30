//! Machines with a CUDA driver that cannot be used: the program says so, or runs on the CPU instead.

#[path = "common/program.rs"]
mod program;

use std::path::Path;
use std::process::{Command, Output};

use program::program;
use tempfile::TempDir;

/// A folder with a `libcuda.so` and a `libcuda.so.1` of API `version` whose `cuInit` returns `init`, on a machine with `devices` GPUs.
fn driver(version: i32, init: i32, devices: i32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("driver.c");
    let text = format!(
        "int cuDriverGetVersion(int* v) {{ *v = {version}; return 0; }}\n\
         int cuInit(unsigned flags) {{ return {init}; }}\n\
         int cuDeviceGetCount(int* n) {{ *n = {devices}; return 0; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut command = Command::new(compiler);
        command.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(folder.path().join(name));
        assert!(command.arg(&source).status().expect("a C compiler").success());
    }
    folder
}

fn generate(driver: &Path, device: &str) -> Output {
    let mut command = program();
    command.env("LD_LIBRARY_PATH", driver).env_remove("SMART_DEVICE").env_remove("SMART_REQUIRE_GPU");
    command.args("generate --prompt-ids 5,6,7 --max-new-tokens 2 --format json --device".split(' '));
    command.arg(device).output().unwrap()
}

#[test]
fn a_driver_that_cannot_be_used_leaves_the_cpu() {
    for (version, init, devices, why) in [
        (13000, 100, 1, "cuInit: error 100"),
        (12040, 0, 1, "API 12.4; smart-run needs 13.0"),
        (13000, 0, 0, "no device"),
    ] {
        let folder = driver(version, init, devices);
        let asked = generate(folder.path(), "cuda:0");
        let error = String::from_utf8_lossy(&asked.stderr);
        assert!(asked.status.code() == Some(1) && error.contains(why), "{why}: {error}");
        let found = generate(folder.path(), "auto");
        let text = String::from_utf8_lossy(&found.stdout);
        assert!(
            found.status.success() && text.contains("\"device\":\"host"),
            "{why}: {text}{}",
            String::from_utf8_lossy(&found.stderr)
        );
    }
}
