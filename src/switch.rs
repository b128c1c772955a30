//! Environment variables that turn a part of the runtime on or off, to compare with and to look for faults (`docs/environment.md`).

use std::ffi::OsString;

use crate::error::{Error, Result};

/// What `variable` asks for: off (`0`), on (`1`), or nothing where it is not set, or empty.
///
/// # Errors
/// [`Error::Input`]: it says something else. What is meant to be compared must not be the default after all.
pub(crate) fn switch(variable: &str) -> Result<Option<bool>> {
    read(variable, std::env::var_os(variable))
}

fn read(variable: &str, value: Option<OsString>) -> Result<Option<bool>> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    match value.to_str() {
        Some("0") => Ok(Some(false)),
        Some("1") => Ok(Some(true)),
        _ => Err(Error::Input(format!("{variable}={}: expected 0 or 1", value.to_string_lossy()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_one_or_nothing() {
        let read = |value: &str| read("SMART_X", Some(value.into()));
        assert_eq!(super::read("SMART_X", None).unwrap(), None);
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("0").unwrap(), Some(false));
        assert_eq!(read("1").unwrap(), Some(true));
        for other in ["off", "2", " 1", "true"] {
            let said = read(other).unwrap_err().to_string();
            assert!(said.contains(&format!("SMART_X={other}: expected 0 or 1")), "{said}");
        }
    }
}
