//! Rotary position embedding: base, scaling, frequencies, and the table that the kernels read.

use super::fields::Fields;
use crate::Result;

/// Rotary embedding of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
    /// M-RoPE (Qwen2-VL, arXiv 2409.12191): how many of a head's pairs turn by a token's time, by its row and by its column.
    /// Without pictures the three are one.
    pub sections: Option<[usize; 3]>,
}

/// How rotary frequencies are stretched for contexts longer than those of pre-training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Context length over that of pre-training.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position: usize,
    },
}

/// What Hugging Face assumes where a config names no base.
const DEFAULT_THETA: f64 = 10_000.0;

impl RopeConfig {
    /// Frequency of each rotated pair, `head_dim / 2` of them: radians per position.
    ///
    /// Follows the arithmetic of transformers (`_compute_*_parameters`), which is all in f32: a position multiplies the
    /// rounding error of its frequency, so exact frequencies would drift from the reference's logits at long contexts.
    /// The power itself is computed in f64 and rounded once.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f32 / head_dim as f32;
                let power = self.theta.powf(f64::from(exponent)) as f32;
                self.scaling.scale(1.0 / power)
            })
            .collect()
    }

    /// The table f32[num_positions, head_dim] that the kernels read: a row holds `head_dim / 2` cosines, then as many
    /// sines.
    ///
    /// Angles are f32 products, as in transformers; their cosine and sine are computed in f64 and rounded once.
    /// `num_positions` is the longest context that will be run, not the longest that the model allows: a row takes
    /// `4 * head_dim` bytes.
    pub fn cos_sin_table(&self, num_positions: usize, head_dim: usize) -> Vec<f32> {
        let inv_freq = self.inv_freq(head_dim);
        let mut table = Vec::with_capacity(num_positions * head_dim);
        for position in 0..num_positions {
            let angle = |frequency: &f32| f64::from(position as f32 * frequency);
            table.extend(inv_freq.iter().map(|frequency| angle(frequency).cos() as f32));
            table.extend(inv_freq.iter().map(|frequency| angle(frequency).sin() as f32));
        }
        table
    }

    /// Reads `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).
    pub(super) fn from_fields(fields: &Fields) -> Result<Self> {
        const THETA: std::ops::RangeInclusive<f64> = 1.0..=1e15;
        let nested = match fields.object("rope_parameters")? {
            Some(nested) => Some(nested),
            None => fields.object("rope_scaling")?,
        };
        let nested_theta = match &nested {
            Some(nested) => nested.number("rope_theta", THETA)?,
            None => None,
        };
        let theta = match nested_theta {
            Some(theta) => theta,
            None => fields.number("rope_theta", THETA)?.unwrap_or(DEFAULT_THETA),
        };
        for holder in [Some(fields), nested.as_ref()].into_iter().flatten() {
            if holder.number("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|factor| factor != 1.0) {
                return Err(
                    holder.error("partial_rotary_factor", "is not 1: partial rotation is not supported")
                );
            }
        }
        let scaling = match &nested {
            Some(nested) => RopeScaling::from_fields(nested)?,
            None => RopeScaling::None,
        };
        let sections = match &nested {
            Some(nested) => sections(nested)?,
            None => None,
        };
        Ok(RopeConfig { theta, scaling, sections })
    }
}

/// `mrope_section`: three counts of pairs.
fn sections(nested: &Fields) -> Result<Option<[usize; 3]>> {
    const FIELD: &str = "mrope_section";
    if nested.flag("mrope_interleaved")?.unwrap_or(false) {
        return Err(nested.error("mrope_interleaved", "is true: interleaved sections are not supported"));
    }
    let Some(counts) = nested.indices(FIELD, 1 << 12)? else { return Ok(None) };
    match <[usize; 3]>::try_from(counts) {
        Ok(sections) => Ok(Some(sections)),
        Err(counts) => {
            Err(nested.error(FIELD, format_args!("holds {} counts: it should hold 3", counts.len())))
        }
    }
}

impl RopeScaling {
    /// `frequency`, stretched; in f32 and in the order of operations of transformers.
    fn scale(self, frequency: f32) -> f32 {
        match self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let original = original_max_position as f64;
                let wavelength = std::f64::consts::TAU as f32 / frequency;
                if wavelength > (original / low_freq_factor) as f32 {
                    return frequency / factor as f32;
                }
                if wavelength < (original / high_freq_factor) as f32 {
                    return frequency;
                }
                let keep = (original as f32 / wavelength - low_freq_factor as f32)
                    / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - keep) * frequency / factor as f32 + keep * frequency
            }
        }
    }

    /// Reads the object under `rope_scaling` or `rope_parameters`.
    fn from_fields(fields: &Fields) -> Result<Self> {
        let field = if fields.value("rope_type").is_some() { "rope_type" } else { "type" };
        let factor = |name: &str| -> Result<f64> { fields.require(name, fields.number(name, 1e-3..=1e6)?) };
        if let Some(name) = fields.name_of_object() {
            return Err(fields.error(name, "is an object: rotary parameters by layer type are not supported"));
        }
        let unnamed = if fields.value("factor").is_some() { None } else { Some("default") };
        match fields.require("rope_type", fields.text(field)?.or(unnamed))? {
            // M-RoPE stretches nothing; its sections stand beside.
            "default" | "mrope" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: factor("factor")? }),
            "llama3" => {
                let (low_freq_factor, high_freq_factor) =
                    (factor("low_freq_factor")?, factor("high_freq_factor")?);
                if low_freq_factor >= high_freq_factor {
                    return Err(fields.error(
                        "low_freq_factor",
                        format_args!(
                            "is {low_freq_factor}: it should be below `high_freq_factor`, {high_freq_factor}"
                        ),
                    ));
                }
                let original = "original_max_position_embeddings";
                Ok(RopeScaling::Llama3 {
                    factor: factor("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position: fields.require(original, fields.count(original, 1..=1 << 24)?)?,
                })
            }
            other => Err(fields.error(
                field,
                format_args!("is {other:?}: only \"default\", \"linear\" and \"llama3\" are supported"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama-3.1-8B: theta 500000, llama3 scaling by 8 from 8192 positions.
    const LLAMA_31: RopeConfig = RopeConfig {
        theta: 500_000.0,
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        },
        sections: None,
    };

    #[test]
    fn frequencies_without_scaling_are_powers_of_theta() {
        let rope = RopeConfig { theta: 10_000.0, scaling: RopeScaling::None, sections: None };
        let frequencies = rope.inv_freq(8);
        assert_eq!(frequencies, [1.0, 0.1, 0.01, 0.001]);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let rope =
            RopeConfig { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 }, sections: None };
        assert_eq!(rope.inv_freq(4), [0.25, 0.0025]);
    }

    #[test]
    fn llama3_keeps_high_divides_low_and_blends_between() {
        let plain = RopeConfig { scaling: RopeScaling::None, ..LLAMA_31 }.inv_freq(128);
        let scaled = LLAMA_31.inv_freq(128);
        let (mut kept, mut divided, mut blended) = (0, 0, 0);
        for (&before, &after) in plain.iter().zip(&scaled) {
            let wavelength = std::f32::consts::TAU / before;
            if wavelength < 2048.0 {
                assert_eq!(after, before);
                kept += 1;
            } else if wavelength > 8192.0 {
                assert_eq!(after, before / 8.0);
                divided += 1;
            } else {
                assert!(after > before / 8.0 && after < before);
                blended += 1;
            }
        }
        // log(2048 / 2 pi) and log(8192 / 2 pi) over log(theta) / 64 steps: pairs 0..=28, 29..=34 and 35..64.
        assert_eq!((kept, blended, divided), (29, 6, 29));
    }

    /// Pairs that are kept, blended and divided, as `LlamaRotaryEmbedding` of transformers 5 computes them, to the bit.
    #[test]
    fn llama3_frequencies_are_those_of_transformers() {
        let expected = [
            (1, 0.8146172),
            (28, 0.003211446),
            (29, 0.0021665706),
            (32, 0.000524846),
            (34, 0.00017850779),
            (35, 9.556212e-05),
            (63, 3.068926e-07),
        ];
        let frequencies = LLAMA_31.inv_freq(128);
        for (pair, frequency) in expected {
            assert_eq!(frequencies[pair], frequency, "pair {pair}");
        }
    }

    #[test]
    fn table_holds_cosines_then_sines() {
        let rope = RopeConfig { theta: 10_000.0, scaling: RopeScaling::None, sections: None };
        let table = rope.cos_sin_table(3, 4);
        assert_eq!(table.len(), 12);
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
        let expected = [2f64.cos(), 0.02f64.cos(), 2f64.sin(), 0.02f64.sin()];
        for (got, want) in table[8..].iter().zip(expected) {
            assert!((f64::from(*got) - want).abs() < 1e-7, "{got} is not {want}");
        }
    }
}
