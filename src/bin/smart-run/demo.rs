//! The demo: the embedded pair completes a prompt under SMART and under plain decoding.

use smart_run::Result;
use smart_run::control::Policy;
use smart_run::device::DeviceChoice;
use smart_run::engine::{Engine, Request, Stats};
use smart_run::sampling::SamplingParams;
use smart_run::text::{StopStrings, Tokenizer};

use crate::generate::complete;
use crate::output::print_now;
use crate::{demo_model, interrupt, loading};

/// From the held-out part of the corpus's domain: a class that the model has not seen.
const PROMPT: &str =
    "class Counter:\n    \"\"\"Count hashable items.\"\"\"\n\n    def __init__(self, items=None):\n";
const MAX_NEW_TOKENS: usize = 256;
const TEMPERATURE: f32 = 0.7;
const SEED: u64 = 7;

/// Runs the demo on a GPU if there is one, else on the host driver.
pub fn run() -> Result<()> {
    let (target, drafter) = demo_model::pair()?;
    let Some(tokenizer) = Tokenizer::open(&target)? else { return Ok(()) };
    interrupt::listen();
    let prompt = tokenizer.encode(PROMPT, true)?;
    let sampling = SamplingParams { temperature: TEMPERATURE, seed: SEED, ..SamplingParams::default() };
    let request = Request { sampling, ignore_eos: true, ..Request::new(prompt, MAX_NEW_TOKENS) };
    let run = |policy: Policy, show: fn(&str) -> Result<()>| -> Result<(Vec<i32>, Stats, String)> {
        let builder = Engine::builder(target.clone()).drafter(drafter.clone()).device(DeviceChoice::Auto);
        let mut engine = loading::build(builder.policy(policy).max_context(1024))?;
        let done = complete(&mut engine, request.clone(), Some(&tokenizer), &StopStrings::default(), show)?;
        Ok((done.tokens, engine.stats().clone(), engine.device().name().to_owned()))
    };
    print_now(PROMPT)?;
    let (smart_tokens, smart, device) = run(Policy::Smart, print_now)?;
    print_now("\n")?;
    if interrupt::requested() {
        return Ok(());
    }
    let (plain_tokens, plain, _) = run(Policy::Plain, |_| Ok(()))?;
    if interrupt::requested() {
        return Ok(());
    }
    let row = |name: &str, stats: &Stats| {
        let share = stats.control_ms / (stats.decode_ms.max(f64::MIN_POSITIVE)) * 100.0;
        format!(
            "{name:8}{:>10.1}{:>18.2}{:>17.1}{:>15.2} %\n",
            stats.tokens_per_second(),
            stats.mean_accepted_len(),
            stats.mean_nodes(),
            share
        )
    };
    let same = if smart_tokens == plain_tokens {
        format!("Both texts are equal, token for token ({} tokens).", smart_tokens.len())
    } else {
        "THE TEXTS DIFFER: this is a bug, please report it.".to_owned()
    };
    print_now(&format!(
        "\n{device}, temperature {TEMPERATURE}, seed {SEED}\n\
         {:8}{:>10}{:>18}{:>17}{:>17}\n{}{}\nSMART is {:.2}x as fast as plain decoding. {same}\n",
        "policy",
        "tokens/s",
        "accepted/round",
        "nodes/round",
        "controller",
        row("plain", &plain),
        row("smart", &smart),
        smart.tokens_per_second() / plain.tokens_per_second().max(f64::MIN_POSITIVE),
    ))
}
