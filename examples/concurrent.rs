//! A hundred requests at once, on one engine, awaited: `cargo run --release --example concurrent`.
//!
//! Sixteen run at a time, the others wait in line; every answer is what its request would get alone.

use std::path::Path;
use std::time::{Duration, Instant};

use smart_run::engine::{Engine, Request};
use smart_run::sampling::SamplingParams;
use smart_run::service::{Client, Service, ServiceConfig};
use smart_run::text::Tokenizer;

const PROMPTS: [&str; 4] = ["import os\n", "class Stack:\n", "def main(args):\n", "for line in lines:\n"];

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let tokenizer = Tokenizer::open(&demo.join("target").into())?.ok_or("the demo pair has a tokenizer")?;
    let engine = Engine::builder(demo.join("target"))
        .drafter(demo.join("drafter"))
        .max_sequences(16)
        .max_context(256)
        .build()?;
    let service = Service::start(engine, ServiceConfig::default());
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let lengths = runtime.block_on(async {
        let ask = |i: usize| {
            let prompt = tokenizer.encode(PROMPTS[i % PROMPTS.len()], true)?;
            let sampling = SamplingParams { temperature: 0.7, seed: i as u64, ..SamplingParams::default() };
            let request = Request { sampling, ..Request::new(prompt, 40) };
            Ok::<_, smart_run::Error>(tokio::spawn(follow(service.client(), request, i)))
        };
        let tasks = (0..100).map(ask).collect::<Result<Vec<_>, _>>()?;
        let mut lengths = Vec::new();
        for task in tasks {
            lengths.push(task.await??);
        }
        Ok::<_, Failure>(lengths)
    })?;
    let snapshot = service.client().snapshot();
    println!(
        "{} tokens for {} requests in {:.1} s; {:.2} draft tokens accepted a round, {:.1} nodes verified",
        lengths.iter().sum::<usize>(),
        lengths.len(),
        start.elapsed().as_secs_f64(),
        snapshot.stats.mean_accepted_len(),
        snapshot.stats.mean_nodes(),
    );
    service.shut_down(Duration::from_secs(1));
    Ok(())
}

/// Reads the tokens of each round as they come. Who stops reading drops `updates`, and with it the request.
async fn follow(client: Client, request: Request, number: usize) -> Result<usize, Failure> {
    let mut updates = client.submit(request)?;
    let mut length = 0;
    while let Some(update) = updates.next().await {
        let update = update?;
        length += update.tokens.len();
        if number == 0 {
            println!("request 0: {} tokens, {} of them drafted", update.tokens.len(), update.accepted);
        }
    }
    Ok(length)
}
