//! Masks against single tokens, and draft trees: forwards and backwards again.

use std::time::{Duration, Instant};

use serde_json::json;
use smart_run::text::{Grammar, GrammarSpec};

use crate::schema::schemas;
use crate::vocabularies::{Random, Vocabulary, all, tokens};

fn specs() -> Vec<GrammarSpec> {
    let mut specs: Vec<GrammarSpec> = schemas().into_iter().map(GrammarSpec::JsonSchema).collect();
    specs.push(GrammarSpec::JsonObject);
    specs.push(GrammarSpec::Regex("([a-z]+ ){0,8}[a-z]+\\.".into()));
    specs
        .push(GrammarSpec::Lark("start: item+\nitem: \"(\" start \")\" | /[a-c]{1,4}/ | \"x\" \"y\"".into()));
    specs
}

/// Up to `count` random tokens, no end among them.
fn wander(vocabulary: &Vocabulary, grammar: &mut Grammar, random: &mut Random, count: usize) -> usize {
    for pushed in 0..count {
        let allowed: Vec<i32> =
            vocabulary.allowed(grammar).into_iter().filter(|&token| !vocabulary.is_eos(token)).collect();
        if allowed.is_empty() {
            return pushed;
        }
        grammar.push(random.of(&allowed)).unwrap();
    }
    count
}

#[test]
fn a_mask_holds_the_tokens_that_are_accepted() {
    for vocabulary in all() {
        for (index, spec) in specs().iter().enumerate() {
            let mut random = Random(index as u64);
            let mut grammar = vocabulary.compile(spec);
            for _ in 0..5 {
                let mask = vocabulary.mask(&mut grammar);
                let accepted: Vec<i32> =
                    (-1..vocabulary.size as i32 + 40).filter(|&token| grammar.accepts(token)).collect();
                assert_eq!(tokens(&mask), accepted, "{}: {spec:?}", vocabulary.name);
                assert_eq!(vocabulary.mask(&mut grammar), mask, "asking changes nothing");
                let steps = 1 + random.below(6);
                wander(&vocabulary, &mut grammar, &mut random, steps);
            }
        }
    }
}

/// Walks a random tree depth first with one grammar, and holds every node's mask, before and after its subtree, against that of a
/// grammar that has only ever gone forwards.
fn walk_tree(
    vocabulary: &Vocabulary,
    grammar: &mut Grammar,
    root: &Grammar,
    path: &mut Vec<i32>,
    depth: usize,
    random: &mut Random,
) {
    let mut forwards = root.clone();
    for &token in path.iter() {
        forwards.push(token).unwrap();
    }
    let expected = vocabulary.mask(&mut forwards);
    assert_eq!(vocabulary.mask(grammar), expected, "{:?}", vocabulary.tokenizer.decode(path));
    assert_eq!(grammar.is_complete(), forwards.is_complete());
    let allowed = tokens(&expected);
    for _ in 0..if depth == 0 { 0 } else { 3 } {
        let token = random.of(&allowed);
        grammar.push(token).unwrap();
        path.push(token);
        walk_tree(vocabulary, grammar, root, path, depth - 1, random);
        path.pop();
        grammar.pop(1).unwrap();
        assert_eq!(vocabulary.mask(grammar), expected, "{:?}", vocabulary.tokenizer.decode(path));
    }
}

#[test]
fn a_tree_leaves_no_trace() {
    for vocabulary in all() {
        for (index, spec) in specs().iter().enumerate() {
            let mut random = Random(index as u64);
            let mut grammar = vocabulary.compile(spec);
            for _ in 0..2 {
                let root = grammar.clone();
                walk_tree(&vocabulary, &mut grammar, &root, &mut Vec::new(), 3, &mut random);
                wander(&vocabulary, &mut grammar, &mut random, 5);
            }
        }
    }
}

/// After `a` and after `b` the lexer is in the same state, and the parser in a row of the same number, but not of the same content.
#[test]
fn siblings_do_not_share_a_mask() {
    let lark = "start: \"a\" x | \"b\" y\nx: \"i\" \"n\"\ny: \"i\" \"s\"";
    for vocabulary in all() {
        let mut grammar = vocabulary.compile(&GrammarSpec::Lark(lark.into()));
        for (first, rest, other) in [("a", "in", "is"), ("b", "is", "in"), ("a", "in", "is")] {
            vocabulary.push(&mut grammar, first);
            let allowed: Vec<Vec<u8>> = vocabulary
                .allowed(&mut grammar)
                .iter()
                .filter_map(|&token| vocabulary.tokenizer.token_bytes(token))
                .collect();
            let has = |text: &str| allowed.contains(&text.as_bytes().to_vec());
            assert!(has("i") && !has(other), "{}: {first}", vocabulary.name);
            assert_eq!(has(rest), vocabulary.spell(rest).len() == 1, "{}: {first}", vocabulary.name);
            grammar.pop(1).unwrap();
        }
    }
}

#[test]
fn several_tokens_are_taken_back_at_once() {
    for vocabulary in all() {
        for spec in specs() {
            let mut grammar = vocabulary.compile(&spec);
            let first = vocabulary.mask(&mut grammar);
            let pushed = wander(&vocabulary, &mut grammar, &mut Random(7), 12);
            let half = pushed / 2;
            let mut whole = grammar.clone();
            grammar.pop(half).unwrap();
            grammar.pop(pushed - half).unwrap();
            assert_eq!(vocabulary.mask(&mut grammar), first);
            whole.pop(pushed).unwrap();
            assert_eq!(vocabulary.mask(&mut whole), first);
            grammar.pop(0).unwrap();
            assert!(
                grammar.pop(1).unwrap_err().to_string().contains("cannot be taken back from a text of 0")
            );
            assert_eq!(vocabulary.mask(&mut grammar), first);
        }
    }
}

/// A text that asks for too much ends its grammar; whatever is asked afterwards, the answer is the reason.
#[test]
fn a_grammar_that_has_ended_says_why_however_often_it_is_asked() {
    let names: Vec<String> = (0..3000).map(|index| format!("r{index}")).collect();
    let rules: String = names.iter().map(|name| format!("\n{name}: \"q{name}\"")).collect();
    let lark = format!("start: \"abcdefgh\" hard\nhard: {}{rules}", names.join(" | "));
    for vocabulary in all() {
        let mut grammar = vocabulary.compile(&GrammarSpec::Lark(lark.clone()));
        let spelled = vocabulary.spell("abcdefgh");
        let reason = spelled.iter().find_map(|&token| grammar.push(token).err()).unwrap().to_string();
        assert!(reason.contains("max is 2000"), "{}: {reason}", vocabulary.name);
        let says_why = |error: smart_run::Error| assert_eq!(error.to_string(), reason, "{}", vocabulary.name);
        for count in [0, 1, 2, spelled.len(), 1, 2, spelled.len()] {
            says_why(grammar.pop(count).unwrap_err());
        }
        says_why(grammar.allowed(&mut vec![0; vocabulary.size.div_ceil(32)]).unwrap_err());
        says_why(grammar.push(spelled[0]).unwrap_err());
        says_why(grammar.clone().pop(1).unwrap_err());
    }
}

#[test]
fn compilers_are_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    for vocabulary in all() {
        shared(&vocabulary.compiler);
    }
}

#[test]
fn clones_are_independent() {
    for vocabulary in all() {
        let mut grammar = vocabulary.compile(&GrammarSpec::JsonObject);
        vocabulary.push(&mut grammar, r#"{"a": ["#);
        let mask = vocabulary.mask(&mut grammar);
        let mut copy = grammar.clone();
        vocabulary.push(&mut copy, "1]}");
        assert!(copy.is_complete() && !grammar.is_complete());
        assert_eq!(vocabulary.mask(&mut grammar), mask);
        vocabulary.push(&mut grammar, "[[");
        drop(grammar);
        assert_eq!(vocabulary.allowed(&mut copy), vocabulary.eos);
        let mut threads = Vec::new();
        for _ in 0..2 {
            let mut copy = copy.clone();
            let words = vocabulary.size.div_ceil(32);
            threads.push(std::thread::spawn(move || {
                copy.pop(1).unwrap();
                copy.allowed(&mut vec![0; words]).unwrap();
            }));
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

/// No bound is asserted: the figures are for people (`cargo test --test grammars times -- --nocapture`).
#[test]
fn times() {
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["name", "age", "tags"], "additionalProperties": false});
    for vocabulary in all() {
        for (name, spec) in [
            ("object", GrammarSpec::JsonObject),
            ("schema", GrammarSpec::JsonSchema(schema.clone())),
            ("regex", GrammarSpec::Regex("[a-z ]{1,200}\\.".into())),
        ] {
            let started = Instant::now();
            let fresh = vocabulary.compile(&spec);
            let compiling = started.elapsed();
            let (mut masks, mut probes, mut pushes, mut clones) =
                (Times::default(), Times::default(), Times::default(), Times::default());
            let mut random = Random(1);
            let mut mask = vec![0; vocabulary.size.div_ceil(32)];
            for _ in 0..4 {
                let mut grammar = clones.of(|| fresh.clone());
                for _ in 0..50 {
                    masks.of(|| grammar.allowed(&mut mask)).unwrap();
                    for _ in 0..8 {
                        let token = random.below(vocabulary.size) as i32;
                        probes.of(|| grammar.accepts(token));
                    }
                    let allowed: Vec<i32> =
                        tokens(&mask).into_iter().filter(|&token| !vocabulary.is_eos(token)).collect();
                    if allowed.is_empty() {
                        break;
                    }
                    let token = random.of(&allowed);
                    probes.of(|| grammar.accepts(token));
                    pushes.of(|| grammar.push(token)).unwrap();
                }
            }
            println!(
                "{:15} {name}: compile {:?}, allowed {:.1} us, accepts {:.2} us, push {:.2} us, clone {:.0} us",
                vocabulary.name,
                compiling,
                masks.mean(),
                probes.mean(),
                pushes.mean(),
                clones.mean()
            );
            assert!(masks.count > 0 && probes.count > 0);
        }
    }
}

#[derive(Default)]
struct Times {
    sum: Duration,
    count: u32,
}

impl Times {
    fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let value = work();
        self.sum += started.elapsed();
        self.count += 1;
        value
    }

    /// Microseconds.
    fn mean(&self) -> f64 {
        self.sum.as_secs_f64() * 1e6 / f64::from(self.count)
    }
}
