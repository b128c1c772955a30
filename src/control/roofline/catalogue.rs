//! Rooflines by name, `CARD/MODEL/DRAFTER`: what `--costs` accepts besides a file.
//!
//! The catalogue is computed, not stored: a table of it is a function of some twenty numbers, so a file could only drift from them.
#![forbid(unsafe_code)]

use super::{Card, Head, Roofline, TargetDims};
use crate::error::{Error, Result};

const CARDS: [(&str, &str, Card); 4] = [
    ("h200", "NVIDIA H200", Card::H200),
    ("h100-sxm", "NVIDIA H100 SXM", Card::H100_SXM),
    ("l40s", "NVIDIA L40S", Card::L40S),
    ("rtx-pro-6000", "NVIDIA RTX Pro 6000 Blackwell", Card::RTX_PRO_6000),
];

const MODELS: [(&str, &str, TargetDims); 3] = [
    ("llama-3.1-8b", "Llama-3.1-8B", TargetDims::LLAMA_3_1_8B),
    ("qwen2-vl-7b", "Qwen2-VL-7B", TargetDims::QWEN2_VL_7B),
    ("llava-1.5-7b", "LLaVA-1.5-7B", TargetDims::LLAVA_1_5_7B),
];

const DRAFTERS: [(&str, &str, Head); 3] = [
    ("eagle3", "EAGLE-3", Head::Eagle3),
    ("eagle1", "EAGLE-1 / EAGLE-2 / MSD", Head::Eagle1),
    ("eagle1-hot", "EAGLE-1 / EAGLE-2 / MSD over 32768 frequent tokens", Head::Eagle1Hot),
];
/// Drafters that read what EAGLE-1 reads.
const LIKE_EAGLE1: [&str; 2] = ["eagle2", "msd"];

/// A roofline of the catalogue, with what its parts are called.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// `CARD/MODEL/DRAFTER`.
    pub name: String,
    /// The card.
    pub card: &'static str,
    /// The target.
    pub model: &'static str,
    /// The drafter.
    pub drafter: &'static str,
    /// Their costs.
    pub roofline: Roofline,
}

/// The roofline called `name`, as in `h200/llama-3.1-8b/eagle3`; `eagle2` and `msd` are other names of `eagle1`.
///
/// # Errors
/// A name that is not in the catalogue: one sentence that lists what is.
pub fn named(name: &str) -> Result<Named> {
    let unknown = |reason: String| Error::Input(format!("cost table {}: {reason}", shown(name)));
    let parts: Vec<&str> = name.split('/').collect();
    let [card, model, drafter] = parts[..] else { return Err(unknown(format!("names are {}", grammar()))) };
    let &(card_name, card_title, card) =
        find(&CARDS, card).map_err(|all| unknown(format!("there is no card {}, but {all}", shown(card))))?;
    let &(model_name, model_title, dims) = find(&MODELS, model)
        .map_err(|all| unknown(format!("there is no model {}, but {all}", shown(model))))?;
    let same = if LIKE_EAGLE1.contains(&drafter) { "eagle1" } else { drafter };
    let &(drafter_name, drafter_title, head) = find(&DRAFTERS, same).map_err(|all| {
        unknown(format!(
            "there is no drafter {}, but {all} (also as {})",
            shown(drafter),
            LIKE_EAGLE1.join(", ")
        ))
    })?;
    Ok(Named {
        name: format!("{card_name}/{model_name}/{drafter_name}"),
        card: card_title,
        model: model_title,
        drafter: drafter_title,
        roofline: Roofline { card, shape: dims.with(head) },
    })
}

/// All names, in order.
pub fn names() -> impl Iterator<Item = String> {
    CARDS.iter().flat_map(|card| {
        MODELS.iter().flat_map(move |model| {
            DRAFTERS.iter().map(move |drafter| format!("{}/{}/{}", card.0, model.0, drafter.0))
        })
    })
}

/// What a name is made of, for error messages and help.
pub fn grammar() -> String {
    format!("CARD/MODEL/DRAFTER of {}; {}; {}", list(&CARDS), list(&MODELS), list(&DRAFTERS))
}

fn find<'a, T>(
    entries: &'a [(&'static str, &'static str, T)],
    name: &str,
) -> std::result::Result<&'a (&'static str, &'static str, T), String> {
    entries.iter().find(|entry| entry.0 == name).ok_or_else(|| list(entries))
}

fn list<T>(entries: &[(&'static str, &'static str, T)]) -> String {
    entries.iter().map(|entry| entry.0).collect::<Vec<_>>().join(", ")
}

/// `text` as an error may repeat it: on one line and not endless.
fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let cut: String = text.chars().take(MOST).collect();
    format!("{cut:?}{}", if cut.len() < text.len() { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_is_its_own() {
        let all: Vec<String> = names().collect();
        assert_eq!(all.len(), 36);
        for name in &all {
            assert_eq!(&named(name).unwrap().name, name);
        }
        assert_eq!(named("h200/llama-3.1-8b/eagle3").unwrap().roofline, Roofline::H200_LLAMA_8B);
        let alias = named("l40s/qwen2-vl-7b/msd").unwrap();
        assert_eq!(alias, named("l40s/qwen2-vl-7b/eagle1").unwrap());
    }

    #[test]
    fn an_unknown_name_is_one_sentence_that_lists_what_exists() {
        for (name, expected) in [
            ("h300/llama-3.1-8b/eagle3", vec!["card \"h300\"", "h200, h100-sxm, l40s, rtx-pro-6000"]),
            ("h200/gpt/eagle3", vec!["model \"gpt\"", "llama-3.1-8b, qwen2-vl-7b, llava-1.5-7b"]),
            ("h200/llama-3.1-8b/medusa", vec!["drafter \"medusa\"", "eagle3, eagle1", "eagle2, msd"]),
            ("h200", vec!["CARD/MODEL/DRAFTER", "h200", "llama-3.1-8b", "eagle3"]),
            ("", vec!["CARD/MODEL/DRAFTER"]),
            ("a/b/c/d\n", vec!["CARD/MODEL/DRAFTER"]),
        ] {
            let error = named(name).unwrap_err();
            assert!(error.is_input());
            let sentence = error.to_string();
            assert!(!sentence.contains('\n') && sentence.len() < 300, "{sentence}");
            for part in expected {
                assert!(sentence.contains(part), "{name}: {part:?} is not in {sentence:?}");
            }
        }
        assert!(named(&"x/".repeat(10_000)).unwrap_err().to_string().len() < 300);
    }
}
