//! [`LinearFamily`]: which tensor-core instructions 16-bit linear layers multiply with.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A family of kernels of linear layers, for all widths. One for the life of a process: `SMART_LINEAR` says which, `mma` by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinearFamily {
    /// `mma.sync`: a warp for itself, on every supported GPU.
    #[default]
    Mma,
    /// `wgmma`: four warps together, on Hopper.
    Wgmma,
}

impl LinearFamily {
    /// Every family.
    pub const ALL: [Self; 2] = [Self::Mma, Self::Wgmma];

    /// As `SMART_LINEAR` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mma => "mma",
            Self::Wgmma => "wgmma",
        }
    }

    /// A kernel that an image has if it has the family.
    pub(super) fn sample(self) -> &'static str {
        match self {
            Self::Mma => "linear_bf16_t8",
            Self::Wgmma => "linear_wgmma_bf16_t8",
        }
    }

    /// What `SMART_LINEAR` asks for; the default where it is not set, or empty.
    ///
    /// # Errors
    /// [`Error::Input`] if it names no family.
    pub(super) fn wanted() -> Result<Self> {
        let Some(text) = std::env::var_os("SMART_LINEAR").filter(|text| !text.is_empty()) else {
            return Ok(Self::default());
        };
        let text = text.to_string_lossy();
        text.parse().map_err(|_| Error::Input(format!("SMART_LINEAR={text}: expected mma or wgmma")))
    }
}

impl FromStr for LinearFamily {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|family| family.name() == text);
        named.ok_or_else(|| Error::Input("expected mma or wgmma".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, DeviceChoice};

    #[test]
    fn families_parse_by_their_names() {
        for family in LinearFamily::ALL {
            assert_eq!(family.name().parse::<LinearFamily>().unwrap(), family);
        }
        for bad in ["", "WGMMA", "mma ", "wmma"] {
            assert!(bad.parse::<LinearFamily>().unwrap_err().to_string().contains("mma or wgmma"), "{bad}");
        }
    }

    /// On the host driver all are there; a kernel that images lack is not found, and nothing else fails after.
    #[test]
    fn a_family_is_there_where_its_kernels_are() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        assert!(!device.has_kernel("linear_wgmma_bf16_t7").unwrap());
        for family in LinearFamily::ALL {
            assert!(device.has_kernel(family.sample()).unwrap(), "{}", family.sample());
            assert_eq!(device.with_linear_family(family).unwrap().linear_family(), family);
        }
        let wgmma = device.with_linear_family(LinearFamily::Wgmma).unwrap();
        assert_eq!(wgmma.driver_version(), "host driver, linear layers by wgmma");
    }
}
