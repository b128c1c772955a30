//! The EAGLE-3 drafter and the eagle2:10,5,60 tree against an independent PyTorch computation (`tools/eagle3_reference.py`).

use smart_run::config::FloatType;
use smart_run::control::{NONE, Policy};
use smart_run::engine::Engine;

use crate::fixtures::{assert_close, expected, floats, greedy, ids, repository};

/// Log-probabilities are compared on their own scale: largest error over largest magnitude.
const LOGP_LIMIT: f32 = 1e-4;

fn check(case: &str, max_prompts: usize) {
    let expected = expected(case);
    let golden = repository("tests/golden").join(case);
    let policy: Policy = expected["policy"].as_str().unwrap().parse().unwrap();
    let new_tokens = expected["new_tokens"].as_u64().unwrap() as usize;
    let drafters = match &expected["drafters"] {
        serde_json::Value::Array(paths) => paths.iter().map(|p| p.as_str().unwrap().to_owned()).collect(),
        path => vec![path.as_str().unwrap().to_owned()],
    };
    for drafter in drafters {
        let mut engine = Engine::builder(golden.join(expected["target"].as_str().unwrap()))
            .drafter(golden.join(&drafter))
            .float_type(FloatType::F32)
            .policy(policy)
            .build()
            .unwrap();
        for (i, prompt) in expected["prompts"].as_array().unwrap().iter().take(max_prompts).enumerate() {
            let what = format!("{case}, {drafter}, prompt {i}");
            let greedy_ids = ids(&prompt["greedy_ids"]);
            // One token more than asked for, so that the last round is not cut short.
            let id = engine.submit(greedy(&ids(&prompt["prompt_ids"]), new_tokens + 64)).unwrap();
            let first = engine.step().unwrap();
            let mut tokens = first[0].tokens.clone();
            let mut accepted_lens = Vec::new();
            while tokens.len() < new_tokens {
                let emissions = engine.step().unwrap();
                if accepted_lens.is_empty() {
                    check_tree(&what, &engine, &prompt["tree"]);
                }
                accepted_lens.push(emissions[0].tokens.len() - 1);
                tokens.extend(&emissions[0].tokens);
            }
            engine.cancel(id);
            assert_eq!(tokens[..new_tokens], greedy_ids[..new_tokens], "{what}: tokens");
            let expected_lens: Vec<usize> =
                ids(&prompt["accepted_lens"]).iter().map(|&len| len as usize).collect();
            assert_eq!(accepted_lens, expected_lens, "{what}: accepted lengths");
        }
    }
}

/// Compares the last round's tree, in the authors' order of nodes.
fn check_tree(what: &str, engine: &Engine, tree: &serde_json::Value) {
    let round = engine.controller().round();
    let nodes = round.pool(0).nodes();
    // The pool lists nodes level by level as the reference's flat index does: its verified nodes, in order, are the tree.
    let verified: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].verified).collect();
    let place = |node: u32| {
        if node == NONE { -1 } else { verified.iter().position(|&v| v == node as usize).unwrap() as i32 }
    };
    let column = |f: &dyn Fn(usize) -> f32| verified.iter().map(|&i| f(i)).collect::<Vec<_>>();
    let tokens: Vec<i32> = verified.iter().map(|&i| nodes[i].token).collect();
    let parents: Vec<i32> = verified.iter().map(|&i| place(nodes[i].parent)).collect();
    assert_eq!(tokens, ids(&tree["tokens"]), "{what}: tokens of the tree");
    assert_eq!(parents, ids(&tree["parents"]), "{what}: parents of the tree");
    assert_close(what, &column(&|i| nodes[i].logp), &floats(&tree["logprobs"]), LOGP_LIMIT);
    assert_close(what, &column(&|i| nodes[i].path_logp), &floats(&tree["path_logprobs"]), LOGP_LIMIT);
}

#[test]
fn random_pair() {
    check("eagle3_random", usize::MAX);
}

#[test]
fn demo_pair() {
    check("eagle3_demo", usize::MAX);
}
