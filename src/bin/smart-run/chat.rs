//! `smart-run chat`: a conversation at the terminal, or over a pipe, a line a message.

mod session;
mod tree;

use std::io::{BufRead, IsTerminal, Read};

use smart_run::Result;
use smart_run::config::ModelConfig;
use smart_run::image::Patches;
use smart_run::text::{ChatTemplate, StopStrings, Tokenizer};
use smart_run::{Error, engine::FinishReason};

use crate::args::ChatArgs;
use crate::generate::Finish;
use crate::interrupt;
use crate::loading::{self, Models};
use crate::output::print_now;
use crate::pictures::PictureFiles;

use session::Session;

/// Longest message.
const MAX_LINE_BYTES: u64 = 1 << 20;

const HELP: &str = "\
/image F show the picture in file F with the next message
/reset   forget the conversation, but not the system message
/tree    the draft tree of the last round: every token with its chance (q given its parent's, P in all) and what became of it
/stats   speed and rounds so far, and how full the context is
/help    this
/exit    end, as the end of input does
Ctrl-C stops an answer; while none is running, it ends the program.
";

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<()> {
    let models = Models::of(&args.models)?;
    let config = ModelConfig::from_hf(&models.target)?;
    let Some(tokenizer) = Tokenizer::open(&models.target)? else {
        return Err(Error::format(models.target.name(), "no tokenizer.json here, which a chat needs"));
    };
    let Some(template) = ChatTemplate::open(&models.target)? else {
        return Err(Error::format(
            models.target.name(),
            "no chat template here (chat_template.jinja, or in tokenizer_config.json): this model was not trained to chat; \
             `smart-run generate` completes text without one",
        ));
    };
    // A model that sees no pictures is a chat partner all the same, until it is sent one.
    let pictures = config.vision.as_ref().map(|_| PictureFiles::of(&models.target, &config)).transpose()?;
    let waiting = PictureFiles::open_all(&models.target, &config, &args.images)?;
    let stops = StopStrings::new(args.stop.clone())?;
    let mut builder = models.builder(&args.models);
    if let Some(policy) = args.policy {
        builder = builder.policy(policy);
    }
    interrupt::listen();
    let engine = loading::build(builder)?;
    let mut session = Session::new(engine, tokenizer, template, stops, args);
    session.show(waiting);
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("/help lists the commands");
    }
    loop {
        if terminal {
            print_now("> ")?;
        }
        interrupt::set_idle(true);
        let line = read_line()?;
        interrupt::set_idle(false);
        let Some(line) = line else {
            return if terminal { print_now("\n") } else { Ok(()) };
        };
        match line.trim() {
            "" => (),
            "/exit" => return Ok(()),
            "/reset" => session.reset(),
            "/tree" => print_now(&session.tree()?)?,
            "/stats" => print_now(&session.stats())?,
            "/help" => print_now(HELP)?,
            command if first_word(command) == "/image" => match open(pictures.as_ref(), command) {
                Ok(picture) => session.show([picture]),
                Err(error) => eprintln!("smart-run: {error}"),
            },
            command if command.starts_with('/') => {
                eprintln!("smart-run: {}: no such command; /help lists them", first_word(command));
            }
            _ => match session.answer(&line, print_now) {
                Ok(finish) => {
                    print_now("\n")?;
                    match finish {
                        Finish::Engine(FinishReason::Length) => eprintln!("({})", session.why_cut()),
                        Finish::Interrupted => eprintln!("(stopped)"),
                        _ => (),
                    }
                }
                // What was said cannot be answered; the conversation goes on as if it had not been.
                Err(error) if error.is_input() && !is_broken_pipe(&error) => eprintln!("smart-run: {error}"),
                Err(error) => return Err(error),
            },
        }
        interrupt::set_idle(false);
    }
}

/// The picture that `/image FILE` names.
fn open(pictures: Option<&PictureFiles>, command: &str) -> Result<Patches> {
    let file = command.trim_start_matches("/image").trim();
    match pictures {
        _ if file.is_empty() => Err(Error::Input("/image needs a file".into())),
        Some(pictures) => pictures.open(file.as_ref()),
        None => Err(Error::Input("this model reads text alone: it sees no pictures".into())),
    }
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { .. })
}

/// The next line without its end; `None` at the end of input.
fn read_line() -> Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut input = std::io::stdin().lock().take(MAX_LINE_BYTES + 1);
    let read = input.read_until(b'\n', &mut bytes).map_err(|error| Error::io("standard input", error))?;
    if read == 0 {
        return Ok(None);
    }
    if bytes.len() as u64 > MAX_LINE_BYTES {
        return Err(Error::format("standard input", "a message is longer than 1 MiB"));
    }
    let line =
        String::from_utf8(bytes).map_err(|_| Error::format("standard input", "this is not UTF-8 text"))?;
    Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
}
