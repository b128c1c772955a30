//! A check of a tokenizer file, its BPE merge table above all, ahead of the crate `tokenizers`.
//!
//! The crate joins the two halves of a merge in a buffer as long as the longest token and looks the result up afterwards:
//! a table whose merges lead outside the vocabulary, the likeliest fault of an edited file, makes it index out of bounds.
//! Here that fault becomes a sentence that names the merge.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The part of `tokenizer.json` that is checked.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Model<'a>,
}

/// A BPE model; models of other types lack `merges` or keep their vocabulary in another form, and are not checked.
#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow)]
    vocab: HashMap<Cow<'a, str>, IgnoredAny>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
    continuing_subword_prefix: Option<String>,
}

/// A merge as written today, a pair, or in older files, two tokens with a space between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge<'a> {
    Pair(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>),
    Line(#[serde(borrow)] Cow<'a, str>),
}

/// Fails if this `tokenizer.json` is not JSON, or if one of its merges yields a token that the vocabulary lacks. What is no
/// BPE tokenizer passes: the crate's own parser reports on it.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let model = match serde_json::from_slice::<File>(json) {
        Ok(file) => file.model,
        Err(error) if error.is_data() => return Ok(()),
        Err(error) => return Err(format!("this is not valid JSON: {error}")),
    };
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or("");
    let mut merged = String::new();
    for merge in &model.merges {
        let halves = match merge {
            Merge::Pair(left, right) => Some((left.as_ref(), right.as_ref())),
            Merge::Line(line) => line.split_once(' ').filter(|_| !line.starts_with("#version")),
        };
        let Some((left, right)) = halves else { continue };
        merged.clear();
        merged.push_str(left);
        merged.push_str(right.strip_prefix(prefix).ok_or_else(|| {
            format!("`model.merges` holds {left:?} + {right:?}, which lacks the prefix {prefix:?} of continued words")
        })?);
        if !model.vocab.contains_key(merged.as_str()) {
            return Err(format!(
                "`model.merges` holds {left:?} + {right:?}, but `model.vocab` has no {merged:?}: the file is damaged"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_model(model: &str) -> Result<(), String> {
        check(format!(r#"{{"version":"1.0","model":{model}}}"#).as_bytes())
    }

    #[test]
    fn consistent_merges_pass_in_either_form() {
        assert_eq!(check_model(r#"{"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}"#), Ok(()));
        assert_eq!(
            check_model(r##"{"vocab":{"a":0,"b":1,"ab":2},"merges":["#version: 0.2","a b"]}"##),
            Ok(())
        );
        let prefixed =
            r###"{"vocab":{"a":0,"##b":1,"ab":2},"merges":[["a","##b"]],"continuing_subword_prefix":"##"}"###;
        assert_eq!(check_model(prefixed), Ok(()));
    }

    #[test]
    fn a_merge_that_leaves_the_vocabulary_is_named() {
        let reason = check_model(r#"{"vocab":{"a":0,"b":1},"merges":[["a","b"]]}"#).unwrap_err();
        assert!(reason.contains(r#""a" + "b", but `model.vocab` has no "ab""#), "{reason}");
        let unprefixed =
            r###"{"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]],"continuing_subword_prefix":"##"}"###;
        assert!(check_model(unprefixed).unwrap_err().contains("lacks the prefix"));
    }

    #[test]
    fn other_models_are_left_to_the_crate() {
        assert_eq!(check_model(r#"{"type":"Unigram","vocab":[["a",-1.0]]}"#), Ok(()));
        assert_eq!(check(b"{}"), Ok(()));
    }

    #[test]
    fn what_is_not_json_is_called_so() {
        assert!(check(b"{\"model\": {").unwrap_err().contains("not valid JSON"));
    }
}
