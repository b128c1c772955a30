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
    /// YaRN (arXiv 2309.00071): pairs that turn often within the original length kept, those that hardly turn divided by `factor`,
    /// blended by pair between them; cosines and sines multiplied by `attention_factor`.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// Turns within the original length above which a pair is kept.
        beta_fast: f64,
        /// Turns below which it is divided.
        beta_slow: f64,
        /// Whether the pairs between which frequencies are blended are whole numbers.
        truncate: bool,
        /// Context length of pre-training.
        original_max_position: usize,
    },
    /// Stretched by the length of the text, from `original_max_position` on (dynamic NTK). Up to there, which is as far as we go, that
    /// is not at all: every position beyond changes the frequencies of all, and keys in a cache are rotated already.
    Dynamic {
        /// Context length of pre-training.
        original_max_position: usize,
    },
}

/// Fields of lengths, and what these may be.
const STATED: &str = "max_position_embeddings";
const ORIGINAL: &str = "original_max_position_embeddings";
const LENGTH: std::ops::RangeInclusive<usize> = 1..=1 << 24;

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
                match self.scaling {
                    RopeScaling::Yarn { factor, .. } => {
                        let keep = 1.0 - self.yarn_ramp(pair, head_dim);
                        1.0 / (factor as f32 * power) * (1.0 - keep) + 1.0 / power * keep
                    }
                    scaling => scaling.scale(1.0 / power),
                }
            })
            .collect()
    }

    /// How far YaRN's blend has gone at `pair`: 0 keeps its frequency, 1 divides it.
    fn yarn_ramp(&self, pair: usize, head_dim: usize) -> f32 {
        let RopeScaling::Yarn { beta_fast, beta_slow, truncate, original_max_position, .. } = self.scaling
        else {
            return 0.0;
        };
        // The pair, counted in halves of the head, that turns so often within the original length.
        let pair_of = |turns: f64| {
            let length = original_max_position as f64;
            head_dim as f64 * (length / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0)
    }

    /// The table f32[num_positions, head_dim] that the kernels read: a row holds `head_dim / 2` cosines, then as many
    /// sines.
    ///
    /// Angles are f32 products, as in transformers; their cosine and sine are computed in f64 and rounded once.
    /// `num_positions` is the longest context that will be run, not the longest that the model allows: a row takes
    /// `4 * head_dim` bytes.
    pub fn cos_sin_table(&self, num_positions: usize, head_dim: usize) -> Vec<f32> {
        let inv_freq = self.inv_freq(head_dim);
        let gain = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        let mut table = Vec::with_capacity(num_positions * head_dim);
        for position in 0..num_positions {
            let angle = |frequency: &f32| f64::from(position as f32 * frequency);
            table.extend(inv_freq.iter().map(|frequency| angle(frequency).cos() as f32 * gain));
            table.extend(inv_freq.iter().map(|frequency| angle(frequency).sin() as f32 * gain));
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
            Some(nested) => RopeScaling::from_fields(nested, fields)?,
            None => RopeScaling::None,
        };
        if let (RopeScaling::Yarn { .. }, Some(nested)) = (scaling, &nested)
            && theta <= 1.0
        {
            let holder = if nested_theta.is_some() { nested } else { fields };
            return Err(holder.error("rope_theta", "is 1: yarn needs frequencies that differ"));
        }
        let sections = match &nested {
            Some(nested) => sections(nested)?,
            None => None,
        };
        Ok(RopeConfig { theta, scaling, sections })
    }
}

impl RopeConfig {
    /// Fails unless the sections, if there are any, have all pairs of a head.
    pub(super) fn check_sections(&self, fields: &Fields, head_dim: usize) -> Result<()> {
        let num_pairs = head_dim / 2;
        let Some(sections) = self.sections.filter(|sections| sections.iter().sum::<usize>() != num_pairs)
        else {
            return Ok(());
        };
        let holder =
            if fields.value("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let reason =
            format!("has a `mrope_section` of {sections:?}: they should be the {num_pairs} pairs of a head");
        Err(fields.error(holder, reason))
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
            // YaRN's blend goes by the pair, not by its frequency: `RopeConfig::inv_freq` has it.
            RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Yarn { .. } => frequency,
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

    /// Longest context, where the config names `stated`. YaRN's authors' way of asking for it leaves `max_position_embeddings` at the
    /// original length (Qwen2.5), so what the factor reaches counts too.
    pub(super) fn longest_context(self, stated: usize) -> usize {
        match self {
            RopeScaling::Yarn { factor, original_max_position, .. } => {
                stated.max((factor * original_max_position as f64).min((1 << 24) as f64) as usize)
            }
            RopeScaling::Dynamic { original_max_position } => stated.min(original_max_position),
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => stated,
        }
    }

    /// Reads the object under `rope_scaling` or `rope_parameters` of `config`.
    fn from_fields(fields: &Fields, config: &Fields) -> Result<Self> {
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
                Ok(RopeScaling::Llama3 {
                    factor: factor("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position: fields.require(ORIGINAL, fields.count(ORIGINAL, LENGTH)?)?,
                })
            }
            "yarn" => Self::yarn(fields, config),
            "dynamic" => {
                // Its factor acts beyond the original length alone.
                factor("factor")?;
                let stated = config.count(STATED, LENGTH)?;
                let stated = config.require(STATED, stated)?;
                let original = fields.count(ORIGINAL, LENGTH)?.unwrap_or(stated);
                Ok(RopeScaling::Dynamic { original_max_position: original.min(stated) })
            }
            other => Err(fields.error(
                field,
                format_args!(
                    "is {other:?}: only \"default\", \"linear\", \"llama3\", \"yarn\" and \"dynamic\" are supported"
                ),
            )),
        }
    }

    /// YaRN's parameters with the defaults of transformers, where 0 counts as not given.
    fn yarn(fields: &Fields, config: &Fields) -> Result<Self> {
        let given = |name: &str, range| -> Result<Option<f64>> {
            Ok(fields.number(name, range)?.filter(|&value| value != 0.0))
        };
        let stated = config.count(STATED, LENGTH)?;
        let original = match config.count(ORIGINAL, LENGTH)? {
            Some(original) => original,
            None => match fields.count(ORIGINAL, LENGTH)? {
                Some(original) => original,
                None => config.require(STATED, stated)?,
            },
        };
        let factor = match fields.number("factor", 1e-3..=1e6)? {
            Some(factor) => factor,
            None if fields.mentions("factor") => config.require(STATED, stated)? as f64 / original as f64,
            None => fields.require("factor", None)?,
        };
        let (beta_fast, beta_slow) =
            (given("beta_fast", 0.0..=1e6)?.unwrap_or(32.0), given("beta_slow", 0.0..=1e6)?.unwrap_or(1.0));
        if beta_slow >= beta_fast {
            return Err(fields.error(
                "beta_slow",
                format_args!("is {beta_slow}: it should be below `beta_fast`, {beta_fast}"),
            ));
        }
        let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let weights = (given("mscale", 0.0..=100.0)?, given("mscale_all_dim", 0.0..=100.0)?);
        let attention_factor = match (fields.number("attention_factor", 1e-6..=1e3)?, weights) {
            (Some(attention_factor), _) => attention_factor,
            (None, (Some(ours), Some(all))) => scale(ours) / scale(all),
            (None, _) => scale(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate: fields.flag("truncate")?.unwrap_or(true),
            original_max_position: original,
        })
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

    fn rope(config: &str) -> RopeConfig {
        let fields = Fields::parse("config.json".into(), config.as_bytes()).unwrap();
        RopeConfig::from_fields(&fields).unwrap()
    }

    /// Frequencies of pairs on both sides of the blend and within it, and cosines and sines at position 70, as `Qwen2RotaryEmbedding` of
    /// transformers 5 computes them: frequencies to the bit.
    #[test]
    #[rustfmt::skip]
    fn yarn_is_that_of_transformers() {
        type Pair = (usize, f32, f32, f32);
        let cases: [(&str, usize, f64, &[Pair]); 5] = [
            // As Qwen2.5's model cards ask for it.
            (r#"{"max_position_embeddings": 32768, "rope_theta": 1000000.0,
                 "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}"#,
             128, 1.138629436111989, &[
                (0, 1.0, 0.7211159, 0.8811747), (20, 0.013335215, 0.67754453, 0.9151013),
                (23, 0.006978306, 1.0054628, 0.5343422), (24, 0.0053753215, 1.0589718, 0.4183966),
                (31, 0.0008029598, 1.1368313, 0.06396546), (39, 6.490394e-05, 1.1386178, 0.00517309),
                (40, 4.4456985e-05, 1.138624, 0.0035433965), (63, 3.1023444e-07, 1.1386294, 2.4726944e-05)]),
            // Two weights of the attention factor, the original length from the config's other fields.
            (r#"{"max_position_embeddings": 163840, "original_max_position_embeddings": 4096,
                 "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0,
                 "mscale_all_dim": 0.8, "beta_fast": 32, "beta_slow": 1}}"#,
             128, 1.0569662567531275, &[
                (10, 0.23713736, -0.6639097, -0.82243645), (24, 0.02687936, -0.3232006, 1.0063394),
                (28, 0.012447956, 0.6804631, 0.80879396), (35, 0.0028410447, 1.0361333, 0.20881933),
                (45, 9.624545e-05, 1.0569423, 0.0071209203), (63, 2.8869547e-06, 1.0569663, 0.00021359896)]),
            // A blend between fractions of pairs.
            (r#"{"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0,
                 "factor": 32.0, "truncate": false, "original_max_position_embeddings": 4096}}"#,
             64, 1.3465735902799727, &[
                (8, 0.050813273, -1.2320887, -0.5433395), (9, 0.031705696, -0.81342906, 1.0731233),
                (12, 0.0067949593, 1.1970992, 0.61661476), (17, 0.0001293187, 1.3465184, 0.012189432),
                (18, 3.830881e-05, 1.3465688, 0.0036109902), (31, 3.0235114e-07, 1.3465736, 2.8499664e-05)]),
            (r#"{"max_position_embeddings": 128, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0,
                 "factor": 2.0, "attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2, "original_max_position_embeddings": 64}}"#,
             64, 1.25, &[
                (1, 0.687403, -0.68134135, -1.0479857), (5, 0.13833013, -1.2085221, -0.3193345),
                (9, 0.037494708, -1.0866551, 0.61780304), (31, 6.6676075e-05, 1.2499864, 0.0058341357)]),
            // A factor of null is the ratio of the lengths.
            (r#"{"max_position_embeddings": 512, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0,
                 "factor": null, "original_max_position_embeddings": 64}}"#,
             64, 1.2079441541679836, &[
                (3, 0.2987017, -0.56717455, 1.0665092), (5, 0.12186225, -0.7561377, 0.94201106),
                (9, 0.009373677, 0.95710534, 0.73693854), (31, 1.6669019e-05, 1.2079433, 0.0014094668)]),
        ];
        for (config, head_dim, gain, pairs) in cases {
            let rope = rope(config);
            let RopeScaling::Yarn { attention_factor, .. } = rope.scaling else { panic!("{config}") };
            assert!((attention_factor - gain).abs() < 1e-12, "{config}: {attention_factor}");
            let (frequencies, table) = (rope.inv_freq(head_dim), rope.cos_sin_table(71, head_dim));
            for &(pair, frequency, cos, sin) in pairs {
                assert_eq!(frequencies[pair], frequency, "{config}: pair {pair}");
                let row = &table[70 * head_dim..];
                assert!((row[pair] - cos).abs() < 2e-6, "{config}: {} instead of {cos}", row[pair]);
                let got = row[head_dim / 2 + pair];
                assert!((got - sin).abs() < 2e-6, "{config}: {got} instead of {sin}");
            }
        }
    }

    #[test]
    fn contexts_are_what_the_scaling_makes_of_them() {
        let longest = |config: &str, stated| rope(config).scaling.longest_context(stated);
        let yarn =
            r#"{"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}"#;
        assert_eq!([512, 1024, 8192].map(|stated| longest(yarn, stated)), [4096, 4096, 8192]);
        let dynamic =
            r#"{"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}}"#;
        assert_eq!([2048, 4096].map(|stated| longest(dynamic, stated)), [2048, 2048]);
        let linear = r#"{"rope_scaling": {"type": "linear", "factor": 4.0}}"#;
        assert_eq!(longest(linear, 512), 512);
        let plain = RopeConfig { theta: 10_000.0, scaling: RopeScaling::None, sections: None };
        assert_eq!(rope(dynamic).inv_freq(64), plain.inv_freq(64), "up to the original length");
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
