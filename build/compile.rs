//! Running compilers: in parallel, and only for what changed.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One compiler call: `program args... -o output`.
pub struct Job {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub output: PathBuf,
}

/// Runs the jobs whose output is missing, at most `NUM_JOBS` at a time. Outputs carry a content hash in their name, so
/// a file that exists is up to date.
pub fn run(jobs: Vec<Job>) -> Result<(), String> {
    let pending: Vec<Job> = jobs.into_iter().filter(|job| !job.output.exists()).collect();
    let workers = std::env::var("NUM_JOBS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2usize)
        .clamp(1, pending.len().max(1));
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = pending.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(reason) = run_one(job) {
                        failures.lock().unwrap().push(reason);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn run_one(job: &Job) -> Result<(), String> {
    // Written under another name first: an interrupted compiler must not leave a file that looks finished.
    let partial = job.output.with_extension("partial");
    let mut command = Command::new(&job.program);
    command.args(&job.args).arg("-o").arg(&partial);
    let output = command.output().map_err(|e| format!("{}: {e}", job.program.display()))?;
    if !output.status.success() {
        return Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    std::fs::rename(&partial, &job.output).map_err(|e| format!("{}: {e}", job.output.display()))
}

/// Files below `folder` with one of `extensions`, sorted.
pub fn files(folder: &Path, extensions: &[&str], recursive: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && recursive {
            found.extend(files(&path, extensions, true));
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A hash of the flags, of `sources`, and of all that they include by a quoted name, directly or not. `skipped` is the start of names
/// that this compiler does not get to see.
pub fn content_hash(flags: &[String], sources: &[&Path], skipped: Option<&str>) -> String {
    let mut hasher = DefaultHasher::new();
    flags.hash(&mut hasher);
    let mut found = BTreeSet::new();
    sources.iter().for_each(|source| find_included(source, skipped, &mut found));
    for path in found {
        path.hash(&mut hasher);
        std::fs::read(path).unwrap_or_default().hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// Adds `path` and what it includes to `found`. Includes under conditions count, so a hash may change too often, never too seldom.
fn find_included(path: &Path, skipped: Option<&str>, found: &mut BTreeSet<PathBuf>) {
    if !found.insert(path.to_owned()) {
        return;
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let names = text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        rest.trim_start().strip_prefix('"')?.split('"').next()
    });
    for name in names.filter(|name| skipped.is_none_or(|start| !name.starts_with(start))) {
        let beside = path.parent().unwrap_or(Path::new("")).join(name);
        let places = [beside, Path::new("kernels").join(name), Path::new("kernels/host").join(name)];
        if let Some(place) = places.iter().find(|place| place.is_file()) {
            find_included(&simplified(place), skipped, found);
        }
    }
}

/// `a/../b` as `b`: a file has one name, however it is included.
fn simplified(path: &Path) -> PathBuf {
    let mut simple = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir && simple.file_name().is_some() {
            simple.pop();
        } else {
            simple.push(part);
        }
    }
    simple
}

/// First existing program of that name on `PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
