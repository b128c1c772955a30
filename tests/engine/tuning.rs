//! Linear layers that are measured at the start: what runs is said, and texts stay.

use std::time::Duration;

use smart_run::config::FloatType;
use smart_run::engine::EngineBuilder;

use crate::fixtures::{demo_builder, demo_prompts, greedy, run};

fn builder() -> EngineBuilder<'static> {
    demo_builder(FloatType::Bf16, "chain:3".parse().unwrap()).max_context(300)
}

#[test]
fn measured_layers_change_no_text() {
    let prompts = demo_prompts(1, 120);
    let mut texts = Vec::new();
    for limit in [Duration::ZERO, Duration::from_secs(100)] {
        let mut engine = builder().tune_within(limit).build().unwrap();
        let tuned = !limit.is_zero();
        for launches in engine.tuned_launches() {
            assert_eq!(!launches.is_empty(), tuned);
            for layer in ["qkv", "o", "gate_up", "down", "head"].into_iter().filter(|_| tuned) {
                let rows: Vec<_> = launches.iter().filter(|it| it.layer == layer).map(|it| it.rows).collect();
                assert!(rows.contains(&32) && rows.contains(&64), "{layer}: {rows:?}");
            }
        }
        texts.push(run(&mut engine, greedy(&prompts[0], 60)));
    }
    assert_eq!(texts[0], texts[1]);
}
