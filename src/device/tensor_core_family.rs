//! [`TensorCoreFamily`]: which tensor-core instructions 16-bit kernels multiply with, where there is a choice.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A family of kernels of one operation, for all widths. One for the life of a process and an operation: `SMART_LINEAR` says which for linear
/// layers, `SMART_ATTENTION` for attention; `mma` by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TensorCoreFamily {
    /// `mma.sync`: a warp for itself, on every supported GPU.
    #[default]
    Mma,
    /// `wgmma`: four warps together, on Hopper.
    Wgmma,
}

impl TensorCoreFamily {
    /// Every family.
    pub const ALL: [Self; 2] = [Self::Mma, Self::Wgmma];

    /// As `SMART_LINEAR` and `SMART_ATTENTION` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mma => "mma",
            Self::Wgmma => "wgmma",
        }
    }
}

impl FromStr for TensorCoreFamily {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|family| family.name() == text);
        named.ok_or_else(|| Error::Input("expected mma or wgmma".into()))
    }
}

/// What there are families of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Linear,
    Attention,
}

impl Operation {
    pub(super) const ALL: [Self; 2] = [Self::Linear, Self::Attention];

    /// In words.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Linear => "linear layers",
            Self::Attention => "attention",
        }
    }

    /// The environment variable that chooses its family.
    pub(super) fn variable(self) -> &'static str {
        match self {
            Self::Linear => "SMART_LINEAR",
            Self::Attention => "SMART_ATTENTION",
        }
    }

    /// A kernel that an image has if it has the family.
    pub(super) fn sample(self, family: TensorCoreFamily) -> &'static str {
        match (self, family) {
            (Self::Linear, TensorCoreFamily::Mma) => "linear_bf16_t8",
            (Self::Linear, TensorCoreFamily::Wgmma) => "linear_wgmma_bf16_t8",
            (Self::Attention, TensorCoreFamily::Mma) => "tree_attention_bf16_hd128_narrow",
            (Self::Attention, TensorCoreFamily::Wgmma) => "tree_attention_wgmma_bf16_hd128",
        }
    }

    /// What its variable asks for; the default where it is not set, or empty.
    ///
    /// # Errors
    /// [`Error::Input`] if it names no family.
    pub(super) fn wanted(self) -> Result<TensorCoreFamily> {
        let variable = self.variable();
        let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else {
            return Ok(TensorCoreFamily::default());
        };
        let text = text.to_string_lossy();
        text.parse().map_err(|_| Error::Input(format!("{variable}={text}: expected mma or wgmma")))
    }
}

/// CTAs of a launch from which on a linear layer's tile with more weights is worth having: three quarters of a large GPU's SMs.
pub(crate) const WIDE_FROM_CTAS: u32 = 96;

/// The family of every operation, and what else tells its kernels apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Families {
    linear: TensorCoreFamily,
    attention: TensorCoreFamily,
    /// See [`WIDE_FROM_CTAS`].
    pub(super) wide_from_ctas: u32,
    /// Whether launches may use thread block clusters.
    pub(super) clusters: bool,
    /// Whether tiles come by the copy engine also where nothing has been measured.
    pub(super) bulk_tiles: bool,
}

impl Default for Families {
    fn default() -> Self {
        let mma = TensorCoreFamily::default();
        Self {
            linear: mma,
            attention: mma,
            wide_from_ctas: WIDE_FROM_CTAS,
            bulk_tiles: false,
            clusters: true,
        }
    }
}

impl Families {
    pub(super) fn of(self, operation: Operation) -> TensorCoreFamily {
        match operation {
            Operation::Linear => self.linear,
            Operation::Attention => self.attention,
        }
    }

    pub(super) fn with(mut self, operation: Operation, family: TensorCoreFamily) -> Self {
        match operation {
            Operation::Linear => self.linear = family,
            Operation::Attention => self.attention = family,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, DeviceChoice};

    #[test]
    fn families_parse_by_their_names() {
        for family in TensorCoreFamily::ALL {
            assert_eq!(family.name().parse::<TensorCoreFamily>().unwrap(), family);
        }
        for bad in ["", "WGMMA", "mma ", "wmma"] {
            assert!(
                bad.parse::<TensorCoreFamily>().unwrap_err().to_string().contains("mma or wgmma"),
                "{bad}"
            );
        }
    }

    /// On the host driver all are there; a kernel that images lack is not found, and nothing else fails after.
    #[test]
    fn a_family_is_there_where_its_kernels_are() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        assert!(!device.has_kernel("linear_wgmma_bf16_t7").unwrap());
        for family in TensorCoreFamily::ALL {
            for operation in Operation::ALL {
                assert!(device.has_kernel(operation.sample(family)).unwrap(), "{}", operation.sample(family));
            }
            assert_eq!(device.with_linear_family(family).unwrap().linear_family(), family);
            assert_eq!(device.with_attention_family(family).unwrap().attention_family(), family);
        }
        let linear = device.with_linear_family(TensorCoreFamily::Wgmma).unwrap();
        assert_eq!(linear.attention_family(), TensorCoreFamily::Mma);
        assert_eq!(linear.driver_version(), "host driver, linear layers by wgmma");
        let both = linear.with_attention_family(TensorCoreFamily::Wgmma).unwrap();
        assert_eq!(both.driver_version(), "host driver, linear layers by wgmma, attention by wgmma");
        assert_eq!(device.families(), "linear layers by mma, attention by mma");
    }
}
