//! Which files of a repository make a model.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Weights: one file, or those that an index lists.
pub struct Weights {
    pub index: Option<String>,
    pub files: Vec<String>,
}

/// In the order in which a checkpoint is looked for.
const SINGLE_FILES: [&str; 3] = ["model.safetensors", "pytorch_model.bin", "medusa_lm_head.pt"];
const SMALL_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
];

/// Whether `name` is a configuration, tokenizer or template file of a model.
pub fn is_small(name: &str) -> bool {
    SMALL_FILES.contains(&name)
}

/// The weights among `names`: a single file before an index, safetensors before PyTorch's.
pub fn weights(names: &[String]) -> Option<Weights> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    SINGLE_FILES.iter().find_map(|&single| {
        let index = format!("{single}.index.json");
        if has(single) {
            Some(Weights { index: None, files: vec![single.to_owned()] })
        } else if has(&index) {
            Some(Weights { index: Some(index), files: Vec::new() })
        } else {
            None
        }
    })
}

/// The files that an index lists.
///
/// # Errors
/// A text that says why it is no index, or which name would lead out of the folder.
pub fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| format!("this is no index of weights: {error}"))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    match files.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.') || name.is_empty()) {
        Some(name) => Err(format!("`weight_map` names {name:?}, which is no file of this folder")),
        None => Ok(files.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Option<(Option<String>, Vec<String>)> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        weights(&names).map(|weights| (weights.index, weights.files))
    }

    #[test]
    fn safetensors_come_first() {
        let single = |name: &str| Some((None, vec![name.to_owned()]));
        assert_eq!(chosen(&["pytorch_model.bin", "model.safetensors"]), single("model.safetensors"));
        let index = "model.safetensors.index.json";
        let names = ["model-00001-of-00002.safetensors", index, "pytorch_model.bin"];
        assert_eq!(chosen(&names), Some((Some(index.to_owned()), vec![])));
        assert_eq!(chosen(&["medusa_lm_head.pt"]), single("medusa_lm_head.pt"));
        assert_eq!(chosen(&["flax_model.msgpack", "onnx/model.safetensors"]), None);
    }

    #[test]
    fn shards_are_files_of_the_folder() {
        let shards = |index: &str| shards(index.as_bytes());
        assert_eq!(
            shards(r#"{"weight_map": {"a": "2.x", "b": "1.x", "c": "2.x"}}"#).unwrap(),
            ["1.x", "2.x"]
        );
        for wrong in [
            r#"{"weight_map": {"a": "../x"}}"#,
            r#"{"weight_map": {"a": "/x"}}"#,
            r#"{"weight_map": {"a": ""}}"#,
            "{}",
            "",
        ] {
            assert!(shards(wrong).is_err(), "{wrong}");
        }
    }
}
