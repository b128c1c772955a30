//! Grammars of strangers: one sentence, soon.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use smart_run::Error;
use smart_run::text::{GrammarCompiler, GrammarSpec, Tokenizer};

use crate::vocabularies::{Random, demo};

/// Far above what any case takes, for slow machines; far below what an unbounded one would.
const SOON: Duration = Duration::from_secs(10);

/// Compiles, and where that succeeds walks a while; `None`, or the sentence.
fn outcome(spec: GrammarSpec) -> Option<String> {
    let vocabulary = demo();
    let started = Instant::now();
    let result = vocabulary.compiler.compile(&spec).and_then(|mut grammar| {
        let mut random = Random(3);
        let mut mask = vec![0; vocabulary.size.div_ceil(32)];
        for _ in 0..20 {
            grammar.allowed(&mut mask)?;
            let allowed = crate::vocabularies::tokens(&mask);
            grammar.push(random.of(&allowed))?;
        }
        Ok(())
    });
    let elapsed = started.elapsed();
    let shown: String = format!("{spec:?}").chars().take(60).collect();
    println!(
        "{elapsed:>10.1?} {shown} ... -> {}",
        result.as_ref().err().map_or("ok".into(), Error::to_string)
    );
    assert!(elapsed < SOON, "{elapsed:?}: {shown}");
    result.err().map(|error| {
        let sentence = error.to_string();
        assert!(matches!(error, Error::Input(_)), "{sentence}");
        assert!(sentence.len() < 500 && !sentence.contains('\n'), "{sentence}");
        sentence
    })
}

fn refused(spec: GrammarSpec, why: &str) {
    let sentence = outcome(spec).expect("it is refused");
    assert!(sentence.contains(why), "{sentence}");
}

fn schema(schema: Value) -> GrammarSpec {
    GrammarSpec::JsonSchema(schema)
}

#[test]
fn what_cannot_be_enforced_is_named() {
    refused(
        schema(json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true})),
        "uniqueItems",
    );
    refused(schema(json!({"not": {"type": "string"}})), "not");
    refused(schema(json!({"if": {"type": "string"}, "then": {"maxLength": 3}})), "if");
    refused(schema(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})), "must exclude each other");
    refused(schema(json!({"type": "strin"})), "strin");
    refused(schema(json!({"type": 3})), "type must be a string");
    refused(schema(json!(3)), "a JSON schema is an object");
    refused(schema(json!(false)), "no text is valid");
    refused(schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "minimum");
    refused(schema(json!({"allOf": [{"type": "integer"}, {"type": "string"}]})), "nsatisfiable");
    refused(schema(json!({"type": "string", "pattern": "("})), "cannot be followed");
    refused(schema(json!({"x-guidance": {"whitespace_pattern": "x"}, "type": "strin"})), "strin");
}

#[test]
fn an_option_of_the_crate_in_a_schema_changes_nothing() {
    let vocabulary = demo();
    let spec =
        schema(json!({"type": "array", "x-guidance": {"item_separator": ";", "whitespace_pattern": "x+"}}));
    let mut grammar = vocabulary.compile(&spec);
    vocabulary.push(&mut grammar, "[1, 2]");
    assert!(grammar.is_complete());
}

#[test]
fn white_space_ends() {
    let vocabulary = demo();
    let mut grammar = vocabulary.compile(&GrammarSpec::JsonObject);
    vocabulary.push(&mut grammar, "{");
    let space = vocabulary.spell(" ")[0];
    let spaces = (0..1000).take_while(|_| grammar.push(space).is_ok()).count();
    assert_eq!(spaces, 64);
    vocabulary.push(&mut grammar, "}");
}

#[test]
fn references_stay_within_the_schema() {
    refused(schema(json!({"$ref": "https://example.com/schema.json"})), "is not fetched");
    refused(schema(json!({"properties": {"a": {"items": {"$ref": "other.json#/x"}}}})), "\"other.json#/x\"");
    refused(schema(json!({"$ref": "file:///etc/passwd"})), "is not fetched");
    refused(schema(json!({"$ref": "#/$defs/nothing"})), "nothing");
    // No references: a property of that name, and data.
    assert_eq!(outcome(schema(json!({"properties": {"$ref": {"type": "string"}}}))), None);
    assert_eq!(outcome(schema(json!({"const": {"$ref": "https://example.com"}}))), None);
}

#[test]
fn loops_of_references_end() {
    for looping in [
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "allOf": [{"$ref": "#/$defs/a"}]}}}),
        json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        json!({"type": "array", "items": {"$ref": "#"}, "minItems": 2}),
    ] {
        outcome(schema(looping));
    }
}

#[test]
fn deep_nesting_is_refused_or_survived() {
    let nest = |levels: usize, inner: Value| (0..levels).fold(inner, |inner, _| json!({"items": inner}));
    assert_eq!(outcome(schema(nest(60, json!({"type": "string"})))), None);
    refused(schema(nest(200, json!({}))), "nests more than 128 levels");
    let lists = (0..200).fold(json!([]), |inner, _| json!([inner]));
    refused(schema(json!({"const": lists})), "nests more than 128 levels");
    let any_of =
        (0..60).fold(json!({"type": "null"}), |inner, _| json!({"anyOf": [inner, {"type": "integer"}]}));
    outcome(schema(any_of));
    outcome(GrammarSpec::Regex(format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000))));
    outcome(GrammarSpec::Regex(format!("a{}", "?".repeat(20_000))));
    outcome(GrammarSpec::Lark(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))));
    outcome(GrammarSpec::Lark(format!("start: {}\"a\"{}", "[".repeat(20_000), "]".repeat(20_000))));
}

/// Every definition is the next one's name, and rules and lexemes likewise.
#[test]
fn long_chains_are_survived() {
    let mut definitions = Map::new();
    for index in 0..7000 {
        definitions.insert(format!("d{index}"), json!({"$ref": format!("#/$defs/d{}", index + 1)}));
    }
    definitions.insert("d7000".into(), json!({"type": "null"}));
    outcome(schema(json!({"$ref": "#/$defs/d0", "$defs": definitions})));
    let chain = |name: &str, last: &str| {
        let mut lark = format!("start: {name}0\n");
        for index in 0..9000 {
            writeln!(lark, "{name}{index}: {name}{} \"x\"", index + 1).unwrap();
        }
        writeln!(lark, "{name}9000: {last}").unwrap();
        lark
    };
    outcome(GrammarSpec::Lark(chain("r", "\"y\"")));
    outcome(GrammarSpec::Lark(chain("T", "\"y\"")));
}

#[test]
fn huge_grammars_are_refused_or_survived() {
    let words: Vec<String> = (0..12_000).map(|index| format!("word {index}")).collect();
    outcome(schema(json!({"enum": words})));
    let too_many: Vec<String> = (0..80_000).map(|index| format!("word {index}")).collect();
    refused(schema(json!({"enum": too_many})), "longer than 256 KiB");
    let properties = |count: usize| {
        let fields: Map<String, Value> =
            (0..count).map(|index| (format!("p{index}"), json!({"type": "string"}))).collect();
        json!({"type": "object", "properties": fields})
    };
    outcome(schema(properties(1000)));
    refused(schema(properties(8000)), "8000 entries under `properties`");
    let names: Vec<String> = (0..8000).map(|index| format!("p{index}")).collect();
    refused(schema(json!({"type": "object", "required": names})), "8000 entries under `required`");
    outcome(schema(properties(2000)));
    refused(schema(properties(40_000)), "longer than 256 KiB");
    refused(schema(json!({"description": "x".repeat(1 << 20)})), "longer than 256 KiB");
    let patterns: Map<String, Value> =
        (0..65).map(|index| (format!("^[a-z]+{index}$"), json!({"type": "string"}))).collect();
    refused(schema(json!({"type": "object", "patternProperties": patterns})), "65 entries");
    let patterns: Map<String, Value> = patterns.into_iter().take(64).collect();
    outcome(schema(json!({"type": "object", "patternProperties": patterns})));
    let options: Vec<Value> = (0..2000)
        .map(|index| json!({"properties": {format!("p{index}"): {"type": "string"}}, "required": ["x"]}))
        .collect();
    outcome(schema(json!({"anyOf": options})));
    outcome(schema(json!({"oneOf": options})));
    outcome(schema(json!({"allOf": options})));
    refused(GrammarSpec::Regex("a".repeat(1 << 20)), "longer than 256 KiB");
    refused(GrammarSpec::Lark(" ".repeat(1 << 20)), "longer than 256 KiB");
}

#[test]
fn quantifiers_are_bounded_in_work() {
    outcome(schema(json!({"type": "string", "minLength": 1_000_000})));
    outcome(schema(json!({"type": "string", "maxLength": 1_000_000})));
    refused(schema(json!({"type": "string", "minLength": u64::MAX})), "under `minLength`");
    refused(schema(json!({"type": "array", "minItems": u64::MAX})), "under `minItems`");
    outcome(schema(json!({"type": "string", "maxLength": i32::MAX})));
    outcome(schema(json!({"type": "array", "maxItems": i32::MAX})));
    outcome(schema(json!({"type": "object", "maxProperties": i32::MAX})));
    outcome(schema(
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000, "maxItems": 1_000_000_000}),
    ));
    outcome(schema(json!({"type": "object", "minProperties": 1_000_000})));
    refused(schema(json!({"type": "integer", "minimum": i64::MIN})), "under `minimum`");
    refused(schema(json!({"type": "number", "exclusiveMaximum": 1e300})), "under `exclusiveMaximum`");
    refused(schema(json!({"enum": [1, u64::MAX]})), "under `enum`");
    assert_eq!(outcome(schema(json!({"type": "integer", "default": u64::MAX}))), None);
    outcome(schema(json!({"type": "integer", "minimum": -(1i64 << 53), "maximum": 1i64 << 53})));
    outcome(schema(json!({"type": "number", "exclusiveMinimum": -1e-300, "maximum": 1e-300})));
    for divisors in [
        vec![1e-300],
        vec![4_294_967_291.0],
        vec![0.9999, 9999.0],
        vec![255.0, 256.0, 257.0],
        vec![0.00001],
        vec![0.1, 1e300],
    ] {
        let all_of: Vec<Value> = divisors.iter().map(|divisor| json!({"multipleOf": divisor})).collect();
        refused(schema(json!({"type": "number", "allOf": all_of})), "multipleOf");
    }
    outcome(schema(
        json!({"type": "number", "allOf": [{"multipleOf": 0.25}, {"multipleOf": -3}, {"multipleOf": 0.0001}]}),
    ));
    outcome(schema(json!({"type": "integer", "multipleOf": 65_535})));
    outcome(schema(json!({"type": "integer", "multipleOf": 0})));
    for regex in [
        "a{1,1000000}",
        "(a{1,1000}){1,1000}",
        "(a|b){1,1000000}c",
        "((((a{0,99}){0,99}){0,99}){0,99}){0,99}",
        "(a*)*b",
        "(a|aa)+$",
        "(.*)(.*)(.*)(.*)(.*)x",
        "(a|b)*a(a|b){20}",
        ".*a.{30}b.{30}c",
        "[^x]*(x[^y]*y[^z]*z){5,500}",
        r"\p{L}{1,500}\P{L}{1,500}",
    ] {
        outcome(GrammarSpec::Regex(regex.into()));
    }
    outcome(GrammarSpec::Lark("start: a a a a a a\na: b*\nb: c*\nc: \"x\"*".into()));
    outcome(GrammarSpec::Lark("start: start start | \"a\" | ".into()));
    outcome(GrammarSpec::Lark("start: x{1,1000000}\nx: \"a\" | \"b\"".into()));
    outcome(GrammarSpec::Lark("start: a\na: a".into()));
}

#[test]
fn what_is_no_grammar_is_called_so() {
    refused(GrammarSpec::Regex(String::new()), "empty");
    refused(GrammarSpec::Regex("(a".into()), "cannot be followed");
    refused(GrammarSpec::Regex("a\\".into()), "within an escape");
    refused(GrammarSpec::Regex("[^\\s\\S]".into()), "");
    refused(GrammarSpec::Regex(r"(a)\1".into()), "cannot be followed");
    refused(GrammarSpec::Lark(String::new()), "empty");
    refused(GrammarSpec::Lark("begin: \"a\"".into()), "start");
    refused(GrammarSpec::Lark("start: nothing".into()), "nothing");
    refused(GrammarSpec::Lark("start: \"a\" <|end|>".into()), "");
    refused(GrammarSpec::Lark("start: %json {\"const\": -9e300}".into()), "%json");
    refused(GrammarSpec::Lark("start: a\na[max_tokens=3]: /x*/".into()), "max_tokens");
    refused(GrammarSpec::Lark("start: a\na[stop=\"y\"]: /x*/".into()), "stop");
    // Cut within a character, a message would be a panic of the crate.
    outcome(schema(json!({"$ref": ["ä".repeat(100)], "x": "ö"})));
    outcome(schema(json!({"$ref": ["xä".repeat(100)]})));
}

#[test]
fn a_text_that_nothing_can_go_on_with_is_an_error() {
    // A vocabulary that lacks what the grammar needs.
    let json = json!({
        "version": "1.0", "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []},
    });
    let tokenizer = Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes()).unwrap();
    let compiler = GrammarCompiler::new(&tokenizer, 3, &[]).unwrap();
    let refused = compiler.compile(&GrammarSpec::Regex("c".into())).unwrap_err();
    assert!(refused.to_string().contains("none of the vocabulary's tokens may come next"), "{refused}");
    let mut grammar = compiler.compile(&GrammarSpec::Regex("abc|b".into())).unwrap();
    let mut mask = [0];
    grammar.push(2).unwrap();
    assert!(grammar.allowed(&mut mask).is_err());
    grammar.pop(1).unwrap();
    grammar.push(1).unwrap();
    grammar.allowed(&mut mask).unwrap();
    assert!(grammar.is_complete() && mask == [0], "without an end-of-sequence token nothing follows");

    assert!(GrammarCompiler::new(&tokenizer, 3, &[3]).is_err());
    assert!(GrammarCompiler::new(&tokenizer, 0, &[]).is_err());
    assert!(GrammarCompiler::new(&tokenizer, 1 << 24, &[]).is_err());
    let word_piece = json!({
        "version": "1.0", "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    });
    let tokenizer = Tokenizer::from_json("tokenizer.json", word_piece.to_string().as_bytes()).unwrap();
    assert!(
        GrammarCompiler::new(&tokenizer, 1, &[])
            .unwrap_err()
            .to_string()
            .contains("single tokens have no bytes")
    );
}
