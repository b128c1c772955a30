//! A file of whole numbers: a JSON array, or what `torch.save` writes of a list or a tensor.
#![forbid(unsafe_code)]

use std::path::Path;

use super::storage::Storage;
use super::torch;
use crate::{Error, Result};

/// The numbers in the file `path`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] if it holds anything else.
pub(crate) fn read_integers(path: &Path) -> Result<Vec<i64>> {
    let file = Storage::map(path)?;
    let is_json = file.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if is_json {
        return serde_json::from_slice(&file).map_err(|error| {
            Error::format(path, format!("this is no JSON array of whole numbers: {error}"))
        });
    }
    torch::integers(&file).map_err(|reason| {
        Error::format(
            path,
            format!("this is no JSON array of whole numbers, and as a PyTorch file: {reason}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<i64>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_integers(file.path())
    }

    #[test]
    fn a_json_array_is_read() {
        assert_eq!(read(b" \n[3, -1, 0]\n").unwrap(), [3, -1, 0]);
        assert_eq!(read(b"[]").unwrap(), [0i64; 0]);
        for wrong in ["[1, 2.5]", "[1, \"2\"]", "[1", "[[1]]", "[18446744073709551616]"] {
            let reason = read(wrong.as_bytes()).unwrap_err().to_string();
            assert!(reason.contains("no JSON array of whole numbers"), "{wrong}: {reason}");
        }
    }

    /// A list and a tensor of either width, as torch saves them, in both of its formats.
    #[test]
    fn what_torch_saves_is_read() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch/integers");
        let expected: Vec<i64> = (0..1200).map(|i| i * i % 4099).chain([255, 256, 65535, 65536]).collect();
        for case in ["list", "list_legacy", "tensor_i64", "tensor_i32", "tensor_legacy", "tensor_strided"] {
            let numbers = read_integers(&golden.join(format!("{case}.pt"))).unwrap();
            assert_eq!(numbers, expected, "{case}");
        }
        for (case, reason) in [
            ("floats", "F32"),
            ("matrix", "one dimension"),
            ("mixed_list", "no whole number"),
            ("state_dict", "a list of whole numbers"),
        ] {
            let error = read_integers(&golden.join(format!("{case}.pt"))).unwrap_err().to_string();
            assert!(error.contains(reason), "{case}: {error}");
        }
        for bytes in [&b""[..], b"1, 2, 3", b"PK"] {
            assert!(matches!(read(bytes), Err(Error::Format { .. })), "{bytes:?}");
        }
    }
}
