//! Guided decoding: what an answer has to look like, as a grammar of smart-run.

use dynamo_backend_common::{DynamoError, GuidedDecodingOptions};
use serde_json::Value;
use smart_run::text::GrammarSpec;

use crate::errors::invalid;

/// Names by which clients may ask for the implementation that is used here.
const BACKENDS: [&str; 3] = ["auto", "guidance", "llguidance"];

/// The grammar that `options` ask for; none if they constrain nothing.
///
/// # Errors
/// More than one constraint; a backend, whitespace pattern or structural tag, which are not to be had.
pub fn grammar_of(options: &GuidedDecodingOptions) -> Result<Option<GrammarSpec>, DynamoError> {
    let GuidedDecodingOptions { json, regex, choice, grammar, backend, whitespace_pattern, structural_tag } =
        options;
    if let Some(backend) = backend
        && !BACKENDS.contains(&backend.as_str())
    {
        return Err(invalid(format!(
            "guided_decoding.backend {backend:?} is not to be had here: leave it out, or ask for one of {BACKENDS:?}"
        )));
    }
    if whitespace_pattern.is_some() {
        return Err(invalid(
            "guided_decoding.whitespace_pattern is not supported: JSON comes with any whitespace",
        ));
    }
    if structural_tag.is_some() {
        return Err(invalid(
            "guided_decoding.structural_tag is not supported: use json, regex, choice or grammar",
        ));
    }
    let choice = choice.as_deref().filter(|choices| !choices.is_empty());
    let mut asked = [
        json.as_ref().map(json_grammar).transpose()?,
        regex.clone().map(GrammarSpec::Regex),
        choice.map(|choices| GrammarSpec::Regex(one_of(choices))),
        grammar.clone().map(GrammarSpec::Lark),
    ]
    .into_iter()
    .flatten();
    let first = asked.next();
    match asked.next() {
        Some(_) => Err(invalid("guided_decoding has more than one of json, regex, choice and grammar")),
        None => Ok(first),
    }
}

/// A schema, or the text of one.
fn json_grammar(json: &Value) -> Result<GrammarSpec, DynamoError> {
    let schema = match json {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| invalid(format!("guided_decoding.json is a text that is no JSON: {error}")))?,
        schema => schema.clone(),
    };
    // What `response_format` of type `json_object` becomes on its way here.
    match schema == serde_json::json!({"type": "object"}) {
        true => Ok(GrammarSpec::JsonObject),
        false => Ok(GrammarSpec::JsonSchema(schema)),
    }
}

/// An expression that exactly these texts match.
fn one_of(choices: &[String]) -> String {
    choices.iter().map(|choice| escaped(choice)).collect::<Vec<_>>().join("|")
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(options: Value) -> Result<Option<GrammarSpec>, String> {
        let options: GuidedDecodingOptions = serde_json::from_value(options).unwrap();
        grammar_of(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn every_constraint_is_a_grammar() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let parsed = Ok(Some(GrammarSpec::JsonSchema(schema.clone())));
        assert_eq!(of(json!({"json": schema})), parsed);
        assert_eq!(of(json!({"json": schema.to_string()})), parsed, "a schema as text");
        assert_eq!(of(json!({"json": {"type": "object"}})), Ok(Some(GrammarSpec::JsonObject)));
        assert_eq!(of(json!({"regex": "a+"})), Ok(Some(GrammarSpec::Regex("a+".into()))));
        assert_eq!(of(json!({"choice": ["a.b", "c d"]})), Ok(Some(GrammarSpec::Regex("a\\.b|c d".into()))));
        assert_eq!(
            of(json!({"grammar": "start: \"x\""})),
            Ok(Some(GrammarSpec::Lark("start: \"x\"".into())))
        );
        assert_eq!(of(json!({"choice": []})), Ok(None));
        assert_eq!(
            of(json!({"regex": "a", "backend": "guidance"})),
            Ok(Some(GrammarSpec::Regex("a".into())))
        );
    }

    #[test]
    fn what_is_not_to_be_had_is_named() {
        for (options, name) in [
            (json!({"regex": "a", "backend": "xgrammar"}), "guided_decoding.backend"),
            (json!({"json": {}, "whitespace_pattern": " "}), "whitespace_pattern"),
            (json!({"structural_tag": {}}), "structural_tag"),
            (json!({"json": "{"}), "guided_decoding.json"),
            (json!({"json": {}, "regex": "a"}), "more than one"),
        ] {
            let error = of(options).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
