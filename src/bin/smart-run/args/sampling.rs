//! The flags that say how the next token is drawn and where a text ends, alike in every command that writes one.

use clap::Args;

use smart_run::sampling::SamplingParams;

use super::integer;

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingArgs {
    /// Finite, 0 or more; 0 takes the likeliest token.
    pub temperature: f32,
    /// Above 0, up to 1; 1 keeps every token.
    pub top_p: f32,
    /// Likeliest tokens that are kept, from 1; `None` keeps all.
    pub top_k: Option<u32>,
    /// From 0 to 1; 0 keeps every token.
    pub min_p: f32,
    /// Decides every draw.
    pub seed: u64,
}

impl SamplingArgs {
    /// As the engine takes them.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k.unwrap_or(0),
            min_p: self.min_p,
            seed: self.seed,
        }
    }
}

/// The same as typed.
#[derive(Args)]
pub struct LowSampling {
    /// Randomness of the text; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature)]
    temperature: f32,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value = "1", value_parser = top_p)]
    top_p: f32,
    /// Keep the K likeliest tokens [default: all]
    #[arg(long, value_name = "K", value_parser = top_k)]
    top_k: Option<u32>,
    /// Keep the tokens at least this likely, relative to the likeliest
    #[arg(long, value_name = "P", default_value = "0", value_parser = min_p)]
    min_p: f32,
    /// Seed of the draws: the same seed gives the same text
    #[arg(long, value_name = "S", default_value = "0", value_parser = seed)]
    seed: u64,
}

impl From<LowSampling> for SamplingArgs {
    fn from(typed: LowSampling) -> Self {
        Self {
            temperature: typed.temperature,
            top_p: typed.top_p,
            top_k: typed.top_k,
            min_p: typed.min_p,
            seed: typed.seed,
        }
    }
}

/// Where a text ends, as typed.
#[derive(Args)]
pub struct LowEnd {
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value = "256", value_parser = max_new_tokens)]
    pub max_new_tokens: usize,
    /// Text that ends the answer and is not part of it; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = stop)]
    pub stop: Vec<String>,
}

fn stop(typed: &str) -> Result<String, String> {
    if typed.is_empty() {
        Err("it is empty, which would stop every text".into())
    } else {
        Ok(typed.to_owned())
    }
}

pub fn temperature(typed: &str) -> Result<f32, String> {
    number(typed, |value| value >= 0.0, "a finite number from 0 (greedy)")
}

fn top_p(typed: &str) -> Result<f32, String> {
    number(typed, |value| value > 0.0 && value <= 1.0, "a number above 0 and up to 1")
}

fn min_p(typed: &str) -> Result<f32, String> {
    number(typed, |value| (0.0..=1.0).contains(&value), "a number from 0 to 1")
}

pub fn number(typed: &str, in_range: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    match typed.parse::<f32>() {
        // Adding zero turns -0 into 0, which a kernel may tell apart.
        Ok(value) if value.is_finite() && in_range(value) => Ok(value + 0.0),
        _ => Err(format!("it should be {expected}")),
    }
}

fn top_k(typed: &str) -> Result<u32, String> {
    integer(typed, 1, i32::MAX as u32)
}

pub fn max_new_tokens(typed: &str) -> Result<usize, String> {
    integer(typed, 1, i32::MAX as usize)
}

pub fn seed(typed: &str) -> Result<u64, String> {
    integer(typed, 0, u64::MAX)
}
