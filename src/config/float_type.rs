//! The three floating-point types that a model can be stored and run in.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Element type of weights, activations and K/V.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// bfloat16: 8 exponent bits, 7 mantissa bits.
    Bf16,
    /// IEEE half: 5 exponent bits, 10 mantissa bits; nothing above 65504.
    F16,
    /// IEEE single.
    F32,
}

impl FloatType {
    /// Every variant.
    pub const ALL: [FloatType; 3] = [FloatType::Bf16, FloatType::F16, FloatType::F32];

    /// Bytes an element takes.
    pub fn size_in_bytes(self) -> usize {
        match self {
            FloatType::Bf16 | FloatType::F16 => 2,
            FloatType::F32 => 4,
        }
    }

    /// The name used in flags, kernels and reports: `bf16`, `f16` or `f32`.
    pub fn name(self) -> &'static str {
        match self {
            FloatType::Bf16 => "bf16",
            FloatType::F16 => "f16",
            FloatType::F32 => "f32",
        }
    }

    /// What Hugging Face calls it.
    pub(super) fn hf_name(self) -> &'static str {
        match self {
            FloatType::Bf16 => "bfloat16",
            FloatType::F16 => "float16",
            FloatType::F32 => "float32",
        }
    }

    /// The type that Hugging Face calls `spelling` (`bfloat16`, `torch.float16`, …), if it is one of ours.
    pub(super) fn from_hf(spelling: &str) -> Option<Self> {
        match spelling.strip_prefix("torch.").unwrap_or(spelling) {
            "bfloat16" => Some(FloatType::Bf16),
            "float16" | "half" => Some(FloatType::F16),
            "float32" | "float" => Some(FloatType::F32),
            _ => None,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FloatType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|float_type| float_type.name() == text)
            .ok_or_else(|| Error::Input(format!("`{text}` is not a dtype: use bf16, f16 or f32")))
    }
}
