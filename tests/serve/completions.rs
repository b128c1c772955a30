//! `/v1/completions`: what it answers is what the engine says, whole or streamed.

use serde_json::{Value, json};
use smart_run::engine::Request;
use smart_run::sampling::{Penalties, SamplingParams};
use smart_run::text::Tokenizer;

use super::client::{Stream, post};
use super::running::{CONTEXT, DEMO, plain_tokens, target};

const PATH: &str = "/v1/completions";

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&target()).unwrap().unwrap()
}

fn complete(body: Value) -> Value {
    post(DEMO.address, PATH, &body).good()
}

fn texts(answer: &Value) -> Vec<String> {
    let text = |choice: &Value| choice["text"].as_str().unwrap().to_owned();
    answer["choices"].as_array().unwrap().iter().map(text).collect()
}

/// Choices of a stream put together: text and finish reason.
fn joined(chunks: &[Value], count: usize) -> Vec<(String, Value)> {
    let mut choices = vec![(String::new(), Value::Null); count];
    for chunk in chunks {
        assert_eq!(chunk["object"], "text_completion");
        for choice in chunk["choices"].as_array().unwrap() {
            let (text, finish) = &mut choices[choice["index"].as_u64().unwrap() as usize];
            assert_eq!(*finish, Value::Null, "nothing follows the finish reason");
            text.push_str(choice["text"].as_str().unwrap());
            *finish = choice["finish_reason"].clone();
        }
    }
    choices
}

#[test]
fn greedy_text_is_the_engines_own() {
    let tokenizer = tokenizer();
    for prompt in ["def main(", "class Node:\n    def __init__(self", "import os\n"] {
        let ids = tokenizer.encode(prompt, true).unwrap();
        let expected = plain_tokens(&target(), Request::new(ids.clone(), 40));
        let text = tokenizer.decode(&expected).unwrap();
        for given in [json!(prompt), json!(ids)] {
            let answer =
                complete(json!({"model": "demo", "prompt": given, "max_tokens": 40, "temperature": 0}));
            assert_eq!(texts(&answer), std::slice::from_ref(&text));
            let usage = &answer["usage"];
            assert_eq!(usage["prompt_tokens"], ids.len());
            assert_eq!(usage["completion_tokens"], expected.len());
            assert_eq!(usage["total_tokens"], ids.len() + expected.len());
            let details = &usage["completion_tokens_details"];
            let accepted = details["accepted_prediction_tokens"].as_u64().unwrap();
            let rejected = details["rejected_prediction_tokens"].as_u64().unwrap();
            assert_eq!(usage["smart_run"]["drafted_tokens"], accepted + rejected);
            assert!(accepted > 0 && rejected > 0, "the demo drafter is neither useless nor perfect: {usage}");
            assert!(usage["smart_run"]["rounds"].as_u64().unwrap() < expected.len() as u64);
        }
    }
}

#[test]
fn sampled_text_is_the_engines_own() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("def sort(items):\n", true).unwrap();
    let sampling = SamplingParams { temperature: 0.8, top_p: 0.9, top_k: 50, min_p: 0.01, seed: 11 };
    let expected = plain_tokens(&target(), Request { sampling, ..Request::new(ids, 40) });
    let body = json!({"prompt": "def sort(items):\n", "max_tokens": 40, "temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 11});
    assert_eq!(texts(&complete(body)), [tokenizer.decode(&expected).unwrap()]);
}

#[test]
fn streams_say_what_whole_answers_say() {
    for body in [
        json!({"prompt": "def main(", "max_tokens": 30, "temperature": 0}),
        json!({"prompt": "def main(", "max_tokens": 30, "seed": 5}),
        json!({"prompt": "def f(x):\n", "max_tokens": 60, "seed": 5, "stop": ["return", "\n\n"]}),
        json!({"prompt": "for i in", "max_tokens": 20, "seed": 7, "n": 3, "temperature": 1.3}),
        json!({"prompt": ["def a(", "def b("], "max_tokens": 12, "seed": 1, "n": 2, "echo": true}),
        json!({"prompt": [[0, 305, 1789], [0, 9]], "max_tokens": 12, "seed": 1, "echo": true}),
        json!({"prompt": "s = '\u{e9}\u{20ac}", "max_tokens": 40, "seed": 3, "temperature": 2}),
    ] {
        let whole = complete(body.clone());
        let choices = whole["choices"].as_array().unwrap();
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({"include_usage": true});
        let mut chunks = Stream::open(DEMO.address, PATH, &streamed).chunks();
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(last["usage"][count], whole["usage"][count], "{body}");
        }
        assert!(chunks.iter().all(|chunk| chunk["usage"] == Value::Null && chunk["id"] == last["id"]));
        for (index, (text, finish)) in joined(&chunks, choices.len()).into_iter().enumerate() {
            assert_eq!(
                (json!(text), &finish),
                (choices[index]["text"].clone(), &choices[index]["finish_reason"]),
                "{body}"
            );
        }
        // Without being asked, no chunk speaks of usage.
        streamed.as_object_mut().unwrap().remove("stream_options");
        assert!(
            Stream::open(DEMO.address, PATH, &streamed)
                .chunks()
                .iter()
                .all(|chunk| chunk.get("usage").is_none())
        );
    }
}

#[test]
fn choices_have_seeds_in_turn_and_greedy_ones_are_equal() {
    let body = json!({"prompt": "def main(", "max_tokens": 16, "seed": 40, "n": 3});
    let all = texts(&complete(body.clone()));
    for (index, text) in all.iter().enumerate() {
        let mut single = body.clone();
        single["n"] = 1.into();
        single["seed"] = (40 + index).into();
        assert_eq!(texts(&complete(single)), std::slice::from_ref(text));
    }
    assert!(all[0] != all[1] || all[1] != all[2]);
    let greedy = texts(&complete(json!({"prompt": "def main(", "max_tokens": 16, "n": 3, "temperature": 0})));
    assert!(greedy[0] == greedy[1] && greedy[1] == greedy[2]);
    // Several prompts: choices of the first, then of the second, each as if it were alone.
    let two =
        texts(&complete(json!({"prompt": ["def main(", "import "], "max_tokens": 16, "seed": 40, "n": 2})));
    assert_eq!(two[..2], all[..2]);
    assert_eq!(texts(&complete(json!({"prompt": "import ", "max_tokens": 16, "seed": 41}))), two[3..]);
}

#[test]
fn a_seed_that_was_drawn_is_told_and_gives_the_same_again() {
    let body = json!({"prompt": "def main(", "max_tokens": 24, "temperature": 1.5});
    let first = complete(body.clone());
    let other = complete(body.clone());
    assert_ne!(first["smart_run"]["seed"], other["smart_run"]["seed"]);
    let mut again = body;
    again["seed"] = first["smart_run"]["seed"].clone();
    assert_eq!(texts(&complete(again)), texts(&first));
    for seed in [json!(-1), json!(u64::MAX), json!(i64::MIN)] {
        let answer = complete(json!({"prompt": "a", "max_tokens": 1, "seed": seed}));
        let told = answer["smart_run"]["seed"].as_u64().unwrap();
        assert_eq!(told, seed.as_u64().unwrap_or_else(|| seed.as_i64().unwrap() as u64));
    }
}

#[test]
fn a_stop_string_ends_a_text() {
    let greedy = json!({"prompt": "def main(", "max_tokens": 40, "temperature": 0});
    let whole = texts(&complete(greedy.clone())).remove(0);
    let with = |field: &str, value: Value| {
        let mut body = greedy.clone();
        body[field] = value;
        complete(body)
    };
    let stop = &whole[8..12];
    let stopped = with("stop", json!(stop));
    assert_eq!(texts(&stopped), [whole[..whole.find(stop).unwrap()].to_owned()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() < 40);
    assert_eq!(with("stop", json!(["\u{0}nowhere"]))["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_stop_token_ends_a_text() {
    let tokenizer = tokenizer();
    let ids = plain_tokens(&target(), Request::new(tokenizer.encode("def main(", true).unwrap(), 40));
    let token = ids[7];
    let before = ids.iter().position(|&id| id == token).unwrap();
    let stopped = complete(
        json!({"prompt": "def main(", "max_tokens": 40, "temperature": 0, "stop_token_ids": [token]}),
    );
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["usage"]["completion_tokens"], before);
    assert_eq!(texts(&stopped), [tokenizer.decode(&ids[..before]).unwrap()]);
}

#[test]
fn an_answer_ends_with_its_limit_or_the_context() {
    let answer = complete(json!({"prompt": "def main(", "temperature": 0, "ignore_eos": true}));
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
    let answer = complete(json!({"prompt": "def main(", "max_tokens": 1, "temperature": 0}));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    let answer =
        complete(json!({"prompt": "def main(", "max_tokens": 100_000, "temperature": 0, "ignore_eos": true}));
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn fields_that_ask_for_nothing_are_taken_and_unknown_ones_ignored() {
    let plain = texts(&complete(json!({"prompt": "def main(", "temperature": 0})));
    let body = json!({
        "prompt": "def main(", "temperature": 0, "user": "u", "best_of": 1, "suffix": null, "echo": false, "logprobs": null, "stop": null,
        "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1, "top_p": 1, "top_k": -1, "min_p": 0,
        "response_format": {"type": "text"}, "speculation": "auto", "something": {"else": [1]}, "stream": false, "n": 1,
        "stop_token_ids": [], "max_completion_tokens": 16, "model": "demo", "smart_run": {"watch": false}
    });
    assert_eq!(texts(&complete(body)), plain);
    let off = complete(json!({"prompt": "def main(", "temperature": 0, "speculation": "off"}));
    assert_eq!((texts(&off), &off["usage"]["smart_run"]["drafted_tokens"]), (plain.clone(), &json!(0)));
    assert_eq!(texts(&complete(json!({"prompt": "def main(", "top_p": 0, "seed": 3}))), plain);
    assert_eq!(
        texts(&complete(json!({"prompt": "def main(", "temperature": 0, "echo": true}))),
        [format!("def main({}", plain[0])]
    );
}

#[test]
fn a_watched_stream_shows_every_rounds_tree() {
    let body = json!({"prompt": "def main(", "max_tokens": 30, "temperature": 0, "stream": true, "smart_run": {"watch": true}});
    let chunks = Stream::open(DEMO.address, PATH, &body).chunks();
    let (mut tokens, mut trees) = (String::new(), 0);
    for chunk in &chunks {
        let round = &chunk["smart_run"]["round"];
        let list = round["tokens"].as_array().unwrap();
        tokens.extend(list.iter().map(|token| token["text"].as_str().unwrap()));
        let accepted = round["accepted"].as_u64().unwrap() as usize;
        assert!(accepted <= list.len());
        let Some(nodes) = round["tree"]["nodes"].as_object() else { continue };
        trees += 1;
        let count = nodes["tokens"].as_array().unwrap().len();
        assert_eq!(nodes["parents"].as_array().unwrap().len(), count);
        assert_eq!(round["tree"]["texts"].as_array().unwrap().len(), count);
        // The accepted nodes are the round's first tokens.
        for (node, token) in round["tree"]["accepted"].as_array().unwrap().iter().zip(list) {
            assert_eq!(nodes["tokens"][node.as_u64().unwrap() as usize], token["id"]);
        }
    }
    assert!(trees > 3, "{trees} trees");
    assert_eq!(tokens, joined(&chunks, 1)[0].0);
    let plain =
        Stream::open(DEMO.address, PATH, &json!({"prompt": "a", "stream": true, "max_tokens": 3})).chunks();
    assert!(plain.iter().all(|chunk| chunk["smart_run"].get("round").is_none()));
}

/// What the engine does with them is tested with the engine; here, that they arrive.
#[test]
fn penalties_and_biases_reach_the_engine() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("def main(", true).unwrap();
    let greedy = Request::new(ids, 24);
    let plain = plain_tokens(&target(), greedy.clone());
    for (fields, request) in [
        (
            json!({"presence_penalty": 1.5}),
            Request { penalties: Penalties { presence: 1.5, ..Penalties::default() }, ..greedy.clone() },
        ),
        (
            json!({"frequency_penalty": 1.25}),
            Request { penalties: Penalties { frequency: 1.25, ..Penalties::default() }, ..greedy.clone() },
        ),
        (
            json!({"repetition_penalty": 1.3}),
            Request { penalties: Penalties { repetition: 1.3, ..Penalties::default() }, ..greedy.clone() },
        ),
        (
            json!({"logit_bias": {plain[2].to_string(): -100}}),
            Request { logit_bias: vec![(plain[2], -100.0)], ..greedy },
        ),
    ] {
        let expected = plain_tokens(&target(), request);
        assert_ne!(expected, plain, "{fields}");
        let mut body = json!({"prompt": "def main(", "max_tokens": 24, "temperature": 0});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(texts(&complete(body)), [tokenizer.decode(&expected).unwrap()], "{fields}");
    }
}

/// Whole and streamed; text, bytes and offsets belong together.
#[test]
fn log_probabilities_go_with_their_tokens() {
    let body = json!({"prompt": "def main(", "max_tokens": 20, "temperature": 0, "logprobs": 3});
    let answer = complete(body.clone());
    let (choice, values) = (&answer["choices"][0], &answer["choices"][0]["logprobs"]);
    let text = choice["text"].as_str().unwrap();
    let list = |name: &str| values[name].as_array().unwrap().clone();
    assert_eq!(list("tokens").len(), 20);
    assert_eq!(list("tokens").iter().map(|token| token.as_str().unwrap()).collect::<String>(), text);
    let bytes: Vec<u8> = list("bytes")
        .iter()
        .flat_map(|token| serde_json::from_value::<Vec<u8>>(token.clone()).unwrap())
        .collect();
    assert_eq!(bytes, text.as_bytes());
    for (index, offset) in list("text_offset").iter().enumerate() {
        let start: String = text.chars().skip(offset.as_u64().unwrap() as usize).collect();
        assert!(start.starts_with(list("tokens")[index].as_str().unwrap()));
        let top = list("top_logprobs")[index].as_object().unwrap().clone();
        let own = list("token_logprobs")[index].as_f64().unwrap();
        assert!((3..=4).contains(&top.len()) && own <= 0.0);
        assert!(
            top.values().all(|value| value.as_f64().unwrap() <= own + 1e-6),
            "the greedy token is the likeliest"
        );
    }
    let mut streamed = body;
    streamed["stream"] = true.into();
    let chunks = Stream::open(DEMO.address, PATH, &streamed).chunks();
    let joined = |name: &str| -> Vec<Value> {
        chunks
            .iter()
            .flat_map(|chunk| chunk["choices"][0]["logprobs"][name].as_array().unwrap().clone())
            .collect()
    };
    for name in ["tokens", "token_logprobs", "text_offset", "bytes"] {
        assert_eq!(joined(name), list(name), "{name}");
    }
}
