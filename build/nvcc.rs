//! Device images: one fatbin per `kernels/*.cu` for every architecture of `CUDA_ARCHS`, plus PTX of the lowest one for
//! GPUs newer than the list.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::compile::{self, Job};

/// sm_80 runs on every Ampere and later card; 90a opens Hopper's own instructions.
const DEFAULT_ARCHS: &str = "80;90a";

/// Compiles all kernels and writes `images.rs`: the table that the device layer embeds.
pub fn build(out_dir: &Path) -> Result<(), String> {
    let Some(nvcc) = find()? else {
        if std::env::var("REQUIRE_NVCC").is_ok_and(|v| v == "1") {
            return Err(
                "REQUIRE_NVCC=1, but nvcc was not found: set NVCC or CUDA_HOME, or run tools/fetch_nvcc.sh"
                    .into(),
            );
        }
        println!(
            "cargo::warning=nvcc not found: building without GPU kernels (set NVCC or CUDA_HOME, or run tools/fetch_nvcc.sh)"
        );
        println!("cargo::rustc-env=SMART_NVCC_VERSION=none");
        return write_table(out_dir, &[]);
    };
    println!("cargo::rustc-env=SMART_NVCC_VERSION={}", version(&nvcc)?);
    let flags = flags()?;
    let (mut jobs, mut images) = (Vec::new(), Vec::new());
    for source in compile::files(Path::new("kernels"), &["cu"], false) {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let output = out_dir
            .join(format!("{stem}-{}.fatbin", compile::content_hash(&flags, &[&source], Some("host/"))));
        let mut args = flags.clone();
        args.push(source.to_string_lossy().into_owned());
        jobs.push(Job { program: nvcc.clone(), args, output: output.clone() });
        images.push((stem, output));
    }
    compile::run(jobs)?;
    write_table(out_dir, &images)
}

fn flags() -> Result<Vec<String>, String> {
    let archs = std::env::var("CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let archs: Vec<&str> = archs.split([';', ',']).map(str::trim).filter(|a| !a.is_empty()).collect();
    let lowest =
        archs.iter().filter_map(|a| a.trim_end_matches(char::is_alphabetic).parse::<u32>().ok()).min();
    let lowest =
        lowest.ok_or_else(|| format!("CUDA_ARCHS={}: expected a list such as 80;90a", archs.join(";")))?;
    let mut flags: Vec<String> = ["-fatbin", "-O3", "-std=c++17", "-Ikernels"].map(String::from).to_vec();
    // Source lines for profilers and compute-sanitizer; they triple the images, so release builds go without.
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|own| own == value);
    if is("PROFILE", "debug") && !is("CUDA_LINEINFO", "0") {
        flags.push("-lineinfo".into());
    }
    for arch in archs {
        flags.push("-gencode".into());
        flags.push(format!("arch=compute_{arch},code=sm_{arch}"));
    }
    flags.push("-gencode".into());
    flags.push(format!("arch=compute_{lowest},code=compute_{lowest}"));
    Ok(flags)
}

/// `$NVCC`, `$CUDA_HOME/bin`, `$CUDA_PATH/bin`, `PATH`, the usual place, the project's own toolchain folder. A variable
/// that names no nvcc is an error: the user meant something by it.
fn find() -> Result<Option<PathBuf>, String> {
    if let Some(path) = std::env::var_os("NVCC").map(PathBuf::from) {
        return if path.is_file() {
            Ok(Some(path))
        } else {
            Err(format!("NVCC={}: no such file", path.display()))
        };
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = std::env::var_os(variable).map(PathBuf::from) {
            let path = home.join("bin/nvcc");
            return if path.is_file() {
                Ok(Some(path))
            } else {
                Err(format!("{variable}={}: no bin/nvcc in it", home.display()))
            };
        }
    }
    let usual = [PathBuf::from("/usr/local/cuda/bin/nvcc"), PathBuf::from(".toolchain/cuda/bin/nvcc")];
    Ok(compile::on_path("nvcc").into_iter().chain(usual).find(|path| path.is_file()))
}

fn version(nvcc: &Path) -> Result<String, String> {
    let output =
        Command::new(nvcc).arg("--version").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split(", V").nth(1).and_then(|rest| rest.split_whitespace().next());
    version.map(str::to_owned).ok_or_else(|| format!("{} --version: cannot read the version", nvcc.display()))
}

fn write_table(out_dir: &Path, images: &[(String, PathBuf)]) -> Result<(), String> {
    let mut table =
        String::from("#[allow(dead_code)]\n#[repr(C, align(16))]\nstruct Aligned<T: ?Sized>(T);\n");
    for (index, (_, path)) in images.iter().enumerate() {
        let _ = writeln!(
            table,
            "static IMAGE_{index}: &Aligned<[u8]> = &Aligned(*include_bytes!({:?}));",
            path.display().to_string()
        );
    }
    let _ =
        writeln!(table, "/// Stem of the source and its fatbin.\npub static IMAGES: &[(&str, &[u8])] = &[");
    for (index, (stem, _)) in images.iter().enumerate() {
        let _ = writeln!(table, "    ({stem:?}, &IMAGE_{index}.0),");
    }
    table.push_str("];\n");
    let path = out_dir.join("images.rs");
    std::fs::write(&path, table).map_err(|e| format!("{}: {e}", path.display()))
}
