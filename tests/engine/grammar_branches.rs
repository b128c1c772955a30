//! Grammars and what drafts alone say: a branch that the target never takes ends no text, and no text goes on behind its grammar's end.

use std::fmt::Write;

use smart_run::config::{FloatType, ModelSource};
use smart_run::control::Policy;
use smart_run::engine::{DraftSource, Engine, FinishReason, NO_TOKEN, Request};
use smart_run::sampling::SamplingParams;
use smart_run::text::{GrammarCompiler, GrammarSpec, Tokenizer};
use smart_run::tree::DraftTree;

use crate::fixtures::{demo, greedy, paying_costs, repository};

/// What became of a request.
#[derive(Debug, PartialEq)]
struct Outcome {
    tokens: Vec<i32>,
    num_logprobs: usize,
    finished: FinishReason,
    failure: Option<String>,
}

/// Serves `request` alone; `drafted` sees every path of the trees that were verified, from behind the prompt on.
fn outcome(engine: &mut Engine, request: &Request, mut drafted: impl FnMut(&[i32])) -> Outcome {
    let id = engine.submit(request.clone()).unwrap();
    let (mut tokens, mut num_logprobs) = (Vec::new(), 0);
    loop {
        let emissions = engine.step().unwrap();
        if let Some(trace) = engine.round_trace(id) {
            let tree = &trace.tree;
            for node in (1..tree.tokens.len()).filter(|&node| tree.verified[node]) {
                let mut path = Vec::new();
                let mut at = node;
                while at > 0 {
                    path.push(tree.tokens[at]);
                    at = tree.parents[at] as usize;
                }
                path.extend(tokens.iter().rev());
                path.reverse();
                drafted(&path);
            }
        }
        for emission in emissions {
            tokens.extend(emission.tokens);
            num_logprobs += emission.logprobs.len();
            if let Some(finished) = emission.finished {
                let failure = emission.failure.map(|failure| failure.to_string());
                return Outcome { tokens, num_logprobs, finished, failure };
            }
        }
    }
}

struct Demo {
    tokenizer: Tokenizer,
    compiler: GrammarCompiler,
    plain: Engine,
    others: Vec<(&'static str, Engine)>,
}

impl Demo {
    fn new() -> Self {
        let plain = demo(FloatType::Bf16, Policy::Plain);
        let tokenizer =
            Tokenizer::open(&ModelSource::from(repository("assets/demo/target"))).unwrap().unwrap();
        let config = plain.model_config();
        let compiler =
            GrammarCompiler::new(&tokenizer, config.geometry.vocab_size, &config.eos_token_ids).unwrap();
        let network = || repository("assets/demo/drafter").into();
        let others: [(&str, DraftSource, &str); 6] = [
            ("smart", network(), "smart"),
            ("eagle2", network(), "eagle2:10,5,60"),
            ("eagle2, small", network(), "eagle2:4,3,12"),
            ("chain", network(), "chain:4"),
            ("n-grams", DraftSource::Ngrams, "chain:4"),
            ("Medusa", repository("tests/golden/medusa_demo/drafter").into(), "chain:3"),
        ];
        let build = |(name, drafter, policy): (&'static str, DraftSource, &str)| {
            let engine = Engine::builder(repository("assets/demo/target"))
                .drafter(drafter)
                .float_type(FloatType::Bf16)
                .costs(paying_costs())
                .policy(policy.parse().unwrap())
                .max_context(512)
                .build();
            (name, engine.unwrap())
        };
        Self { tokenizer, compiler, plain, others: others.map(build).into() }
    }

    fn request(&self, prompt: &str, spec: &GrammarSpec, temperature: f32, seed: u64) -> Request {
        let prompt = self.tokenizer.encode(prompt, true).unwrap();
        Request {
            grammar: Some(self.compiler.compile(spec).unwrap()),
            sampling: SamplingParams { temperature, seed, ..SamplingParams::default() },
            logprobs: Some(0),
            ..greedy(&prompt, 40)
        }
    }

    /// What plain decoding makes of `request`, and every other policy, too; whether any of them drafted a path that begins with `text`.
    fn outcome(&mut self, request: &Request, text: &str) -> (Outcome, bool) {
        let wanted = outcome(&mut self.plain, request, |_| ());
        assert_eq!(wanted.num_logprobs, wanted.tokens.len());
        let mut met = false;
        for (name, engine) in &mut self.others {
            let got = outcome(engine, request, |path| {
                met |= self.tokenizer.decode(path).unwrap().starts_with(text);
            });
            assert_eq!(got, wanted, "{name}");
            assert_eq!(engine.page_counts().used, 0, "{name}");
        }
        (wanted, met)
    }
}

/// More ways to go on than a parser follows at once.
fn hard() -> String {
    let names: Vec<String> = (0..3000).map(|index| format!("r{index}")).collect();
    let mut rules = format!("hard: {}\n", names.join(" | "));
    for name in names {
        writeln!(rules, "{name}: \"q{name}\"").unwrap();
    }
    rules
}

/// Behind `easy` anything goes, behind `dead` the parser gives up.
fn fork(easy: &str, dead: &str) -> GrammarSpec {
    let rest = "rest: /[^~]*/\n";
    GrammarSpec::Lark(format!("start: A rest | B hard\nA: {easy:?}\nB: {dead:?}\n{rest}{}", hard()))
}

#[test]
fn a_branch_that_the_grammar_gives_up_at_ends_no_text() {
    let mut demo = Demo::new();
    let forks = [
        ("    if x is None:", "\n        return ", "\n        x"),
        ("x =", " 0", " 1"),
        ("x =", " 1", " 0"),
        // What n-grams draft is not what the model says.
        ("a = 1\nb = 1\nc = 1\nx =", " 0", " 1"),
        ("a = 0\nb = 0\nc = 0\nx =", " 1", " 0"),
    ];
    let (mut survived, mut met) = ([0, 0], 0);
    for (prompt, easy, dead) in forks {
        for (index, temperature) in [0.0, 1.0].into_iter().enumerate() {
            for seed in 0..if index == 0 { 1 } else { 3 } {
                let request = demo.request(prompt, &fork(easy, dead), temperature, seed);
                let (wanted, drafted) = demo.outcome(&request, dead);
                survived[index] += usize::from(wanted.failure.is_none());
                met += usize::from(wanted.failure.is_none() && drafted);
            }
        }
    }
    eprintln!("{survived:?} texts went on, {met} of them past a branch that did not");
    assert!(survived.iter().all(|&count| count > 0) && met > 2, "{survived:?}, {met}");
}

#[test]
fn a_text_that_its_grammar_gives_up_at_fails_where_plain_decoding_does() {
    let mut demo = Demo::new();
    let spec = GrammarSpec::Lark(format!("start: A hard\nA: \"def __init__(self, name):\"\n{}", hard()));
    for temperature in [0.0, 1.0] {
        let request = demo.request("class Person:\n    ", &spec, temperature, 1);
        let (wanted, _) = demo.outcome(&request, "");
        assert_eq!(demo.tokenizer.decode(&wanted.tokens).unwrap(), "def __init__(self, name):");
        assert_eq!(wanted.finished, FinishReason::Failed);
        let failure = wanted.failure.unwrap();
        assert!(failure.contains("max is 2000"), "{failure}");
    }
}

/// Trees of a caller, who does not know where the grammar gives up: the dead branch is in every tree, and the text goes on beside it, with
/// words that only the grammar would say: nothing is drawn without its masks.
#[test]
fn trees_of_callers_may_lead_where_the_grammar_gives_up() {
    let mut demo = Demo::new();
    let mut survived = 0;
    for (easy, dead) in [("0", "1"), ("1", "0")] {
        let lark = format!(
            "start: \"a = \" (A rest | B hard)\nA: {easy:?}\nB: {dead:?}\nrest: /( quick brown zebras;)+/\n{}",
            hard()
        );
        let request = demo.request("b = 2\n", &GrammarSpec::Lark(lark), 0.0, 0);
        let wanted = outcome(&mut demo.plain, &request, |_| ());
        survived += usize::from(wanted.failure.is_none());
        let dead = demo.tokenizer.encode(dead, false).unwrap()[0];
        demo.plain.submit(request).unwrap();
        let (mut tokens, mut last): (Vec<i32>, _) = (Vec::new(), None);
        while last.is_none() {
            let emissions = match tokens.last() {
                None => demo.plain.step().unwrap(),
                Some(&root) => {
                    let mut tree = DraftTree::new(root);
                    // The dead branch first, at every depth, beside what comes.
                    let (mut at, mut upcoming) = (0, wanted.tokens[tokens.len()..].iter().take(5));
                    loop {
                        let branch = tree.push(at, dead);
                        at = match upcoming.next() {
                            Some(&token) if token == dead => branch,
                            Some(&token) => tree.push(at, token),
                            None => break,
                        };
                    }
                    demo.plain.step_with(&[tree]).unwrap()
                }
            };
            for emission in emissions {
                tokens.extend(emission.tokens);
                last = emission.finished.map(|finished| (finished, emission.failure));
            }
        }
        let (finished, failure) = last.unwrap();
        assert_eq!((&tokens, finished), (&wanted.tokens, wanted.finished));
        assert_eq!(failure.map(|failure| failure.to_string()), wanted.failure);
    }
    assert!(survived > 0);
}

/// The grammar wants a letter that is banned: whatever was accepted on the way there has its log-probability.
#[test]
fn tokens_accepted_before_one_that_cannot_be_drawn_have_their_log_probabilities() {
    let mut demo = Demo::new();
    let spec = GrammarSpec::Regex("return self\\.name = None q".into());
    let request = demo.request("def f(self):\n    ", &spec, 0.0, 0);
    let vocab_size = demo.plain.model_config().geometry.vocab_size as i32;
    let has_q = |token: &i32| demo.tokenizer.decode(&[*token]).unwrap().contains('q');
    let logit_bias = (0..vocab_size).filter(has_q).map(|token| (token, f32::NEG_INFINITY)).collect();
    let request = Request { logit_bias, ..request };
    let (wanted, _) = demo.outcome(&request, "");
    assert_eq!(demo.tokenizer.decode(&wanted.tokens).unwrap().trim_end(), "return self.name = None");
    assert_eq!((wanted.finished, wanted.failure.as_deref()), (FinishReason::Failed, Some(NO_TOKEN)));
}

#[test]
fn a_text_ends_where_its_grammar_does_whatever_its_tree() {
    let mut demo = Demo::new();
    let schema = serde_json::json!({
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": false
    });
    let specs = [
        ("def f(n):\n    ", GrammarSpec::Regex(r"return [a-z]{1,4}\(n\)".into())),
        ("x = ", GrammarSpec::JsonSchema(schema)),
        ("import os\n", GrammarSpec::Regex("import [a-z]{2,8}\n".into())),
    ];
    for (prompt, spec) in specs {
        for temperature in [0.0, 0.9] {
            for ignore_eos in [true, false] {
                let request = demo.request(prompt, &spec, temperature, 3);
                let request = Request { ignore_eos, ..request };
                let (wanted, _) = demo.outcome(&request, "");
                assert_eq!((wanted.finished, wanted.failure), (FinishReason::Eos, None));
                let mut grammar = request.grammar.unwrap();
                for &token in &wanted.tokens {
                    assert!(!grammar.is_complete());
                    grammar.push(token).unwrap();
                }
                assert!(grammar.is_complete());
            }
        }
    }
}
