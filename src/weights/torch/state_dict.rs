//! From what a pickle made to named tensors, each checked against the file.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};

use super::super::entry::{self, Entry};
use super::Saved;
use super::objects::Tensor;
use super::pickle::{Machine, Value};

/// The tensors of a file claim at most this many times its bytes: they may share storages, but not to fill memory when
/// copied, or a disk when written out one by one.
const MAX_SHARING: usize = 8;

/// The tensors of the state dict that was saved.
pub(super) fn tensors(saved: &Saved) -> Result<BTreeMap<String, Entry>, String> {
    let Saved { machine, root, file_len, .. } = *saved;
    let Value::Dict(root) = root else {
        return Err("it should hold a state dict, names and their tensors; it holds something else".into());
    };
    let mut entries = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut claimed = 0usize;
    for &(key, value) in machine.pairs(root) {
        let Value::Text(name) = key else {
            if holds_tensor(machine, value, &mut seen) {
                return Err("it has a tensor whose name is no text".into());
            }
            continue;
        };
        let name = machine.text(name);
        entry::check_name(name)?;
        let Value::Tensor(tensor) = value else {
            if holds_tensor(machine, value, &mut seen) {
                return Err(format!(
                    "{name:?} holds tensors inside another container: save the state dict itself, with names and tensors only"
                ));
            }
            continue;
        };
        let tensor = &machine.objects.tensors[tensor as usize];
        let entry = place(tensor, saved).map_err(|reason| format!("tensor {name} {reason}"))?;
        claimed = claimed.saturating_add(entry.size_in_bytes());
        if claimed > file_len.saturating_mul(MAX_SHARING) {
            return Err(format!(
                "tensor {name} is one too many: together they claim more than {MAX_SHARING} times the {file_len} bytes of the file"
            ));
        }
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    Ok(entries)
}

/// Whether there is a tensor in `value` or anywhere inside it. Containers in `seen` have none.
fn holds_tensor(machine: &Machine, value: Value, seen: &mut HashSet<(char, u32)>) -> bool {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Tensor(_) | Value::Storage(_) => return true,
            Value::Tuple(tuple) if seen.insert(('t', tuple)) => open.extend(machine.tuple(tuple)),
            Value::List(list) if seen.insert(('l', list)) => open.extend(machine.list(list)),
            Value::Dict(dict) if seen.insert(('d', dict)) => {
                open.extend(machine.pairs(dict).iter().flat_map(|&(key, value)| [key, value]));
            }
            _ => {}
        }
    }
    false
}

/// `tensor` as a part of the file.
pub(super) fn place(tensor: &Tensor, saved: &Saved) -> Result<Entry, String> {
    let Tensor { dtype, offset, ref shape, ref strides, .. } = *tensor;
    let key = saved.machine.text(tensor.storage.key);
    let storage =
        (saved.locate)(key).ok_or_else(|| format!("has no elements: its storage {key:?} is missing"))?;
    let element = dtype.bitsize() / 8;
    let num_stored = tensor.storage.num_elements;
    if num_stored.checked_mul(element).is_none_or(|bytes| bytes > storage.len()) {
        return Err(format!(
            "views a storage of {num_stored} elements, but the file holds {} bytes of it: it is truncated",
            storage.len()
        ));
    }
    let size =
        entry::size_in_bytes(dtype, shape).ok_or_else(|| format!("of size {shape:?} is impossibly large"))?;
    let row_major = is_row_major(shape, strides);
    let first = storage.start;
    if size == 0 {
        return Ok(Entry { dtype, shape: shape.clone(), bytes: first..first, strides: None });
    }
    // Elements from the first to behind the last.
    let extent = shape
        .iter()
        .zip(strides)
        .try_fold(1usize, |extent, (&len, &stride)| extent.checked_add((len - 1).checked_mul(stride)?));
    let end = extent.and_then(|extent| extent.checked_add(offset)).filter(|&end| end <= num_stored);
    let Some(end) = end else {
        return Err(format!(
            "of size {shape:?}, strides {strides:?} and offset {offset} leaves its storage of {num_stored} elements"
        ));
    };
    if size > num_stored * element {
        return Err(format!("of size {shape:?} repeats elements of its storage: save it contiguous"));
    }
    let bytes = first + offset * element..first + end * element;
    let strides = (!row_major).then(|| strides.clone());
    Ok(Entry { dtype, shape: shape.clone(), bytes, strides })
}

/// Whether elements in order are neighbours. A dimension of one index may have any stride.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().all(|(&len, &stride)| {
        let fits = len == 1 || stride == expected;
        expected = expected.saturating_mul(len);
        fits
    })
}
