//! `tool_choice`: whether an answer may, must or must not call a tool, and the grammar of a call that it must make.

use serde_json::{Map, Value, json};

use super::errors::ApiError;
use super::fields::Fields;
use super::tool_calls::ToolFormat;
use crate::text::GrammarSpec;

/// What a request wants of its tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// Calls as the model likes.
    Auto,
    /// No tool is shown.
    None,
    /// A call of any tool.
    Required,
    /// A call of this one.
    Function(String),
}

impl ToolChoice {
    /// Reads `tool_choice`.
    ///
    /// # Errors
    /// 400 for anything but `"auto"`, `"none"`, `"required"` and a function by its name.
    pub fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let expected =
            "\"auto\", \"none\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}";
        let is_function = |choice: &Value| choice.get("type").is_some_and(|kind| kind == "function");
        match fields.take("tool_choice") {
            None => Ok(Self::Auto),
            Some(choice) if choice == "auto" => Ok(Self::Auto),
            Some(choice) if choice == "none" => Ok(Self::None),
            Some(choice) if choice == "required" => Ok(Self::Required),
            Some(choice) if is_function(&choice) => {
                let name = choice.pointer("/function/name").and_then(Value::as_str);
                name.map(|name| Self::Function(name.into()))
                    .ok_or_else(|| fields.wrong("tool_choice", expected))
            }
            Some(_) => Err(fields.wrong("tool_choice", expected)),
        }
    }

    /// What an answer has to be that must call one of `tools`, a list of functions, as `format` writes calls; none where it need not.
    /// `many` calls are possible where the format has a way to write them.
    ///
    /// # Errors
    /// 400 where there are no such tools or the way of the model is not known, and for parameters that are no schema of an object.
    pub fn spec(
        &self,
        tools: Option<&Value>,
        format: Option<ToolFormat>,
        many: bool,
    ) -> Result<Option<GrammarSpec>, ApiError> {
        let wanted = match self {
            Self::Auto | Self::None => return Ok(None),
            Self::Required => None,
            Self::Function(name) => Some(name.as_str()),
        };
        let all = tools.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).map(str::to_owned);
        let named = all.iter().enumerate().filter_map(|(index, tool)| Some((index, name(tool)?, tool)));
        let chosen: Vec<_> =
            named.filter(|(_, name, _)| wanted.is_none_or(|wanted| wanted == name)).collect();
        if chosen.is_empty() {
            return Err(ApiError::field(
                "tool_choice",
                "tool_choice asks for a call of a tool that is not in tools",
            ));
        }
        let Some(format) = format else {
            return Err(ApiError::unsupported(
                "tool_choice",
                "tool_choice can be \"auto\" or \"none\": how this model writes calls is not known, so none can be enforced",
            ));
        };
        let (mut calls, mut definitions) = (Vec::new(), Map::new());
        for (index, name, tool) in chosen {
            let place = index.to_string();
            let arguments = arguments_of(index, tool, &format!("#/$defs/{place}"))?;
            definitions.insert(place.clone(), arguments);
            calls.push(json!({
                "type": "object",
                "properties": {"name": {"const": name}, format.arguments_name(): {"$ref": format!("#/$defs/{place}")}},
                "required": ["name", format.arguments_name()],
                "additionalProperties": false,
            }));
        }
        let schema = json!({"anyOf": calls, "$defs": definitions});
        Ok(Some(format.spec(schema, many && wanted.is_none())))
    }
}

/// The schema of a function's arguments, to stand at `place` of a larger one: what it refers to in itself is there.
fn arguments_of(index: usize, tool: &Value, place: &str) -> Result<Value, ApiError> {
    let name = format!("tools[{index}].function.parameters");
    let wrong = || ApiError::field(&name, format!("{name} should be a JSON schema of an object"));
    let mut schema = match tool.pointer("/function/parameters") {
        None | Some(Value::Null) => {
            return Ok(json!({"type": "object", "properties": {}, "additionalProperties": false}));
        }
        Some(Value::Object(schema)) => schema.clone(),
        Some(_) => return Err(wrong()),
    };
    let fits = match schema.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
    };
    if !fits {
        return Err(wrong());
    }
    schema.insert("type".into(), "object".into());
    // They name the document that a schema is no more.
    schema.shift_remove("$id");
    schema.shift_remove("$schema");
    let mut schema = Value::Object(schema);
    move_references(&mut schema, place);
    Ok(schema)
}

/// Turns references within a schema to where it stands now, `place`.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(reference) if key == "$ref" => {
                        if let Some(rest) = reference.strip_prefix('#') {
                            *reference = format!("{place}{rest}");
                        }
                    }
                    // Text that may come, in which nothing is a reference.
                    _ if key == "const" || key == "enum" => (),
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, place)),
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Value {
        json!([
            {"type": "function", "function": {"name": "f", "parameters": {
                "$schema": "x", "$id": "y", "properties": {"a": {"$ref": "#/$defs/t"}, "b": {"const": {"$ref": "#"}}}, "$defs": {"t": {"type": "string"}}}}},
            {"type": "function", "function": {"name": "g"}},
        ])
    }

    #[test]
    fn schemas_of_arguments_stand_side_by_side() {
        let spec = |choice: ToolChoice, many| {
            choice.spec(Some(&tools()), Some(ToolFormat::Bare), many).unwrap().unwrap()
        };
        let GrammarSpec::JsonSchema(schema) = spec(ToolChoice::Required, true) else { panic!() };
        assert_eq!(schema["anyOf"][0]["properties"]["parameters"], json!({"$ref": "#/$defs/0"}));
        assert_eq!(
            schema["$defs"]["0"],
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/0/$defs/t"}, "b": {"const": {"$ref": "#"}}}, "$defs": {"t": {"type": "string"}}})
        );
        assert_eq!(schema["$defs"]["1"]["additionalProperties"], false);
        let GrammarSpec::JsonSchema(schema) = spec(ToolChoice::Function("g".into()), true) else { panic!() };
        assert_eq!(schema["anyOf"].as_array().unwrap().len(), 1);
        assert_eq!(schema["anyOf"][0]["properties"]["name"]["const"], "g");
        let GrammarSpec::TaggedJson { many, .. } =
            ToolChoice::Required.spec(Some(&tools()), Some(ToolFormat::Tagged), true).unwrap().unwrap()
        else {
            panic!()
        };
        assert!(many);
    }

    #[test]
    fn what_cannot_be_enforced_is_named() {
        let refusal = |choice: &ToolChoice, tools: Value, format: Option<ToolFormat>| {
            let error = choice.spec(Some(&tools), format, true).unwrap_err().body();
            error["error"]["param"].as_str().unwrap().to_owned()
        };
        let format = Some(ToolFormat::Tagged);
        assert_eq!(refusal(&ToolChoice::Required, json!([]), format), "tool_choice");
        assert_eq!(refusal(&ToolChoice::Function("h".into()), tools(), format), "tool_choice");
        assert_eq!(refusal(&ToolChoice::Required, tools(), None), "tool_choice");
        for parameters in [json!(3), json!({"type": "string"}), json!({"type": ["null"]}), json!(true)] {
            let tools = json!([{"function": {"name": "f", "parameters": parameters}}]);
            assert_eq!(refusal(&ToolChoice::Required, tools, format), "tools[0].function.parameters");
        }
        for choice in [ToolChoice::Auto, ToolChoice::None] {
            assert_eq!(choice.spec(None, None, true).unwrap(), None);
        }
    }
}
