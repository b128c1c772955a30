//! The host driver: kernels, their native twins and the SIMT runtime in one shared library with the SONAME `libcuda.so`.

use std::path::{Path, PathBuf};

use crate::compile::{self, Job};

/// `-ffp-contract=off` keeps the compiler from fusing a*b+c on its own, so that results do not depend on what was vectorised
/// (kernels fuse by name); -O2 because unoptimised fibers are four times slower even in debug builds of the crate.
const FLAGS: &[&str] = &[
    "-std=c++20",
    "-ffp-contract=off",
    "-O2",
    "-g1",
    "-fPIC",
    "-fno-strict-aliasing",
    "-pthread",
    "-fvisibility=hidden",
    "-Ikernels",
    "-Ikernels/host",
];

/// Builds `host_driver.so` into `out_dir`; an empty file where the platform or the compiler does not allow it.
pub fn build(out_dir: &Path) -> Result<(), String> {
    let library = out_dir.join("host_driver.so");
    let target = std::env::var("TARGET").unwrap_or_default();
    let compiler = match std::env::var_os("CXX") {
        Some(path) => Some(PathBuf::from(path)),
        None => compile::on_path("g++").or_else(|| compile::on_path("c++")),
    };
    let (true, Some(compiler)) = (target.starts_with("x86_64") && target.contains("linux"), compiler) else {
        println!(
            "cargo::warning=building without the host driver (needs x86-64 Linux and a C++20 compiler): GPU only"
        );
        return std::fs::write(&library, []).map_err(|e| format!("{}: {e}", library.display()));
    };
    let flags: Vec<String> = FLAGS.iter().map(|&f| f.to_owned()).collect();
    let mut sources = compile::files(Path::new("kernels/host"), &["cpp"], false);
    for folder in ["kernels/host/native", "kernels/host/ptx"] {
        sources.extend(compile::files(Path::new(folder), &["cpp"], false));
    }
    let mut units: Vec<(PathBuf, Vec<String>)> = sources.into_iter().map(|path| (path, vec![])).collect();
    for kernel in compile::files(Path::new("kernels"), &["cu"], false) {
        units.push((kernel, vec!["-x".into(), "c++".into()]));
    }
    let (mut jobs, mut objects) = (Vec::new(), Vec::new());
    for (source, language) in units {
        let stem = source.with_extension("").to_string_lossy().replace('/', "-");
        let object = out_dir.join(format!("{stem}-{}.o", compile::content_hash(&flags, &[&source], None)));
        let mut args = flags.clone();
        args.push("-c".into());
        args.extend(language);
        args.push(source.to_string_lossy().into_owned());
        jobs.push(Job { program: compiler.clone(), args, output: object.clone() });
        objects.push(object.to_string_lossy().into_owned());
    }
    compile::run(jobs)?;
    let _ = std::fs::remove_file(&library);
    let mut args: Vec<String> =
        ["-shared", "-pthread", "-Wl,-soname,libcuda.so", "-Wl,-Bsymbolic"].map(String::from).to_vec();
    args.extend(objects);
    compile::run(vec![Job { program: compiler, args, output: library }])
}
