//! Prompt sets: JSON Lines, one prompt a line.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use smart_run::text::Tokenizer;
use smart_run::{Error, Result};

/// The demo pair's held-out prompts.
const DEMO: &str = include_str!("../../../../assets/demo/prompts.jsonl");

/// Prompts that are served together.
pub struct PromptSet {
    /// The file's stem.
    pub name: String,
    /// As token ids, at least one prompt of at least one token.
    pub prompts: Vec<Vec<i32>>,
}

/// A line; other fields are not read.
#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    turns: Option<Vec<String>>,
    prompt_token_ids: Option<Vec<i32>>,
}

/// The sets in `files`, or the demo pair's own if there are none.
pub fn prompt_sets(files: &[PathBuf], tokenizer: Option<&Tokenizer>) -> Result<Vec<PromptSet>> {
    if files.is_empty() {
        return Ok(vec![parse("demo prompts", DEMO, Path::new("assets/demo/prompts.jsonl"), tokenizer)?]);
    }
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let name = path.file_stem().map_or("prompts".into(), |stem| stem.to_string_lossy());
        parse(&name, &text, path, tokenizer)
    };
    files.iter().map(read).collect()
}

fn parse(name: &str, text: &str, path: &Path, tokenizer: Option<&Tokenizer>) -> Result<PromptSet> {
    let fault = |line: usize, reason: &str| Error::format(path, format!("line {}: {reason}", line + 1));
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed: Line =
            serde_json::from_str(line).map_err(|error| fault(number, &format!("no prompt: {error}")))?;
        let text = parsed.prompt.or_else(|| parsed.turns.and_then(|turns| turns.into_iter().next()));
        let ids = match (parsed.prompt_token_ids, text) {
            (Some(ids), None) => ids,
            (None, Some(text)) => match tokenizer {
                Some(tokenizer) => tokenizer.encode(&text, true)?,
                None => {
                    return Err(fault(
                        number,
                        "the model folder has no tokenizer.json; give prompts as prompt_token_ids",
                    ));
                }
            },
            _ => return Err(fault(number, "one of prompt, turns and prompt_token_ids is needed")),
        };
        if ids.is_empty() {
            return Err(fault(number, "the prompt is empty"));
        }
        prompts.push(ids);
    }
    if prompts.is_empty() {
        return Err(Error::format(path, "there are no prompts in it"));
    }
    Ok(PromptSet { name: name.to_owned(), prompts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> std::result::Result<Vec<Vec<i32>>, String> {
        parse("p", text, Path::new("p.jsonl"), None).map(|set| set.prompts).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_are_prompts_and_faults_name_their_line() {
        let set = ids("{\"prompt_token_ids\": [1, 2], \"id\": 7}\n\n{\"prompt_token_ids\": [3]}\n");
        assert_eq!(set.unwrap(), [vec![1, 2], vec![3]]);
        for (text, says) in [
            ("", "no prompts"),
            ("{\"prompt_token_ids\": []}", "line 1: the prompt is empty"),
            ("{\"prompt_token_ids\": [1]}\n{\"id\": 1}", "line 2: one of"),
            ("{\"prompt_token_ids\": [1], \"prompt\": \"a\"}", "line 1: one of"),
            ("{\"turns\": []}", "line 1: one of"),
            ("{\"prompt\": \"a\"}", "tokenizer.json"),
            ("{\"prompt\": ", "line 1: no prompt"),
            ("[1]", "line 1"),
        ] {
            let error = ids(text).unwrap_err();
            assert!(error.contains(says) && error.contains("p.jsonl"), "{text:?}: {error}");
        }
    }
}
