//! `smart-run`: the command-line program.

mod args;

use std::io::Write;
use std::process::ExitCode;

use args::{Command, Stop};
use smart_run::{Error, Result};

/// Exit code of a run that failed.
const RUN_FAILED: u8 = 1;
/// Exit code of bad usage or bad input.
const BAD_INPUT: u8 = 2;

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
            return ExitCode::from(BAD_INPUT);
        }
    };
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smart-run: {error}");
            ExitCode::from(if error.is_input() { BAD_INPUT } else { RUN_FAILED })
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Demo | Command::Generate(_) => Err(Error::Device("no engine is built in yet".into())),
    }
}
