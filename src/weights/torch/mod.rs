//! Files that `torch.save` writes: a state dict as a pickle, and the storages that its tensors view.
//!
//! Two formats. Since torch 1.6 a zip file with entries `NAME/data.pkl`, `NAME/data/KEY` and `NAME/byteorder`; before, and
//! still with `_use_new_zipfile_serialization=False`, pickles one after the other: magic number, version, system, state
//! dict, keys; then each key's storage behind its length (torch/serialization.py, `_load` and `_legacy_load`).
//!
//! A state dict maps names to tensors. What is beside them and holds no tensor (a step, a setting) is passed over; tensors in
//! inner dictionaries or lists are an error, since their names would be a guess. Sparse, quantised and complex tensors,
//! tensors of subclasses, and whole pickled modules are errors that name what the pickle asks for.
#![forbid(unsafe_code)]

mod integers;
mod legacy;
mod objects;
mod opcodes;
mod pickle;
mod reader;
mod state_dict;
mod zip;

use std::collections::BTreeMap;
use std::ops::Range;

use super::entry::Entry;
use pickle::{Machine, Value};

/// First byte of a pickle of protocol 2 and up.
const PICKLE: u8 = 0x80;

/// What a file's pickle has made, and where in the file its storages lie.
struct Saved<'a> {
    machine: &'a Machine<'a>,
    root: Value,
    file_len: usize,
    /// The storage of a key.
    locate: &'a dyn Fn(&str) -> Option<Range<usize>>,
}

/// The tensors of a whole `file` by name. Fails, with a reason for the user, unless all of them lie in the file.
pub(super) fn parse(file: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    read(file, state_dict::tensors)
}

/// The whole numbers of a `file` that holds a list of them, or a tensor of one dimension.
pub(super) fn integers(file: &[u8]) -> Result<Vec<i64>, String> {
    read(file, |saved| integers::of(saved, file))
}

fn read<T>(file: &[u8], read: impl FnOnce(&Saved) -> Result<T, String>) -> Result<T, String> {
    if zip::is_zip(file) {
        read_zip(file, read)
    } else if file.first() == Some(&PICKLE) {
        legacy::read(file, read)
    } else if file.is_empty() {
        Err("this PyTorch file is empty: it is truncated".into())
    } else {
        Err("this is no file that torch.save wrote: it is neither a zip file nor a pickle".into())
    }
}

fn read_zip<T>(file: &[u8], read: impl FnOnce(&Saved) -> Result<T, String>) -> Result<T, String> {
    const PICKLE_ENTRY: &str = "/data.pkl";
    let entries = zip::entries(file)?;
    let mut folders = entries.keys().filter_map(|name| name.strip_suffix(PICKLE_ENTRY));
    let (Some(folder), None) = (folders.next(), folders.next()) else {
        return Err("this is no file that torch.save wrote: the zip file should hold one data.pkl".into());
    };
    if let Some(order) = entries.get(format!("{folder}/byteorder").as_str())
        && &file[order.clone()] != b"little"
    {
        return Err("its numbers are big endian: save it on a little-endian machine".into());
    }
    let (machine, root, _) =
        Machine::run(&file[entries[format!("{folder}{PICKLE_ENTRY}").as_str()].clone()])?;
    let locate =
        |key: &str| -> Option<Range<usize>> { entries.get(format!("{folder}/data/{key}").as_str()).cloned() };
    read(&Saved { machine: &machine, root, file_len: file.len(), locate: &locate })
}
