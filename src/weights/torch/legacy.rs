//! The format before torch 1.6: pickles one after the other, then the storages.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ops::Range;

use super::super::StoredType;
use super::Saved;
use super::pickle::{Machine, Value};

/// 0x1950a86a20f9469cfc6c, as a pickle holds it.
const MAGIC: [u8; 10] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];
const VERSION: i64 = 1001;
/// Bytes of the length in front of a storage.
const LENGTH_BYTES: usize = 8;

/// As [`super::read`], for a file that begins with a pickle.
pub(super) fn read<T>(file: &[u8], read: impl FnOnce(&Saved) -> Result<T, String>) -> Result<T, String> {
    let mut at = 0;
    let (magic, value) = next(file, &mut at)?;
    if !matches!(value, Value::Long(number) if magic.bytes(number) == MAGIC) {
        return Err("this is a pickle, but none that torch.save wrote".into());
    }
    match next(file, &mut at)? {
        (_, Value::Int(VERSION)) => {}
        (_, other) => return Err(format!("its format version should be {VERSION}, not {other:?}")),
    }
    let (system, value) = next(file, &mut at)?;
    let little_endian = |&(key, value): &(Value, Value)| {
        matches!(key, Value::Text(key) if system.text(key) == "little_endian") && value == Value::Bool(true)
    };
    if !matches!(value, Value::Dict(facts) if system.pairs(facts).iter().any(little_endian)) {
        return Err(
            "it does not say that its numbers are little endian: save it on a little-endian machine".into()
        );
    }
    let (machine, root) = next(file, &mut at)?;
    let (keys, list) = next(file, &mut at)?;
    let Value::List(list) = list else {
        return Err("behind its pickle there should be a list of storages".into());
    };
    let types = storage_types(&machine)?;
    let mut storages: HashMap<&str, Range<usize>> = HashMap::new();
    for &key in keys.list(list) {
        let Value::Text(key) = key else { return Err("a key of its storages is no text".into()) };
        let key = keys.text(key);
        let dtype = types.get(key).ok_or_else(|| format!("its pickle knows no storage {key:?}"))?;
        let truncated = || format!("storage {key:?} ends beyond the file: it is truncated");
        let length = file[at..].first_chunk::<LENGTH_BYTES>().ok_or_else(truncated)?;
        at += LENGTH_BYTES;
        let bytes = usize::try_from(u64::from_le_bytes(*length)).ok();
        let bytes = bytes.and_then(|len| len.checked_mul(dtype.bitsize() / 8));
        let end = bytes.and_then(|len| at.checked_add(len)).filter(|&end| end <= file.len());
        let range = at..end.ok_or_else(truncated)?;
        at = range.end;
        if storages.insert(key, range).is_some() {
            return Err(format!("storage {key:?} is there twice"));
        }
    }
    if at != file.len() {
        return Err(format!("its storages end at byte {at}, but the file holds {}", file.len()));
    }
    let locate = |key: &str| storages.get(key).cloned();
    read(&Saved { machine: &machine, root, file_len: file.len(), locate: &locate })
}

/// Runs the pickle at `at`, which moves behind it.
fn next<'a>(file: &'a [u8], at: &mut usize) -> Result<(Machine<'a>, Value), String> {
    let (machine, value, len) = Machine::run(&file[*at..])?;
    *at += len;
    Ok((machine, value))
}

/// The type of each storage: what its length counts.
fn storage_types<'a>(machine: &Machine<'a>) -> Result<HashMap<&'a str, StoredType>, String> {
    let mut types = HashMap::new();
    for storage in &machine.objects.storages {
        let key = machine.text(storage.key);
        if *types.entry(key).or_insert(storage.dtype) != storage.dtype {
            return Err(format!("its pickle reads storage {key:?} as two types"));
        }
    }
    Ok(types)
}
