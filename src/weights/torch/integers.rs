//! A file that holds whole numbers instead of a state dict.
#![forbid(unsafe_code)]

use super::super::StoredType;
use super::Saved;
use super::pickle::Value;
use super::state_dict::place;

/// The numbers of a list, or of a tensor of one dimension in `file`.
pub(super) fn of(saved: &Saved, file: &[u8]) -> Result<Vec<i64>, String> {
    let machine = saved.machine;
    match saved.root {
        Value::List(list) => {
            let number = |&value| match value {
                Value::Int(number) => Ok(number),
                _ => Err("its list holds something that is no whole number of 64 bits".into()),
            };
            machine.list(list).iter().map(number).collect()
        }
        Value::Tensor(tensor) => {
            let entry = place(&machine.objects.tensors[tensor as usize], saved)
                .map_err(|reason| format!("its tensor {reason}"))?;
            if entry.shape.len() != 1 {
                return Err(format!("its tensor of size {:?} should have one dimension", entry.shape));
            }
            let bytes = entry.gather(file);
            match entry.dtype {
                StoredType::I64 => Ok(bytes.as_chunks().0.iter().map(|&it| i64::from_le_bytes(it)).collect()),
                StoredType::I32 => {
                    Ok(bytes.as_chunks().0.iter().map(|&it| i32::from_le_bytes(it).into()).collect())
                }
                other => Err(format!("its tensor is stored as {other:?}: it should be I64 or I32")),
            }
        }
        _ => Err("it should hold a list of whole numbers, or a tensor of them".into()),
    }
}
