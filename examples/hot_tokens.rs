//! A draft vocabulary from texts like those that will be generated: `cargo run --release --example hot_tokens MODEL COUNT TEXT... > hot.json`,
//! then `smart-run generate --model MODEL --draft DRAFTER --draft-vocab hot.json ...`.
//!
//! Counts the tokens of the text files and prints the ids of the COUNT most frequent as a JSON array; where the texts have fewer, tokens with
//! low ids follow. On stderr: which share of the texts these tokens are.

use std::cmp::Reverse;
use std::path::Path;
use std::{env, fs};

use smart_run::text::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, count, texts @ ..] = arguments.as_slice() else {
        return Err("give a model folder, a number of tokens and text files".into());
    };
    let count: usize = count.parse()?;
    let tokenizer = Tokenizer::open(&Path::new(model).into())?.ok_or("the model has no tokenizer")?;
    // Behind the seen tokens all others, by id.
    let mut frequencies: Vec<(u64, i32)> = (0..tokenizer.num_ids() as i32).map(|id| (0, id)).collect();
    for path in texts {
        for id in tokenizer.encode(&fs::read_to_string(path)?, false)? {
            frequencies[id as usize].0 += 1;
        }
    }
    frequencies.sort_by_key(|&(frequency, id)| (Reverse(frequency), id));
    frequencies.truncate(count);
    let all: u64 = frequencies.iter().map(|&(frequency, _)| frequency).sum();
    eprintln!("{} tokens, seen {all} times", frequencies.len());
    let ids: Vec<i32> = frequencies.into_iter().map(|(_, id)| id).collect();
    println!("{}", serde_json::to_string(&ids)?);
    Ok(())
}
