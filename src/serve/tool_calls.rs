//! Tool calls within an answer's text, in the formats that templates teach. What is not surely a call stays text.

use serde_json::Value;

use crate::text::{ChatTemplate, GrammarSpec};

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToolFormat {
    /// Hermes, Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, behind text if there is any.
    Tagged,
    /// Llama 3.1 to 3.3: the whole answer is `{"name": ..., "parameters": {...}}`, several with `;` between.
    Bare,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

impl ToolFormat {
    /// What the template shows of the model's way.
    pub fn of(template: &ChatTemplate) -> Option<Self> {
        if template.mentions(OPEN) {
            Some(Self::Tagged)
        } else if template.mentions("ipython") && template.mentions("\"parameters\"") {
            Some(Self::Bare)
        } else {
            None
        }
    }

    /// What a call's arguments are called.
    pub fn arguments_name(self) -> &'static str {
        match self {
            Self::Tagged => "arguments",
            Self::Bare => "parameters",
        }
    }

    /// An answer that is a call, which is JSON of this `schema`, or with `many` perhaps several; [`ToolFormat::Bare`] answers make one.
    pub fn spec(self, schema: Value, many: bool) -> GrammarSpec {
        match self {
            // With the line ends that these models were trained with.
            Self::Tagged => GrammarSpec::TaggedJson {
                open: format!("{OPEN}\n"),
                schema,
                close: format!("\n{CLOSE}"),
                many,
            },
            Self::Bare => GrammarSpec::JsonSchema(schema),
        }
    }
}

/// A call that an answer makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToolCall {
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
}

/// What a piece of the answer turned out to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    pub content: String,
    pub calls: Vec<ToolCall>,
}

/// Tells calls from text as an answer grows, holding back what may become a call.
#[derive(Clone, Debug)]
pub(super) struct ToolParser {
    format: ToolFormat,
    /// The functions that there are.
    names: Vec<String>,
    held: String,
    /// Text that is no call has come, after which there is no [`ToolFormat::Bare`] call.
    is_text: bool,
    /// Nothing but white space has come since the latest call: it says nothing.
    after_call: bool,
}

impl ToolParser {
    /// For an answer that may call `tools`, a list of functions.
    pub fn new(format: ToolFormat, tools: &Value) -> Self {
        let name = |tool: &Value| Some(tool.pointer("/function/name")?.as_str()?.to_owned());
        let names = tools.as_array().into_iter().flatten().filter_map(name).collect();
        Self { format, names, held: String::new(), is_text: false, after_call: false }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Parsed {
        self.held.push_str(text);
        match self.format {
            ToolFormat::Tagged => self.take_tagged(),
            ToolFormat::Bare => {
                self.is_text |= !matches!(self.held.trim_start().chars().next(), None | Some('{'));
                let content = if self.is_text { std::mem::take(&mut self.held) } else { String::new() };
                Parsed { content, calls: Vec::new() }
            }
        }
    }

    /// Ends the answer.
    pub fn finish(&mut self) -> Parsed {
        let held = std::mem::take(&mut self.held);
        let calls = match self.format {
            // An end-of-sequence token may stand in the place of the closing tag.
            ToolFormat::Tagged => {
                held.strip_prefix(OPEN).and_then(|call| self.call(call).map(|call| vec![call]))
            }
            ToolFormat::Bare if self.is_text => None,
            ToolFormat::Bare => self.bare_calls(&held),
        };
        match calls {
            Some(calls) => Parsed { content: String::new(), calls },
            None if self.after_call && held.trim().is_empty() => Parsed::default(),
            None => Parsed { content: held, calls: Vec::new() },
        }
    }

    fn take_tagged(&mut self) -> Parsed {
        let mut parsed = Parsed::default();
        loop {
            let Some(start) = self.held.find(OPEN) else {
                let certain = self.held.len() - partial_tag(&self.held);
                self.take_content(certain, &mut parsed);
                return parsed;
            };
            self.take_content(start, &mut parsed);
            if self.after_call {
                // White space between calls.
                let start = self.held.find(OPEN).unwrap_or(0);
                self.held.drain(..start);
            }
            let Some(end) = self.held.find(CLOSE) else { return parsed };
            let whole: String = self.held.drain(..end + CLOSE.len()).collect();
            match self.call(&whole[OPEN.len()..end]) {
                Some(call) => {
                    self.after_call = true;
                    parsed.calls.push(call);
                }
                None => {
                    self.after_call = false;
                    parsed.content.push_str(&whole);
                }
            }
        }
    }

    /// Hands out the first `len` bytes of what is held, unless they may be white space between calls.
    fn take_content(&mut self, len: usize, parsed: &mut Parsed) {
        if self.after_call && self.held[..len].trim().is_empty() {
            return;
        }
        self.after_call = false;
        parsed.content.extend(self.held.drain(..len));
    }

    fn bare_calls(&self, text: &str) -> Option<Vec<ToolCall>> {
        let mut calls = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let value = values.next()?.ok()?;
            calls.push(self.call_of(&value)?);
            let at = values.byte_offset();
            rest = rest[at..].trim_start();
            rest = rest.strip_prefix(';').unwrap_or(rest).trim_start();
        }
        Some(calls).filter(|calls| !calls.is_empty())
    }

    fn call(&self, json: &str) -> Option<ToolCall> {
        self.call_of(&serde_json::from_str(json.trim()).ok()?)
    }

    /// A call of a function that there is.
    fn call_of(&self, value: &Value) -> Option<ToolCall> {
        let name = value.get("name")?.as_str().filter(|name| self.names.iter().any(|known| known == name))?;
        let arguments = match value.get(self.format.arguments_name())? {
            arguments @ Value::Object(_) => arguments.to_string(),
            _ => return None,
        };
        Some(ToolCall { name: name.to_owned(), arguments })
    }
}

/// Bytes at the end of `text` that may begin [`OPEN`].
fn partial_tag(text: &str) -> usize {
    (1..OPEN.len()).rev().find(|&len| text.ends_with(&OPEN[..len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What comes of `text`, whichever way it is cut.
    fn parsed(format: ToolFormat, text: &str) -> Parsed {
        let tools = json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]);
        let characters: Vec<char> = text.chars().collect();
        let run = |size: usize| {
            let mut parser = ToolParser::new(format, &tools);
            let mut all = Parsed::default();
            let pieces = characters.chunks(size).map(|piece| piece.iter().collect::<String>());
            let pieces: Vec<String> = pieces.collect();
            let mut add = |parsed: Parsed| {
                all.content.push_str(&parsed.content);
                all.calls.extend(parsed.calls);
            };
            pieces.iter().for_each(|piece| add(parser.push(piece)));
            add(parser.finish());
            all
        };
        let whole = run(characters.len().max(1));
        for size in 1..characters.len() {
            assert_eq!(run(size), whole, "pieces of {size}");
        }
        whole
    }

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn tagged_calls_stand_behind_text() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": [2]}}\n</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {}}";
        let expected = Parsed {
            content: "Let me see.\n".into(),
            calls: vec![call("f", "{\"b\":1,\"a\":[2]}"), call("g", "{}")],
        };
        assert_eq!(parsed(ToolFormat::Tagged, text), expected);
        let text = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n and\n <b> \n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>\n";
        let expected =
            Parsed { content: "\n and\n <b> \n".into(), calls: vec![call("f", "{}"), call("g", "{}")] };
        assert_eq!(parsed(ToolFormat::Tagged, text), expected);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "a < b <tool",
            "<tool_call>nonsense</tool_call> and more",
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"f\"",
            "<tool_call>{\"name\": \"f\", \"arguments\": \"text\"}</tool_call>",
        ] {
            assert_eq!(parsed(ToolFormat::Tagged, text), Parsed { content: text.into(), calls: vec![] });
        }
        for text in [
            "It is {\"name\": \"f\"}",
            "{\"name\": \"f\"",
            "{\"a\": 1}",
            "",
            "  ",
            "{\"name\": \"h\", \"parameters\": {}}",
        ] {
            assert_eq!(parsed(ToolFormat::Bare, text), Parsed { content: text.into(), calls: vec![] });
        }
    }

    #[test]
    fn bare_calls_are_the_whole_answer() {
        let text =
            " {\"name\": \"f\", \"parameters\": {\"x\": \"é\"}}; {\"name\": \"g\", \"parameters\": {}}";
        let expected =
            Parsed { content: String::new(), calls: vec![call("f", "{\"x\":\"é\"}"), call("g", "{}")] };
        assert_eq!(parsed(ToolFormat::Bare, text), expected);
    }
}
