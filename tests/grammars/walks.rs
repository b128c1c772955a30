//! Random walks through allowed tokens end in texts that are what the grammar says.

use serde::de::IgnoredAny;
use serde_json::Value;
use smart_run::text::{Grammar, GrammarSpec};

use crate::schema::{is_valid, schemas};
use crate::vocabularies::{Random, Vocabulary, all, demo};

/// Tokens of a random walk before it looks for the end.
const WANDERING: usize = 60;
const LONGEST: usize = 3000;

/// Random tokens up to and with an end; `visit` sees the text so far, and what may come next, at every step.
fn walk(
    vocabulary: &Vocabulary,
    grammar: &mut Grammar,
    random: &mut Random,
    visit: &mut dyn FnMut(&[i32], &[i32]),
) -> Vec<i32> {
    let mut text = Vec::new();
    while text.len() < LONGEST {
        let allowed = vocabulary.allowed(grammar);
        visit(&text, &allowed);
        let ends = allowed.iter().filter(|&&token| vocabulary.is_eos(token)).count();
        assert!(ends == 0 || ends == vocabulary.eos.len(), "all ends or none");
        assert_eq!(grammar.is_complete(), ends == allowed.len(), "{:?}", vocabulary.tokenizer.decode(&text));
        let closes = |token: &&i32| {
            vocabulary.is_eos(**token)
                || vocabulary
                    .tokenizer
                    .token_bytes(**token)
                    .is_some_and(|bytes| matches!(&bytes[..], b"\"" | b"}" | b"]"))
        };
        let closing: Vec<i32> = allowed.iter().filter(closes).copied().collect();
        let token = match closing.is_empty() || text.len() < WANDERING && random.below(4) > 0 {
            true => random.of(&allowed),
            false => random.of(&closing),
        };
        grammar.push(token).unwrap();
        text.push(token);
        if vocabulary.is_eos(token) {
            assert!(grammar.is_complete());
            return text;
        }
    }
    panic!("{}: no end after {:?}", vocabulary.name, vocabulary.tokenizer.decode(&text));
}

/// JSON with a number as `4e1370`, which is valid but beyond floating point.
fn overflowing(json: &[u8]) -> Option<&str> {
    let is_json = serde_json::from_slice::<IgnoredAny>(json).is_ok();
    let is_value = serde_json::from_slice::<Value>(json).is_ok();
    (is_json && !is_value).then(|| std::str::from_utf8(json).unwrap())
}

fn text(vocabulary: &Vocabulary, tokens: &[i32]) -> String {
    String::from_utf8(vocabulary.bytes(tokens)).unwrap()
}

#[test]
fn walks_through_a_schema_are_valid_json_wherever_they_may_end() {
    for vocabulary in all() {
        for (index, schema) in schemas().iter().enumerate() {
            let fresh = vocabulary.compile(&GrammarSpec::JsonSchema(schema.clone()));
            for seed in 0..6 {
                let mut random = Random(seed * 1000 + index as u64);
                let mut check = |so_far: &[i32], allowed: &[i32]| {
                    let bytes = vocabulary.bytes(so_far);
                    let may_end = allowed.contains(&vocabulary.eos[0]);
                    if let Some(overflowing) = overflowing(&bytes) {
                        return assert!(may_end, "{overflowing}");
                    }
                    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
                    let valid = value.is_some_and(|value| is_valid(schema, schema, &value));
                    assert_eq!(valid, may_end, "{schema}: {:?}", String::from_utf8_lossy(&bytes));
                };
                let tokens = walk(&vocabulary, &mut fresh.clone(), &mut random, &mut check);
                let text = text(&vocabulary, &tokens);
                if overflowing(text.as_bytes()).is_none() {
                    let value: Value =
                        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
                    assert!(is_valid(schema, schema, &value), "{schema}: {text}");
                }
            }
        }
    }
}

#[test]
fn any_object_is_an_object() {
    for vocabulary in all() {
        let fresh = vocabulary.compile(&GrammarSpec::JsonObject);
        for seed in 0..10 {
            let tokens = walk(&vocabulary, &mut fresh.clone(), &mut Random(seed), &mut |_, _| ());
            let text = text(&vocabulary, &tokens);
            serde_json::from_str::<IgnoredAny>(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(text.starts_with('{') && text.ends_with('}'), "{text}");
        }
        for object in [
            r#"{}"#,
            r#"{ "a": [1, -2.5e3, true, null, {"b": "\u00e9\n\"é🙂"}] }"#,
            "{\n    \"a\":\n        []\n}",
        ] {
            let mut grammar = fresh.clone();
            vocabulary.push(&mut grammar, object);
            assert!(grammar.is_complete(), "{object}");
        }
        for (beginning, refused) in
            [("", "["), ("{", "1"), (r#"{"a":0"#, "1"), ("{}", "{"), (r#"{"a":"x"#, "\n")]
        {
            let mut grammar = fresh.clone();
            vocabulary.push(&mut grammar, beginning);
            assert!(!grammar.accepts(vocabulary.spell(refused)[0]), "{beginning} {refused}");
        }
    }
}

#[test]
fn an_expression_matches_the_whole_text() {
    let matches_date = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.len() == 3
            && [4, 2, 2]
                .iter()
                .zip(&parts)
                .all(|(&len, part)| part.len() == len && part.bytes().all(|b| b.is_ascii_digit()))
    };
    for vocabulary in all() {
        let fresh = vocabulary.compile(&GrammarSpec::Regex("[0-9]{4}-[0-9]{2}-[0-9]{2}".into()));
        for seed in 0..10 {
            let tokens = walk(&vocabulary, &mut fresh.clone(), &mut Random(seed), &mut |_, _| ());
            assert!(matches_date(&text(&vocabulary, &tokens)));
        }
        let mut grammar = vocabulary.compile(&GrammarSpec::Regex(r"(yes|no)\/? \w*\\".into()));
        vocabulary.push(&mut grammar, "no/ né\\");
        assert!(grammar.is_complete());
        let mut grammar = vocabulary.compile(&GrammarSpec::Regex("a*".into()));
        assert!(grammar.accepts(vocabulary.eos[0]) && !grammar.is_complete());
        vocabulary.push(&mut grammar, "aaa");
        assert!(grammar.accepts(vocabulary.eos[0]) && !grammar.is_complete());
    }
}

#[test]
fn a_context_free_grammar_counts_brackets() {
    let lark = r#"
        start: sum
        sum: product ("+" product)*
        product: atom ("*" atom)*
        atom: NUMBER | "(" sum ")"
        NUMBER: /[0-9]{1,3}/
    "#;
    for vocabulary in all() {
        let fresh = vocabulary.compile(&GrammarSpec::Lark(lark.into()));
        let mut grammar = fresh.clone();
        vocabulary.push(&mut grammar, "((1+2)*30");
        assert!(!grammar.accepts(vocabulary.eos[0]));
        vocabulary.push(&mut grammar, ")");
        assert!(grammar.accepts(vocabulary.eos[0]) && !grammar.is_complete());
        assert!(!grammar.accepts(vocabulary.spell(")")[0]));
    }
}

#[test]
fn after_the_end_there_is_only_the_end() {
    for vocabulary in all() {
        let mut grammar = vocabulary.compile(&GrammarSpec::Regex("ab?".into()));
        vocabulary.push(&mut grammar, "a");
        let before = vocabulary.mask(&mut grammar);
        grammar.push(vocabulary.eos[0]).unwrap();
        assert!(grammar.is_complete());
        assert_eq!(vocabulary.allowed(&mut grammar), vocabulary.eos);
        assert!(grammar.push(vocabulary.spell("b")[0]).is_err());
        grammar.pop(1).unwrap();
        assert_eq!(vocabulary.mask(&mut grammar), before);
        assert!(grammar.accepts(vocabulary.spell("b")[0]));
    }
}

#[test]
fn special_tokens_and_padding_are_never_text() {
    for vocabulary in all() {
        let mut grammar = vocabulary.compile(&GrammarSpec::Regex("(?s:.*)".into()));
        for token in vocabulary.allowed(&mut grammar) {
            assert!(vocabulary.is_eos(token) || vocabulary.tokenizer.token_bytes(token).is_some(), "{token}");
        }
        for token in [-1, i32::MIN, i32::MAX, vocabulary.size as i32] {
            assert!(!grammar.accepts(token));
            assert!(grammar.push(token).is_err());
        }
        let words = vocabulary.size.div_ceil(32);
        assert!(grammar.allowed(&mut vec![0; words + 1]).is_err());
        assert!(grammar.allowed(&mut vec![0; words - 1]).is_err());
    }
    let lark = demo().compiler.compile(&GrammarSpec::Lark("start: \"a\" <[5]>".into())).unwrap_err();
    assert!(lark.to_string().contains("by number"), "{lark}");
}
