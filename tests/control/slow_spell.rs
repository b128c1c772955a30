//! A machine that is slow for a while, with a drafter that is wrong for as long.

use smart_run::control::roofline::Roofline;
use smart_run::control::{
    Controller, ControllerConfig, PhaseTimes, Policy, RoundReport, SequenceOutcome, SequenceView,
};

use crate::common::view;

/// Plays rounds of `batch` sequences at `slowness` times the predicted costs of an idle machine; the likeliest path is right, or all is wrong. How
/// many of the rounds drafted for everybody.
fn play(
    controller: &mut Controller,
    batch: usize,
    rounds: usize,
    (slowness, is_right): (f32, bool),
) -> usize {
    let cost = Roofline::H200_LLAMA_8B.cost_model(4096);
    let mut drafted = 0;
    for _ in 0..rounds {
        let views: Vec<SequenceView> = (0..batch as u64).map(view).collect();
        let plan = controller.begin_round(&views);
        drafted += usize::from(plan.drafting - plan.probing == batch);
        let mut levels = Vec::new();
        if plan.drafts() {
            let round = controller.round_mut();
            while let Some(rows) = round.next_level() {
                levels.push(slowness * cost.draft_us(rows.len(), 100 * batch) as f32);
                let (tokens, logps): (Vec<i32>, Vec<f32>) = rows
                    .iter()
                    .flat_map(|_| {
                        (0..plan.top_k as i32).map(|rank| (rank, if rank == 0 { -0.1 } else { -5.0 }))
                    })
                    .unzip();
                round.add_level(&tokens, &logps);
            }
        }
        let trees: Vec<_> =
            controller.round_mut().select().iter().map(|selected| selected.tree.clone()).collect();
        let rows: usize = trees.iter().map(|tree| tree.num_nodes()).sum();
        let drawn: Vec<Vec<i32>> =
            trees.iter().map(|tree| vec![if is_right { 0 } else { -1 }; tree.num_nodes()]).collect();
        let accepted: Vec<Vec<u32>> = (trees.iter().zip(&drawn))
            .map(|(tree, drawn)| tree.walk(drawn).0.iter().map(|&node| node as u32).collect())
            .collect();
        let outcomes: Vec<SequenceOutcome> = (accepted.iter().zip(&drawn))
            .map(|(accepted, drawn)| SequenceOutcome { accepted, drawn })
            .collect();
        let verify = slowness * cost.verify_us(rows, trees.iter().map(|tree| (tree.num_nodes(), 100))) as f32;
        let total = verify + levels.iter().sum::<f32>() + slowness * cost.plain_overhead_us() as f32;
        let times = PhaseTimes { draft_levels: &levels, verify: Some(verify), total: Some(total) };
        controller.observe(&RoundReport { sequences: &outcomes, times });
    }
    drafted
}

/// What was lost then is as many rounds' worth as it was, not as many as the machine was slower; and what was slow then is the machine, not the sizes
/// of passes that the drafter ran, which nobody would try again if they were taken for slow.
#[test]
fn a_slow_spell_is_over_when_it_is_over() {
    let spells = [1, 4, 8, 16].into_iter().flat_map(|batch| [1.0, 1.5, 2.0, 3.0, 10.0].map(|it| (batch, it)));
    for (batch, slowness) in spells.chain([(1, 30.0)]) {
        let cost = Roofline::H200_LLAMA_8B.cost_model(4096);
        let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), cost);
        assert!(play(&mut controller, batch, 200, (1.0, true)) > 150, "it pays to draft");
        play(&mut controller, batch, 40, (slowness, false));
        play(&mut controller, batch, 100, (1.0, true));
        let drafted = play(&mut controller, batch, 200, (1.0, true));
        assert!(drafted > 190, "batch {batch}, {slowness} times as slow: {drafted} of 200 rounds, 100 later");
    }
}
