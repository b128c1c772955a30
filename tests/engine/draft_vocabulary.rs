//! Drafters that propose from a part of the target's vocabulary: what is left is ranked as before, and no text changes.

use std::path::Path;

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{DraftSource, DraftVocabulary, Engine, EngineBuilder};
use smart_run::sampling::SamplingParams;
use tempfile::NamedTempFile;

use crate::fixtures::{greedy, repository, run};
use crate::random_drafters::random_drafter;

const VOCAB_SIZE: i32 = 160;
const PROMPT: [i32; 9] = [5, 21, 92, 7, 7, 140, 3, 64, 11];

fn target() -> std::path::PathBuf {
    repository("tests/golden/llama31_gqa")
}

fn builder(drafter: &Path, policy: &str) -> EngineBuilder<'static> {
    let builder = Engine::builder(target()).drafter(drafter).float_type(FloatType::F32);
    builder.policy(policy.parse().unwrap()).max_context(256)
}

/// A file of all tokens but `without`, in no order.
fn all_but(without: &[i32]) -> (NamedTempFile, DraftVocabulary) {
    let kept: Vec<i32> =
        (0..VOCAB_SIZE).map(|i| i * 63 % VOCAB_SIZE).filter(|id| !without.contains(id)).collect();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serde_json::to_vec(&kept).unwrap()).unwrap();
    let vocabulary = DraftVocabulary::Listed(file.path().into());
    (file, vocabulary)
}

/// The root's children in the first round that drafts: tokens and log-probabilities, likeliest first.
fn first_children(mut engine: Engine) -> Vec<(i32, f32)> {
    let id = engine.submit(greedy(&PROMPT, 20)).unwrap();
    loop {
        engine.step().unwrap();
        let Some(trace) = engine.round_trace(id).filter(|trace| trace.tree.tokens.len() > 1) else {
            continue;
        };
        let tree = &trace.tree;
        let children = (1..tree.tokens.len()).filter(|&node| tree.parents[node] == 0);
        let mut children: Vec<_> =
            children.map(|node| (tree.tokens[node], tree.logprob[node].unwrap())).collect();
        children.sort_by(|a, b| b.1.total_cmp(&a.1));
        return children;
    }
}

#[test]
fn the_likeliest_tokens_that_are_left_are_drafted() {
    let golden = repository("tests/golden");
    let eagle3 = random_drafter(&target(), false);
    for drafter in
        [golden.join("eagle1_random/drafter"), golden.join("medusa_random/drafter"), eagle3.path().into()]
    {
        let policy = "eagle2:10,1,20";
        let all = first_children(builder(&drafter, policy).build().unwrap());
        assert_eq!(all.len(), 10);
        let (_file, vocabulary) = all_but(&[all[0].0, all[4].0]);
        let left = first_children(builder(&drafter, policy).draft_vocabulary(vocabulary).build().unwrap());
        let wanted: Vec<_> = all.iter().enumerate().filter(|(i, _)| ![0, 4].contains(i)).collect();
        // What is left has the probability of what is gone in the same proportion.
        let gained = left[0].1 - wanted[0].1.1;
        assert!(gained > 0.0);
        for ((token, logprob), (i, (wanted_token, wanted_logprob))) in left.iter().zip(wanted) {
            assert_eq!(token, wanted_token, "{}, child {i}", drafter.display());
            assert!((logprob - wanted_logprob - gained).abs() < 1e-4, "child {i}");
        }
    }
}

#[test]
fn no_text_changes_and_no_other_token_is_drafted() {
    let golden = repository("tests/golden");
    let left_out: Vec<i32> = (0..VOCAB_SIZE).filter(|id| id % 3 == 1).collect();
    let sampled = SamplingParams { temperature: 0.9, seed: 3, ..SamplingParams::default() };
    let requests: Vec<_> = [SamplingParams::default(), sampled]
        .map(|sampling| smart_run::engine::Request { sampling, ..greedy(&PROMPT, 40) })
        .into();
    let mut plain = Engine::builder(target()).float_type(FloatType::F32).max_context(256).build().unwrap();
    let wanted: Vec<_> = requests.iter().map(|request| run(&mut plain, request.clone())).collect();
    for drafter in ["eagle1_random", "medusa_random"] {
        for (policy, tread) in [("eagle2:10,4,40", None), ("chain:3", Some(8)), ("smart", None)] {
            let (_file, vocabulary) = all_but(&left_out);
            let mut builder =
                builder(&golden.join(drafter).join("drafter"), policy).draft_vocabulary(vocabulary);
            if let Some(rows) = tread {
                builder = builder.pass_tread(rows);
            }
            let mut engine = builder.build().unwrap();
            let mut drafted = 0;
            for (request, wanted) in requests.iter().zip(&wanted) {
                let id = engine.submit(request.clone()).unwrap();
                let mut text = Vec::new();
                while !engine.is_idle() {
                    text.extend(engine.step().unwrap().into_iter().flat_map(|emission| emission.tokens));
                    if let Some(trace) = engine.round_trace(id) {
                        drafted += trace.tree.tokens.len() - 1;
                        let wrong = trace.tree.tokens[1..].iter().find(|token| left_out.contains(token));
                        assert_eq!(wrong, None, "{drafter}, {policy}");
                    }
                }
                assert_eq!(&text, wanted, "{drafter}, {policy}");
            }
            assert!(drafted > 0 || policy == "smart", "{drafter}, {policy}: nothing was drafted");
        }
    }
}

#[test]
fn a_draft_vocabulary_that_cannot_be_is_one_sentence() {
    let golden = repository("tests/golden");
    let eagle1 = golden.join("eagle1_random/drafter");
    let lowest = DraftVocabulary::Lowest;
    for (drafter, vocabulary, says) in [
        (DraftSource::from(eagle1.as_path()), lowest(9), "9 tokens are too few"),
        (eagle1.as_path().into(), lowest(160), "all 160 tokens"),
        (eagle1.as_path().into(), DraftVocabulary::Listed("/no/such.pt".into()), "/no/such.pt"),
        (golden.join("eagle3_random/drafter").into(), lowest(100), "was trained with a vocabulary of"),
        (DraftSource::Ngrams, lowest(100), "for a drafter with weights"),
    ] {
        for rehearsal in [false, true] {
            let builder =
                Engine::builder(target()).drafter(drafter.clone()).draft_vocabulary(vocabulary.clone());
            let said = if rehearsal { builder.check() } else { builder.build().map(drop) };
            let error = said.expect_err(says);
            assert!(error.is_input() && error.to_string().contains(says), "{error}");
        }
    }
    let alone = Engine::builder(target()).policy(Policy::Plain).draft_vocabulary(lowest(100)).check();
    assert!(alone.unwrap_err().to_string().contains("for a drafter with weights"));
    // A part of it is as good in a rehearsal as in earnest.
    Engine::builder(target()).drafter(eagle1.as_path()).draft_vocabulary(lowest(100)).check().unwrap();
}
