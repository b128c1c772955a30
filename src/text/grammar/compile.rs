//! From a [`GrammarSpec`] to a parser at the beginning of its text, on a thread of its own.

use std::fmt::Display;
use std::sync::Arc;

use llguidance::Logger;
use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::earley::Parser;
use llguidance::earley::perf::ParserPerfCounters;
use llguidance::toktrie::TokEnv;

use super::limits::{MAX_SPEC_BYTES, PATIENCE, STACK_PER_BYTE, parser_limits};
use super::vocabulary::Vocabulary;
use super::{GrammarSpec, schema};
use crate::text::bounded;
use crate::{Error, Result, fence};

/// Longest message of the crate that is passed on.
const MAX_REASON_CHARS: usize = 200;

/// The parser of `spec` over `vocabulary`.
pub fn compile(vocabulary: &Arc<Vocabulary>, spec: &GrammarSpec) -> Result<Parser> {
    let what = match spec {
        GrammarSpec::JsonObject | GrammarSpec::JsonSchema(_) | GrammarSpec::TaggedJson { .. } => {
            "JSON schema"
        }
        GrammarSpec::Regex(_) => "regular expression",
        GrammarSpec::Lark(_) => "grammar",
    };
    let (grammar, num_bytes) = prepare(spec).map_err(Error::Input)?;
    let vocabulary = Arc::clone(vocabulary);
    let build = move || fence::fenced(|| build(&vocabulary, grammar));
    let parser = bounded::run("grammar", num_bytes * STACK_PER_BYTE, PATIENCE, build)?;
    let reason = match parser {
        Some(Some(Ok(parser))) => return Ok(parser),
        Some(Some(Err(reason))) => reason,
        Some(None) => "the parser gives up on it".into(),
        None => "it takes too long to compile; make it smaller".into(),
    };
    Err(Error::Input(format!("this {what} cannot be followed: {reason}")))
}

/// `spec` for the crate, and its length in bytes.
fn prepare(spec: &GrammarSpec) -> std::result::Result<(TopLevelGrammar, usize), String> {
    let check = |what: &str, text: &String| match text.len() {
        0 => Err(format!("the {what} is empty")),
        1..=MAX_SPEC_BYTES => Ok(text.len()),
        _ => Err(format!("the {what} is longer than {} KiB", MAX_SPEC_BYTES >> 10)),
    };
    match spec {
        GrammarSpec::JsonObject => prepare_schema(&schema::any_object()),
        GrammarSpec::JsonSchema(schema) => prepare_schema(schema),
        GrammarSpec::TaggedJson { open, schema, close, many } => {
            let (schema, num_bytes) = schema::prepare(schema)?;
            // Strings of this form are spelled as JSON's.
            let quoted = |text: &String| serde_json::Value::from(text.as_str()).to_string();
            let start = if *many { "one (\"\\n\" one)*" } else { "one" };
            let (open_text, close_text) = (quoted(open), quoted(close));
            let lark = format!("start: {start}\none: {open_text} json {close_text}\njson: %json {schema}\n");
            Ok((TopLevelGrammar::from_lark(lark), num_bytes + open.len() + close.len()))
        }
        GrammarSpec::Regex(regex) => {
            let num_bytes = check("regular expression", regex)?;
            // The crate would drop it.
            if regex.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1 {
                return Err("the regular expression ends within an escape: after its last `\\` a character is missing".into());
            }
            Ok((TopLevelGrammar::from_regex(regex), num_bytes))
        }
        GrammarSpec::Lark(lark) => {
            let num_bytes = check("grammar", lark)?;
            // Schemas have to pass `schema::prepare`, as arithmetic of the crate overflows in some.
            if lark.contains("%json") {
                return Err("the grammar embeds a JSON schema with `%json`, which is not supported: write rules, or ask for the \
                            schema alone"
                    .into());
            }
            Ok((TopLevelGrammar::from_lark(lark.clone()), num_bytes))
        }
    }
}

fn prepare_schema(schema: &serde_json::Value) -> std::result::Result<(TopLevelGrammar, usize), String> {
    let (schema, num_bytes) = schema::prepare(schema)?;
    Ok((TopLevelGrammar::from_json_schema(schema), num_bytes))
}

fn build(vocabulary: &Vocabulary, grammar: TopLevelGrammar) -> std::result::Result<Parser, String> {
    let tokens = || TokEnv::clone(&vocabulary.tokens);
    let (rules, lexemes) = GrammarInit::Serialized(grammar)
        .to_internal(Some(tokens()), parser_limits())
        .map_err(|error| one_sentence(&error))?;
    if !lexemes.can_rollback() {
        return Err("it has lexemes with `stop`, with `max_tokens` or up to the end of the text, which cannot be taken back \
                    as drafts are; `suffix` can"
            .into());
    }
    if lexemes.special_token_rx.is_some() {
        return Err("it names special tokens or tokens by number, but a text has neither".into());
    }
    let rules = GrammarInit::Internal(rules, lexemes)
        .to_cgrammar(None, &mut Logger::new(0, 0), parser_limits(), vocabulary.masks.extra_lexemes())
        .map_err(|error| one_sentence(&error))?;
    Parser::new(tokens(), rules, parser_limits(), Arc::new(ParserPerfCounters::default()))
        .map_err(|error| one_sentence(&error))
}

/// The crate's messages have several lines, among them excerpts with numbers and pointers.
fn one_sentence(error: &impl Display) -> String {
    let text = format!("{error:#}");
    if text.contains("coerce_one_of") {
        return "the options of a `oneOf` must exclude each other, say by a required property that is a `const` in each, and \
                be no references; `anyOf` takes any"
            .into();
    }
    let is_excerpt = |line: &&str| {
        let line = line.trim_start().trim_start_matches(|digit: char| digit.is_ascii_digit());
        line.trim_start().starts_with(['|', '^'])
    };
    let words: Vec<&str> =
        text.lines().filter(|line| !is_excerpt(line)).flat_map(str::split_whitespace).collect();
    let mut sentence = words.join(" ");
    if let Some((end, _)) = sentence.char_indices().nth(MAX_REASON_CHARS) {
        sentence.truncate(end);
        sentence.push_str(" ...");
    }
    sentence
}
