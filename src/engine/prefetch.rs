//! [`Prefetch`]: while the host thinks, the weights that the next pass reads first are brought into the device's cache.
//!
//! Between two passes of a drafted round the host reads children, chooses, and launches: some 20 microseconds in which memory is idle. Half of an
//! H200's cache is read in six of them, and what is there need not be read again.

use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::kernels::prefetch::prefetch;

/// What share of the cache is filled: what runs before the weights are read needs some, too.
const SHARE: usize = 2;
const VARIABLE: &str = "SMART_PREFETCH";

/// How much is brought, of what comes next.
pub(super) struct Prefetch {
    device: Device,
    bytes: usize,
}

impl Prefetch {
    /// With so many bytes, or as is usual: half the cache of a GPU, nothing where the CPU is the device. `SMART_PREFETCH` says otherwise, in MiB,
    /// for comparison.
    ///
    /// # Errors
    /// A variable that is no number.
    pub fn new(device: &Device, bytes: Option<usize>) -> Result<Self> {
        let bytes = match (bytes, asked_for(std::env::var_os(VARIABLE))?) {
            (Some(bytes), _) => bytes,
            (None, Some(bytes)) => bytes,
            (None, None) if device.is_host() => 0,
            (None, None) => device.l2_bytes()? / SHARE,
        };
        Ok(Self { device: device.clone(), bytes })
    }

    /// Whether anything is brought.
    pub fn is_wanted(&self) -> bool {
        self.bytes > 0
    }

    /// Starts to bring the first of `weights`, behind all that has been issued.
    pub fn start(&self, weights: &Tensor) -> Result<()> {
        if self.is_wanted() { prefetch(&self.device, weights, self.bytes) } else { Ok(()) }
    }
}

/// Bytes of a variable that says MiB.
fn asked_for(variable: Option<std::ffi::OsString>) -> Result<Option<usize>> {
    let Some(text) = variable.filter(|text| !text.is_empty()) else { return Ok(None) };
    let text = text.to_string_lossy();
    let mib: u32 =
        text.parse().map_err(|_| Error::Input(format!("{VARIABLE}={text}: expected a number of MiB")))?;
    Ok(Some((mib as usize) << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_says_mib() {
        let asked = |text: &str| asked_for(Some(text.into()));
        assert_eq!(asked("0").unwrap(), Some(0));
        assert_eq!(asked("24").unwrap(), Some(24 << 20));
        assert_eq!(asked("").unwrap(), None);
        assert_eq!(asked_for(None).unwrap(), None);
        assert!(asked("much").unwrap_err().to_string().contains("SMART_PREFETCH=much: expected a number"));
    }
}
