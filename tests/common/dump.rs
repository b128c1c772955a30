//! What kernels gave, kept in a file so that two devices can be held against each other.
//!
//! With `SMART_DUMP=FILE` every comparison with an oracle appends its values to FILE, which may have those of an earlier process. On the host driver the emulated runs
//! count, not the native twins.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::panic::Location;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use super::compare::Tol;

/// Values that are kept of a comparison: enough to see how many bits differ, and a file that is quickly carried.
const MOST_VALUES: usize = 1024;

/// One comparison: the kernel's values and what its test allows.
pub struct Entry {
    pub tol: Tol,
    pub values: Vec<f32>,
}

/// Appends `values`, evenly picked where they are many, under the test file's name, the caller's line and `name` without the mode, the first time these occur.
#[track_caller]
pub fn record(name: &str, values: &[f32], tol: Tol) {
    /// The file and the keys that it has.
    type Dump = Mutex<(File, HashSet<String>)>;
    static DUMP: OnceLock<Option<Dump>> = OnceLock::new();
    let open = || {
        let append = |path| OpenOptions::new().create(true).append(true).open(path).unwrap();
        std::env::var_os("SMART_DUMP").map(|path| Mutex::new((append(path), HashSet::new())))
    };
    let Some(dump) = DUMP.get_or_init(open) else { return };
    if name.contains("Twin") || name.contains("Shuffled") {
        return;
    }
    let caller = Location::caller();
    let file = Path::new(caller.file()).file_stem().unwrap_or_default().to_string_lossy();
    let name = name.replace("Emulated", "").replace("Gpu", "");
    let key = format!("{file}:{}: {}", caller.line(), name.trim());
    let (file, seen) = &mut *dump.lock().unwrap();
    // Odd, so that it walks through the columns of any usual width.
    let step = values.len().div_ceil(MOST_VALUES) | 1;
    let values: Vec<f32> = values.iter().copied().step_by(step).collect();
    let head = [key.len() as u32, values.len() as u32, tol.abs.to_bits(), tol.rel.to_bits()];
    let entry = [bytemuck::cast_slice(&head), key.as_bytes(), bytemuck::cast_slice(&values)].concat();
    if seen.insert(key) {
        file.write_all(&entry).unwrap();
    }
}

/// The entries of a file by their keys.
pub fn read(path: &Path) -> BTreeMap<String, Entry> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut rest, mut entries) = (&bytes[..], BTreeMap::new());
    while !rest.is_empty() {
        let (head, body) = rest.split_at(16);
        let word = |i: usize| u32::from_le_bytes(head[4 * i..][..4].try_into().unwrap());
        let (key, body) = body.split_at(word(0) as usize);
        let (values, after) = body.split_at(4 * word(1) as usize);
        let values = values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let tol = Tol { abs: f32::from_bits(word(2)), rel: f32::from_bits(word(3)) };
        entries.insert(String::from_utf8(key.to_vec()).unwrap(), Entry { tol, values });
        rest = after;
    }
    entries
}
