//! [`Conversation`]: messages, pictures and tools of a chat request, and the prompt that they make.

use serde_json::Value;

use super::app::Serving;
use super::completions::check_length;
use super::constraint;
use super::errors::ApiError;
use super::fields::Fields;
use super::model::ServedModel;
use super::pictures::{self, PictureFile};
use super::tool_choice::ToolChoice;
use crate::engine::expand_prompt;
use crate::text::{Grammar, Message};

/// Most tools.
const MAX_TOOLS: usize = 128;

/// What was said so far.
pub(super) struct Conversation {
    messages: Vec<Message>,
    pictures: Vec<PictureFile>,
    /// Descriptions of functions, not empty.
    pub tools: Option<Value>,
    /// Only the first call of an answer counts.
    pub single_call: bool,
    choice: ToolChoice,
}

impl Conversation {
    /// Reads `messages`, `tools` and what goes with them.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn read(fields: &mut Fields, serving: &Serving) -> Result<Self, ApiError> {
        let list = match fields.take("messages") {
            Some(Value::Array(list)) if !list.is_empty() => list,
            Some(_) => return Err(fields.wrong("messages", "a list of messages, not empty")),
            None => {
                let reason = match fields.take("prompt") {
                    Some(_) => "messages is missing: a prompt is for /v1/completions",
                    None => "messages is missing: give a list of messages",
                };
                return Err(ApiError::field("messages", reason));
            }
        };
        let (mut messages, mut pictures) = (Vec::new(), Vec::new());
        for (index, mut message) in list.into_iter().enumerate() {
            let name = format!("messages[{index}]");
            pictures::take(&mut message, &name, serving, &mut pictures)?;
            if serving.model.images.is_none() {
                join_texts(&mut message);
            }
            messages.push(read_message(message, &name)?);
        }
        let choice = ToolChoice::read(fields)?;
        let tools = tools(fields)?.filter(|_| choice != ToolChoice::None);
        let single_call = fields.flag("parallel_tool_calls")? == Some(false);
        Ok(Self { messages, pictures, tools, single_call, choice })
    }

    /// What the answer has to be where it must call a tool.
    ///
    /// # Errors
    /// 400: there is no such tool, what it takes is no schema that can be followed, or how the model writes calls is not known.
    pub fn enforced_call(&self, model: &ServedModel) -> Result<Option<Grammar>, ApiError> {
        let spec = self.choice.spec(self.tools.as_ref(), model.tools, !self.single_call)?;
        spec.map(|spec| constraint::compile(&spec, model, "tools")).transpose()
    }

    /// Token ids of the prompt, each picture as long as it is by its size, and the pictures, not decoded yet.
    ///
    /// # Errors
    /// 400: the model has no chat template, the template refuses, or there is more than the context holds.
    pub fn prompt(self, serving: &Serving) -> Result<(Vec<i32>, Vec<PictureFile>), ApiError> {
        let Some(template) = &serving.model.template else {
            return Err(ApiError::unsupported(
                "messages",
                "this model has no chat template: it continues text, see /v1/completions",
            ));
        };
        let of_messages = |error| ApiError::of("messages", error);
        let text = template.render(&self.messages, self.tools.as_ref(), true).map_err(of_messages)?;
        check_length(&text, "messages", serving)?;
        // The template writes all special tokens itself.
        let ids = serving.model.tokenizer.encode(&text, false).map_err(of_messages)?;
        let limits = serving.client.limits();
        let config = limits.config();
        serving.model.tokenizer.check_ids(&ids, config.geometry.vocab_size).map_err(of_messages)?;
        let ids = expand_prompt(config, &ids, &self.pictures).map_err(of_messages)?;
        if ids.len() >= limits.max_context {
            let reason = format!(
                "the conversation has {} tokens, which leaves no room for an answer in the context of {}",
                ids.len(),
                limits.max_context
            );
            return Err(ApiError::context_length("messages", reason));
        }
        Ok((ids, self.pictures))
    }
}

fn read_message(mut message: Value, name: &str) -> Result<Message, ApiError> {
    let Some(fields) = message.as_object_mut() else {
        return Err(ApiError::field(name, format!("{name} should be an object with a role and a content")));
    };
    match fields.get("role") {
        // OpenAI's newer name, which templates do not know.
        Some(role) if role == "developer" => _ = fields.insert("role".into(), "system".into()),
        Some(Value::String(_)) => (),
        _ => return Err(ApiError::field(format!("{name}.role"), format!("{name}.role should be a string"))),
    }
    let wrong_calls = || {
        let name = format!("{name}.tool_calls");
        let reason = format!(
            "{name} should be a list of calls: {{\"function\": {{\"name\": ..., \"arguments\": ...}}}}"
        );
        ApiError::field(name, reason)
    };
    match fields.get("tool_calls") {
        None | Some(Value::Null) => (),
        Some(Value::Array(calls)) if calls.iter().all(is_call) => (),
        Some(_) => return Err(wrong_calls()),
    }
    if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
        for call in calls {
            // Clients hold arguments as JSON within a string, templates read objects.
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && let Some(Ok(object @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str)
            {
                *arguments = object;
            }
        }
    }
    serde_json::from_value(message).map_err(|error| ApiError::field(name, format!("{name}: {error}")))
}

/// Whether templates find in `call` what they look for.
fn is_call(call: &Value) -> bool {
    let arguments = call.pointer("/function/arguments");
    call.pointer("/function/name").is_some_and(Value::is_string)
        && matches!(arguments, None | Some(Value::Null | Value::String(_) | Value::Object(_)))
}

/// Templates of models that read text alone know contents as text alone: parts become their lines.
fn join_texts(message: &mut Value) {
    let Some(content @ Value::Array(_)) = message.get_mut("content") else { return };
    let text = |part: &Value| {
        let is_text = part.get("type").is_some_and(|kind| kind == "text");
        part.get("text").and_then(Value::as_str).filter(|_| is_text).map(str::to_owned)
    };
    let texts: Option<Vec<String>> = content.as_array().and_then(|parts| parts.iter().map(text).collect());
    if let Some(texts) = texts {
        *content = texts.join("\n").into();
    }
}

/// `tools`.
fn tools(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let expected = format!(
        "a list of at most {MAX_TOOLS} functions: {{\"type\": \"function\", \"function\": {{\"name\": ...}}}}"
    );
    let tools = match fields.take("tools") {
        None => None,
        Some(Value::Array(list)) if list.is_empty() => None,
        Some(Value::Array(list)) => {
            let is_function = |tool: &Value| {
                tool.get("type").is_some_and(|kind| kind == "function")
                    && tool.pointer("/function/name").is_some_and(Value::is_string)
            };
            if list.len() > MAX_TOOLS || !list.iter().all(is_function) {
                return Err(fields.wrong("tools", &expected));
            }
            Some(Value::Array(list))
        }
        Some(_) => return Err(fields.wrong("tools", &expected)),
    };
    Ok(tools)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_reach_the_template_in_its_own_words() {
        let read = |message: Value| read_message(message, "messages[3]");
        assert_eq!(read(json!({"role": "developer", "content": "a"})).unwrap().role, "system");
        let call = json!({"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}},
            {"function": {"name": "g", "arguments": "no JSON"}}]});
        let calls = &read(call).unwrap().fields["tool_calls"];
        assert_eq!(calls[0]["function"]["arguments"].to_string(), "{\"b\":1,\"a\":2}");
        assert_eq!(calls[1]["function"]["arguments"], "no JSON");
        for message in [
            json!(3),
            json!({}),
            json!({"role": 1}),
            json!({"role": "user", "content": 3}),
            json!({"role": "assistant", "tool_calls": "f"}),
            json!({"role": "assistant", "tool_calls": [{"function": "f"}]}),
            json!({"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}),
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}),
        ] {
            assert!(
                read(message.clone()).unwrap_err().body()["error"]["param"]
                    .as_str()
                    .unwrap()
                    .starts_with("messages[3]"),
                "{message}"
            );
        }
    }
}
