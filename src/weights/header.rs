//! The header of a safetensors file, parsed and checked against the file.
//!
//! Layout: u64 length of the header (little endian), the header (a JSON object: tensor name -> dtype, shape, begin and end
//! of its bytes; `__metadata__` aside), then the data. The crate `safetensors` gives the types; the checks are ours so that
//! every error names the tensor.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};

use super::entry::{Entry, check_name, size_in_bytes};

/// Bytes of the length in front of the header.
const LENGTH_BYTES: usize = 8;
/// Longest header accepted, the limit of the format's own library.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// The tensors of a whole safetensors `file` by name. Fails, with a reason for the user, unless the header is valid and
/// the tensors cover the data without gap or overlap.
pub(super) fn parse(file: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let (header, data_start) = split(file)?;
    let mut tensors = Vec::with_capacity(header.len());
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        check_name(&name)?;
        let info: TensorInfo = serde_json::from_value(value)
            .map_err(|error| format!("tensor {name} is described wrongly: {error}"))?;
        tensors.push((name, info));
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);

    let data_len = file.len() - data_start;
    let mut end_of_last = 0;
    let mut entries = BTreeMap::new();
    for (name, TensorInfo { dtype, shape, data_offsets: (begin, end) }) in tensors {
        if end > data_len {
            return Err(format!(
                "tensor {name} ends at byte {end} of the data, but the file holds {data_len}: the file is truncated"
            ));
        }
        if begin != end_of_last || end < begin {
            return Err(format!(
                "tensor {name} claims bytes {begin} to {end} of the data; it should begin at {end_of_last}"
            ));
        }
        let needed = size_in_bytes(dtype, &shape)
            .ok_or_else(|| format!("tensor {name}, {dtype:?} {shape:?}, is impossibly large"))?;
        if needed != end - begin {
            return Err(format!(
                "tensor {name}, {dtype:?} {shape:?}, needs {needed} bytes but is given {}",
                end - begin
            ));
        }
        end_of_last = end;
        let bytes = data_start + begin..data_start + end;
        entries.insert(name, Entry { dtype, shape, bytes, strides: None });
    }
    if end_of_last != data_len {
        return Err(format!(
            "the tensors end at byte {end_of_last} of the data, but the file holds {data_len}"
        ));
    }
    Ok(entries)
}

/// The header as JSON, and where the data begins.
fn split(file: &[u8]) -> Result<(Map<String, Value>, usize), String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("a file of {} bytes is no safetensors file: it is truncated", file.len()));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER_BYTES {
        return Err(format!("this is no safetensors file: its header would be {length} bytes"));
    }
    let header = rest.get(..length).ok_or_else(|| {
        format!(
            "the header of {length} bytes reaches beyond the file of {}: the file is truncated",
            file.len()
        )
    })?;
    match serde_json::from_slice(header) {
        Ok(Value::Object(header)) => Ok((header, LENGTH_BYTES + length)),
        Ok(_) => Err("this is no safetensors file: its header is not a JSON object".into()),
        Err(error) => Err(format!("the safetensors header is not valid JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoredType;
    use super::*;

    /// A file with this header in front of `data_len` zero bytes.
    fn file(header: &str, data_len: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data_len, 0);
        file
    }

    #[test]
    fn tensors_lie_where_the_header_says() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},
                         "a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;
        let entries = parse(&file(header, 12)).unwrap();
        let start = 8 + header.len();
        assert_eq!(
            entries["a"],
            Entry { dtype: StoredType::BF16, shape: vec![2], bytes: start..start + 4, strides: None }
        );
        assert_eq!(
            entries["b"],
            Entry { dtype: StoredType::F32, shape: vec![2, 1], bytes: start + 4..start + 12, strides: None }
        );
    }

    #[test]
    fn each_fault_names_the_tensor_or_the_header() {
        let tensor = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let cases = [
            ("no_length", vec![1, 2, 3], "truncated"),
            ("huge_header", u64::MAX.to_le_bytes().to_vec(), "no safetensors file"),
            ("header_beyond_file", 100u64.to_le_bytes().to_vec(), "truncated"),
            ("not_json", file("{", 0), "not valid JSON"),
            ("not_an_object", file("[]", 0), "not a JSON object"),
            (
                "no_shape",
                file(r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#, 4),
                "tensor w is described wrongly",
            ),
            ("unknown_dtype", file(&tensor("F17", "[1]", "[0,4]"), 4), "tensor w is described wrongly"),
            ("negative_dim", file(&tensor("F32", "[-1]", "[0,4]"), 4), "tensor w is described wrongly"),
            ("gap", file(&tensor("F32", "[1]", "[4,8]"), 8), "tensor w claims bytes 4 to 8"),
            ("backwards", file(&tensor("F32", "[1]", "[8,4]"), 8), "tensor w claims bytes 8 to 4"),
            ("data_cut", file(&tensor("F32", "[1]", "[0,4]"), 3), "tensor w ends at byte 4"),
            ("data_left_over", file(&tensor("F32", "[1]", "[0,4]"), 5), "the tensors end at byte 4"),
            ("wrong_size", file(&tensor("F32", "[2]", "[0,4]"), 4), "tensor w, F32 [2], needs 8 bytes"),
            (
                "overflow",
                file(&tensor("F32", "[4294967296,4294967296]", "[0,4]"), 4),
                "tensor w, F32 [4294967296, 4294967296], is impossibly large",
            ),
        ];
        for (case, file, expected) in cases {
            let reason = parse(&file).expect_err(case);
            assert!(reason.contains(expected), "{case}: {reason}");
        }
    }
}
