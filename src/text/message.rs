//! Messages of a conversation, as chat templates and OpenAI-style requests have them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message. What is not named here (`tool_calls`, `tool_call_id`, `name`, `reasoning_content` ...) is kept as it is and
/// reaches the template as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said; `None` where the field is missing or null, as beside `tool_calls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// All other fields.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "Value")]
pub enum Content {
    /// Text.
    Text(String),
    /// Text and images in turn.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Part {
    /// `{"type": "text", "text": ...}`, with what else it holds.
    Text(Map<String, Value>),
    /// `{"type": "image", ...}` or `{"type": "image_url", ...}`, as it was given.
    Image(Map<String, Value>),
}

impl Message {
    /// A message of text alone.
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(text.into())), fields: Map::new() }
    }

    /// Images that the message refers to.
    pub fn num_images(&self) -> usize {
        match &self.content {
            Some(Content::Parts(parts)) => parts.iter().filter(|part| matches!(part, Part::Image(_))).count(),
            _ => 0,
        }
    }
}

impl Part {
    /// A part of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Map::from_iter([("type".into(), "text".into()), ("text".into(), text.into().into())]))
    }

    /// An image that is passed beside the conversation; images are counted in the order of their parts.
    pub fn image() -> Self {
        Self::Image(Map::from_iter([("type".into(), "image".into())]))
    }
}

impl TryFrom<Value> for Content {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(parts) => {
                parts.into_iter().map(Part::try_from).collect::<Result<_, _>>().map(Self::Parts)
            }
            _ => Err("content should be text or a list of parts".into()),
        }
    }
}

impl TryFrom<Value> for Part {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let Value::Object(fields) = value else {
            return Err("a part of content should be an object with a \"type\"".into());
        };
        match fields.get("type").and_then(Value::as_str) {
            Some("text") if fields.get("text").is_some_and(Value::is_string) => Ok(Self::Text(fields)),
            Some("text") => {
                Err("a part of content of type \"text\" needs a \"text\" that is a string".into())
            }
            Some("image" | "image_url") => Ok(Self::Image(fields)),
            Some(other) => Err(format!(
                "a part of content has the type {other:?}; text, image and image_url are supported"
            )),
            None => Err("a part of content needs a \"type\": text, image or image_url".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A server hands requests on: nothing that a template may read is lost or moved.
    #[test]
    fn messages_come_back_as_they_were_read() {
        for message in [
            json!({"role": "user", "content": "a"}),
            json!({"role": "assistant", "content": "", "tool_calls": [{"id": "z", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}]}),
            json!({"role": "assistant", "tool_calls": []}),
            json!({"role": "tool", "content": "7", "tool_call_id": "z", "name": "f"}),
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, {"type": "image"}]}),
        ] {
            let read: Message = serde_json::from_value(message.clone()).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), message.to_string());
        }
        let read: Message = serde_json::from_value(json!({"role": "assistant", "content": null})).unwrap();
        assert_eq!(read.content, None);
    }

    #[test]
    fn content_that_cannot_be_served_says_why() {
        for (content, reason) in [
            (json!(3), "content should be text or a list of parts"),
            (json!(["a"]), "an object with a \"type\""),
            (json!([{"type": "text"}]), "needs a \"text\" that is a string"),
            (json!([{"type": "video"}]), "has the type \"video\""),
            (json!([{}]), "needs a \"type\""),
        ] {
            let error =
                serde_json::from_value::<Message>(json!({"role": "user", "content": content})).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn images_are_counted() {
        let mut message = Message::new("user", "a");
        assert_eq!(message.num_images(), 0);
        message.content = Some(Content::Parts(vec![Part::image(), Part::text("b"), Part::image()]));
        assert_eq!(message.num_images(), 2);
        assert_eq!(
            serde_json::to_value(&message).unwrap()["content"][1],
            json!({"type": "text", "text": "b"})
        );
    }
}
