//! `POST /v1/chat/completions`: a conversation, answered.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::answers::{self, Answer, Format};
use super::app::Serving;
use super::conversation::Conversation;
use super::errors::ApiError;
use super::fields::Fields;
use super::generation::{Finish, Generation, Piece, check_choices};
use super::logprobs;
use super::parameters::Parameters;
use super::pictures;
use super::tool_calls::{Parsed, ToolParser};
use crate::engine::{Request, TokenLogprobs};

/// A chat.
pub(super) struct Asked {
    parameters: Parameters,
    prompts: Vec<Request>,
    tools: Option<ToolParser>,
    single_call: bool,
}

impl answers::Asked for Asked {
    const ID_PREFIX: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";

    fn read(bytes: &[u8], serving: &Serving) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(bytes)?;
        let limits = serving.client.limits();
        let mut parameters =
            Parameters::read(&mut fields, &serving.model, limits.config().geometry.vocab_size)?;
        parameters.read_chat_logprobs(&mut fields)?;
        parameters.default_max_tokens(limits.max_context)?;
        check_choices(1, parameters.n, serving)?;
        let conversation = Conversation::read(&mut fields, serving)?;
        if let Some(call) = conversation.enforced_call(&serving.model)?
            && parameters.settings.grammar.replace(call).is_some()
        {
            let reason =
                "response_format and an enforced tool_choice exclude each other: an answer is either";
            return Err(ApiError::field("response_format", reason));
        }
        let single_call = conversation.single_call;
        let tools = conversation.tools.as_ref().zip(serving.model.tools);
        let tools = tools.map(|(tools, format)| ToolParser::new(format, tools));
        let (ids, files) = conversation.prompt(serving)?;
        let room = limits.max_context - ids.len();
        let pictures = pictures::prepare(files, serving)?;
        let prompts = vec![Request { pictures, ..parameters.request(ids, room) }];
        Ok(Self { parameters, prompts, tools, single_call })
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn take_prompts(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.prompts)
    }

    fn format(self, serving: Arc<Serving>, generation: &Generation) -> impl Format {
        ChatFormat {
            serving,
            id: generation.id().to_owned(),
            wants_logprobs: self.parameters.settings.logprobs.is_some(),
            num_calls: vec![0; generation.num_choices()],
            parsers: vec![self.tools; generation.num_choices()],
            single_call: self.single_call,
        }
    }
}

/// `choices` of chats.
struct ChatFormat {
    serving: Arc<Serving>,
    id: String,
    wants_logprobs: bool,
    /// By choice; `None` where there are no tools to call.
    parsers: Vec<Option<ToolParser>>,
    /// Calls made, by choice.
    num_calls: Vec<usize>,
    single_call: bool,
}

impl ChatFormat {
    /// Text and calls of the next piece of a choice.
    fn parse(&mut self, choice: usize, text: &str, ends: bool) -> (String, Vec<Value>) {
        let Some(parser) = &mut self.parsers[choice] else { return (text.to_owned(), Vec::new()) };
        let Parsed { mut content, mut calls } = parser.push(text);
        if ends {
            let rest = parser.finish();
            content.push_str(&rest.content);
            calls.extend(rest.calls);
        }
        let mut values = Vec::new();
        for call in calls {
            let index = self.num_calls[choice];
            if self.single_call && index > 0 {
                break;
            }
            self.num_calls[choice] += 1;
            values.push(json!({
                "index": index,
                "id": format!("call_{}_{choice}_{index}", self.id),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }));
        }
        (content, values)
    }

    fn finish_reason(&self, choice: usize, finish: Finish) -> &'static str {
        match finish {
            Finish::Stop if self.num_calls[choice] > 0 => "tool_calls",
            finish => finish.name(),
        }
    }

    fn logprobs(&self, tokens: &[(i32, TokenLogprobs)]) -> Result<Value, ApiError> {
        if self.wants_logprobs { logprobs::chat(&self.serving.model.texts, tokens) } else { Ok(Value::Null) }
    }
}

impl Format for ChatFormat {
    fn opening(&mut self, choice: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn delta(&mut self, piece: &Piece) -> Result<Option<Value>, ApiError> {
        let (content, calls) = self.parse(piece.choice, &piece.text, piece.finish.is_some());
        let says_nothing = content.is_empty()
            && calls.is_empty()
            && piece.logprobs.is_empty()
            && piece.finish.is_none()
            && piece.round.is_none();
        if says_nothing {
            return Ok(None);
        }
        let mut delta = Map::new();
        if !content.is_empty() {
            delta.insert("content".into(), content.into());
        }
        if !calls.is_empty() {
            delta.insert("tool_calls".into(), calls.into());
        }
        Ok(Some(json!({
            "index": piece.choice,
            "delta": delta,
            "logprobs": self.logprobs(&piece.logprobs)?,
            "finish_reason": piece.finish.map(|finish| self.finish_reason(piece.choice, finish)),
        })))
    }

    fn whole(&mut self, answer: Answer) -> Result<Value, ApiError> {
        let (content, mut calls) = self.parse(answer.choice, &answer.text, true);
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !calls.is_empty() {
            if content.is_empty() {
                message["content"] = Value::Null;
            }
            // Only pieces of a stream need to say which call they belong to.
            calls.iter_mut().filter_map(Value::as_object_mut).for_each(|call| _ = call.remove("index"));
            message["tool_calls"] = calls.into();
        }
        Ok(json!({
            "index": answer.choice,
            "message": message,
            "logprobs": self.logprobs(&answer.logprobs)?,
            "finish_reason": answer.finish.map(|finish| self.finish_reason(answer.choice, finish)),
        }))
    }
}
