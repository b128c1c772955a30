//! `smart-run`: tree speculative decoding from the command line.
//!
//! Exit codes are decided here: 0 done, 1 a failure at run time, 2 bad usage or bad input, 130 interrupted.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod convert;
mod demo;
mod demo_model;
mod generate;
mod inspect;
mod interrupt;
mod loading;
mod output;
mod pictures;
mod plots;
mod profile;
mod replay;
mod report;
mod serve;
mod trace;

use std::io::Write;
use std::process::ExitCode;

use smart_run::Error;

use crate::args::{Command, Stop};

fn main() -> ExitCode {
    smart_run::text::silence_fenced_panics();
    let command = match args::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(Stop::Answer(text)) => {
            // A reader that has closed the pipe has seen enough.
            let _ = write!(std::io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(Stop::Usage(sentence)) => {
            eprintln!("smart-run: {sentence}");
            return ExitCode::from(2);
        }
    };
    match &command {
        Command::Serve(args) => serve::log(args.log),
        _ => tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_max_level(tracing::Level::WARN)
            .without_time()
            .with_target(false)
            .init(),
    }
    let outcome = match command {
        Command::Demo => demo::run(),
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Serve(args) => serve::run(args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Convert(args) => convert::run(&args),
    };
    match outcome {
        Ok(()) if interrupt::requested() => ExitCode::from(130),
        Ok(()) => ExitCode::SUCCESS,
        // The reader has gone (`smart-run ... | head`): nobody is left to tell.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smart-run: {error}");
            ExitCode::from(if error.is_input() { 2 } else { 1 })
        }
    }
}
