//! The goldens agree with themselves and with `DraftTree`, before any kernel is asked.

#[allow(dead_code)]
#[path = "common/golden.rs"]
mod golden;

use golden::{DRAFTER_CASES, DrafterGolden, TARGET_CASES, TargetGolden};
use smart_run::tree::DraftTree;

fn argmax(logits: &[f32]) -> i32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32
}

#[test]
fn the_first_greedy_token_is_the_best_of_the_last_logits() {
    for case in TARGET_CASES {
        let expected: TargetGolden = golden::expected(case);
        assert_eq!(expected.prompts.iter().map(|p| p.length).collect::<Vec<_>>(), [1, 7, 33, 150]);
        for prompt in expected.prompts {
            assert_eq!(prompt.prompt_ids.len(), prompt.length);
            assert_eq!(prompt.greedy_ids.len(), 48);
            let (logits, _) = golden::tensor(case, &format!("last_logits.{}", prompt.length));
            assert_eq!(argmax(&logits), prompt.greedy_ids[0], "{case}, prompt of {}", prompt.length);
        }
        let (all, shape) = golden::tensor(case, "all_logits.33");
        let (last, _) = golden::tensor(case, "last_logits.33");
        assert_eq!(shape, [33, last.len()]);
        assert_eq!(all[32 * last.len()..], last);
    }
}

/// The first tree rebuilt node by node, walked with the target's own tokens, accepts what the golden says.
#[test]
fn walking_the_first_tree_accepts_the_golden_length() {
    for case in DRAFTER_CASES {
        let expected: DrafterGolden = golden::expected(case);
        assert_eq!((expected.policy.as_str(), expected.new_tokens), ("eagle2:10,5,60", 64));
        for prompt in expected.prompts {
            let golden = &prompt.tree;
            assert_eq!(golden.tokens[0], prompt.greedy_ids[0]);
            let mut tree = DraftTree::new(golden.tokens[0]);
            for node in 1..golden.tokens.len() {
                let parent = golden.parents[node] as usize;
                assert_eq!(tree.push(parent, golden.tokens[node]), node);
                let path_logprob = golden.path_logprobs[parent] + golden.logprobs[node];
                assert!((path_logprob - golden.path_logprobs[node]).abs() < 1e-4, "{case}, node {node}");
            }
            assert_eq!(tree.num_nodes(), 60);

            // At depth d on the right path the target says greedy token d + 1; elsewhere it does not matter.
            let drawn: Vec<i32> =
                (0..60).map(|node| prompt.greedy_ids[usize::from(tree.depths()[node]) + 1]).collect();
            let (accepted, bonus) = tree.walk(&drawn);
            assert_eq!(accepted.len(), prompt.accepted_lens[0], "{case}");
            assert_eq!(bonus, prompt.greedy_ids[accepted.len() + 1], "{case}");
        }
    }
}

#[test]
fn the_rounds_emit_all_tokens_and_the_last_one_was_needed() {
    for case in DRAFTER_CASES {
        let expected: DrafterGolden = golden::expected(case);
        for prompt in expected.prompts {
            let (last, others) = prompt.accepted_lens.split_last().unwrap();
            let before: usize = 1 + others.iter().map(|accepted| accepted + 1).sum::<usize>();
            assert!(before < expected.new_tokens && before + last + 1 >= expected.new_tokens, "{case}");
        }
    }
}
