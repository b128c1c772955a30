//! A pass: some requests through an engine, so many at a time, and what their rounds came to.

use std::collections::HashMap;

use smart_run::Result;
use smart_run::engine::{Engine, Request};
use smart_run::replay::Outcome;

use crate::interrupt;

/// Serves `requests` in order, `batch` at a time, and adds the rounds in which that many ran to `outcome`; the tokens of each request.
/// Empty if the user has had enough.
///
/// Rounds with fewer sequences (the last ones, and those in which a prompt takes the place of a text that has ended) are run for the texts' sake
/// but do not count: they say nothing of this batch size.
pub fn run(
    engine: &mut Engine,
    requests: &[Request],
    batch: usize,
    outcome: &mut Outcome,
) -> Result<Vec<Vec<i32>>> {
    let mut texts = vec![Vec::new(); requests.len()];
    let mut waiting = requests.iter().enumerate();
    let mut running = HashMap::new();
    loop {
        while running.len() < batch
            && let Some((index, request)) = waiting.next()
        {
            running.insert(engine.submit(request.clone())?, index);
        }
        if running.is_empty() {
            return Ok(texts);
        }
        let full = running.len() == batch;
        for emission in engine.step()? {
            if let Some(&index) = running.get(&emission.sequence) {
                texts[index].extend(emission.tokens);
            }
            if emission.finished.is_some() {
                running.remove(&emission.sequence);
            }
        }
        if full {
            engine.count_round(outcome);
        }
        if interrupt::requested() {
            running.keys().for_each(|&sequence| _ = engine.cancel(sequence));
            return Ok(Vec::new());
        }
    }
}
