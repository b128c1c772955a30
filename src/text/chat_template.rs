//! Chat templates: a conversation as the text that a model was trained to continue.
//!
//! A model's template is a Jinja program of strangers. It is run by the crate `minijinja` in an environment that behaves as the
//! one of transformers' `apply_chat_template`, with a bound on its work and memory, and without access to files.

mod bounded;
mod generation;
mod json;
mod python;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde_json::Value;

use bounded::BoundedText;

use super::Message;
use crate::config::ModelSource;
use crate::{Error, Result};

/// Template of its own file (transformers 4.48 and newer).
const OWN_FILE: &str = "chat_template.jinja";
/// Configurations of tokenizer and processor with a template in a field, in the order that transformers looks.
const CONFIGS: [&str; 2] = ["tokenizer_config.json", "chat_template.json"];
const DEFAULT: &str = "default";
/// The template of a list that transformers takes where tools are given.
const WITH_TOOLS: &str = "tool_use";
/// Special tokens by the names that templates know them under.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

/// Largest template; published ones are below 40 KB.
const MAX_SOURCE_BYTES: usize = 128 << 10;
/// Work of a rendering (an instruction, or 64 bytes made), how much more for each byte of the conversation, and the most. Memory
/// is bounded with it.
const FUEL: usize = 1 << 18;
const FUEL_PER_BYTE: usize = 16;
const MAX_FUEL: usize = 1 << 21;
/// Nested blocks and calls; a macro counts 4.
const MAX_RECURSION: usize = 200;
/// Text of a rendering, and how much more for each byte of the conversation.
const MAX_OUTPUT_BYTES: usize = 1 << 22;
const MAX_OUTPUT_PER_BYTE: usize = 8;

/// A model's chat template. Rendering twice gives the same text, but for templates that ask for the date.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    /// Holds the templates under their names.
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    /// What `strftime_now` tells, in place of the local time of the call.
    time: Option<SystemTime>,
}

impl ChatTemplate {
    /// The chat template of `source`: its `chat_template.jinja`, else the field `chat_template` of its `tokenizer_config.json`, else
    /// of its `chat_template.json`; `None` if it has none. A list of named templates counts with its `default`, and with its
    /// `tool_use` for conversations with tools. Special tokens come from `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`Error::Format`]: a file that is not JSON, a template that is no Jinja, or that uses what is not here: `include`, `import`,
    /// `extends` and `block` (no template has files to read), and tags of other programs.
    pub fn open(source: &ModelSource) -> Result<Option<Self>> {
        let Some((file, templates)) = find(source)? else { return Ok(None) };
        let path = source.path(file);
        if templates.iter().any(|(_, template)| template.len() > MAX_SOURCE_BYTES) {
            return Err(Error::format(path, "the chat template is longer than 128 KiB"));
        }
        let longest = templates.iter().map(|(_, template)| template.len()).max().unwrap_or(0);
        let file_path = path.clone();
        let compiled = bounded::run(longest * bounded::STACK_PER_SOURCE_BYTE, 0, move || {
            let mut environment = environment();
            for (name, template) in templates {
                // Jinja reads all line ends as one.
                let template = template.replace("\r\n", "\n").replace('\r', "\n");
                let template = generation::without_generation(&template).into_owned();
                environment
                    .add_template_owned(name, template)
                    .map_err(|error| unusable(&file_path, &error))?;
            }
            Ok(environment)
        })?;
        let environment = compiled.unwrap_or_else(|| Err(too_long(&path)))?;
        if environment.get_template(DEFAULT).is_err() {
            return Err(Error::format(
                path,
                "the list `chat_template` has no template of the name \"default\"",
            ));
        }
        Ok(Some(Self { path, environment, special_tokens: special_tokens(source)?, time: None }))
    }

    /// From now on `strftime_now` tells this time, in UTC.
    pub fn at(self, time: SystemTime) -> Self {
        Self { time: Some(time), ..self }
    }

    /// The file that the template is from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `text` stands in the template, as the mark of a way to call tools, say.
    pub fn mentions(&self, text: &str) -> bool {
        self.environment.templates().any(|(_, template)| template.source().contains(text))
    }

    /// The text of a conversation; `tools` is a list of function descriptions, `add_generation_prompt` appends what the answer
    /// begins after. All special tokens are in the text: encode it with
    /// [`Tokenizer::encode(text, false)`](super::Tokenizer::encode).
    ///
    /// # Errors
    /// [`Error::Input`] for an empty conversation, and with the template's own words where it refuses one (roles that do not alternate, say);
    /// [`Error::Format`] where it fails, or asks for more than a bounded amount of work, memory or text.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::Input("the conversation is empty: at least one message is needed".into()));
        }
        let messages = serde_json::to_value(messages).map_err(|error| Error::Input(error.to_string()))?;
        let messages: Vec<Value> = match messages {
            Value::Array(messages) => messages.into_iter().map(as_template_sees).collect(),
            _ => Vec::new(),
        };
        let bytes = num_bytes(&messages) + tools.map_or(0, num_bytes);
        let fuel = FUEL.saturating_add(bytes.saturating_mul(FUEL_PER_BYTE)).min(MAX_FUEL);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel as u64));
        let time = self.time;
        environment.add_function("strftime_now", move |format: &str| strftime(time, format));
        let name = if tools.is_some() && environment.get_template(WITH_TOOLS).is_ok() {
            WITH_TOOLS
        } else {
            DEFAULT
        };
        let mut variables: BTreeMap<String, minijinja::Value> = BTreeMap::from([
            ("messages".into(), minijinja::Value::from(Serde(&messages))),
            ("tools".into(), minijinja::Value::from(Serde(tools))),
            ("documents".into(), minijinja::Value::from(())),
            ("add_generation_prompt".into(), add_generation_prompt.into()),
        ]);
        variables
            .extend(self.special_tokens.iter().map(|(name, token)| (name.clone(), token.as_str().into())));
        let path = self.path.clone();
        let rendered = bounded::run(fuel * bounded::STACK_PER_FUEL, bytes, move || {
            let mut out =
                BoundedText::new(MAX_OUTPUT_BYTES.saturating_add(bytes.saturating_mul(MAX_OUTPUT_PER_BYTE)));
            let context = minijinja::Value::from_pairs(variables);
            // An error may hold values, too: they end on this thread.
            let template = environment.get_template(name).map_err(|error| failure(&path, &error))?;
            template.render_captured_to(context, &mut out).map_err(|error| failure(&path, &error))?;
            Ok(out.into_text())
        })?;
        rendered.unwrap_or_else(|| Err(too_long(&self.path)))
    }
}

/// The file of `source` that holds a chat template, if one does.
///
/// # Errors
/// A configuration that is not valid JSON; a template that is not text.
pub fn chat_template_file(source: &ModelSource) -> Result<Option<&'static str>> {
    Ok(find(source)?.map(|(file, _)| file))
}

/// Templates with their names.
type NamedTemplates = Vec<(String, String)>;

/// The file with the chat template, and its templates.
fn find(source: &ModelSource) -> Result<Option<(&'static str, NamedTemplates)>> {
    if let Some(content) = source.read_optional(OWN_FILE)? {
        let text = String::from_utf8(content.into_owned())
            .map_err(|_| Error::format(source.path(OWN_FILE), "this is not UTF-8 text"))?;
        return Ok(Some((OWN_FILE, vec![(DEFAULT.into(), text)])));
    }
    for file in CONFIGS {
        let Some(mut json) = read_json(source, file)? else { continue };
        match json.get_mut("chat_template").map(Value::take) {
            None | Some(Value::Null) => (),
            Some(template) => {
                let templates = named_templates(template).ok_or_else(|| {
                    Error::format(
                        source.path(file),
                        "`chat_template` should be a text, or a list of objects with a `name` and a `template`",
                    )
                })?;
                return Ok(Some((file, templates)));
            }
        }
    }
    Ok(None)
}

fn named_templates(template: Value) -> Option<NamedTemplates> {
    match template {
        Value::String(text) => Some(vec![(DEFAULT.into(), text)]),
        Value::Array(list) => {
            let named = list.iter().map(|entry| {
                let text = |field: &str| entry.get(field)?.as_str().map(str::to_owned);
                Some((text("name")?, text("template")?))
            });
            // The others are for uses that are not ours, and need not be sound.
            named.collect::<Option<Vec<_>>>().map(|all| {
                all.into_iter().filter(|(name, _)| [DEFAULT, WITH_TOOLS].contains(&name.as_str())).collect()
            })
        }
        _ => None,
    }
}

fn read_json(source: &ModelSource, file: &str) -> Result<Option<Value>> {
    let Some(content) = source.read_optional(file)? else { return Ok(None) };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|error| Error::format(source.path(file), format!("this is not valid JSON: {error}")))
}

/// Special tokens by name: texts, or objects with a `content`.
fn special_tokens(source: &ModelSource) -> Result<BTreeMap<String, String>> {
    let mut tokens = BTreeMap::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(json) = read_json(source, file)? else { continue };
        for name in SPECIAL_TOKENS {
            match json.get(name) {
                None | Some(Value::Null) => (),
                Some(token) => {
                    let text =
                        token.as_str().or_else(|| token.get("content")?.as_str()).ok_or_else(|| {
                            Error::format(
                                source.path(file),
                                format!("`{name}` should be a text, or an object with a `content`"),
                            )
                        })?;
                    tokens.insert(name.to_owned(), text.to_owned());
                }
            }
        }
    }
    Ok(tokens)
}

/// A message as transformers passes it on: without fields that are null, and its reasoning under the names that templates read,
/// `reasoning_content`, and in a few `thinking`.
fn as_template_sees(mut message: Value) -> Value {
    let Some(fields) = message.as_object_mut() else { return message };
    fields.retain(|_, value| !value.is_null());
    let names = ["reasoning_content", "thinking", "reasoning"];
    let reasoning = names.iter().find_map(|name| fields.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    message
}

/// The environment of transformers' `apply_chat_template`, without templates.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // Debug information is copies of all variables.
    environment.set_debug(false);
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    match SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        Ok(syntax) => environment.set_syntax(syntax),
        Err(error) => unreachable!("the usual delimiters do not clash: {error}"),
    }
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("trim", python::trim);
    environment.add_filter("tojson", json::tojson);
    environment.add_function(
        "raise_exception",
        |words: Cow<'_, str>| -> std::result::Result<(), minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised")
                .with_source(Refusal(words.into_owned())))
        },
    );
    environment
}

/// What a template says by `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn strftime(time: Option<SystemTime>, format: &str) -> std::result::Result<String, minijinja::Error> {
    let now = match time {
        None => Ok(Zoned::now()),
        Some(time) => Timestamp::try_from(time).map(|time| time.to_zoned(TimeZone::UTC)),
    };
    now.and_then(|now| jiff::fmt::strtime::format(format, &now))
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// What went wrong, as one sentence.
fn failure(path: &Path, error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(Refusal(words)) = inner.downcast_ref() {
            return Error::Input(format!("the chat template refuses the conversation: {}", one_line(words)));
        }
        source = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel | ErrorKind::WriteFailure => too_long(path),
        _ => unusable(path, error),
    }
}

fn too_long(path: &Path) -> Error {
    Error::format(
        path,
        "this chat template takes too long, or makes too much text, for the conversation that it is given",
    )
}

fn unusable(path: &Path, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    Error::format(path, format!("this chat template is not usable: {line}{}", one_line(&what)))
}

/// `text` without line ends, and not too long for a sentence.
fn one_line(text: &str) -> String {
    let words: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(400) {
        Some((at, _)) => format!("{} ...", &words[..at]),
        None => words,
    }
}

/// Bytes of `value` as JSON.
fn num_bytes(value: &(impl serde::Serialize + ?Sized)) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

#[cfg(test)]
mod tests;
