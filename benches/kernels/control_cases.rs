//! The tree controller's kernels, a whole round at once: no launch of it can be repeated alone.

use smart_run::Result;
use smart_run::control::roofline::Roofline;
use smart_run::control::{Controller, ControllerConfig, Plan, Policy, SequenceView};
use smart_run::device::Tensor;
use smart_run::kernels::control::{ControlLimits, ControlNode, ControlRound};

use super::measure::{Case, Entry};
use super::setting::{Model, Setting};

const TOP_K: usize = 10;
const LEVELS: usize = 5;

/// Rounds of batches.
pub fn control(model: &'static Model) -> Vec<Entry> {
    let batch = |&sequences: &usize| {
        let name = format!("control round B={sequences} levels={LEVELS} k={TOP_K}");
        let shape =
            serde_json::json!({ "family": "control", "sequences": sequences, "levels": LEVELS, "k": TOP_K });
        Entry::new(1, name, shape, move |setting| round_case(setting, sequences))
    };
    model.batches.iter().map(batch).collect()
}

/// Every launch of a round but the drafter's, whose answers lie ready: the first candidates at 0.5, falling by rank.
fn round_case(setting: &Setting, sequences: usize) -> Result<Case> {
    let block = if setting.device.is_host() { 128 } else { 1024 };
    let limits = ControlLimits { sequences, top_k: TOP_K, backlog: 0, block, sort_capacity: 1536 };
    let candidates = ControlRound::max_candidates(&limits);
    let tokens: Vec<i32> = (0..candidates as i32).collect();
    let logp = |candidate: usize| -0.7 - 0.6 * (candidate % TOP_K) as f32 - (candidate % 97) as f32 / 300.0;
    let logps: Vec<f32> = (0..candidates).map(logp).collect();
    let device_tokens = setting.ints(&tokens)?;
    let device_logps = Tensor::from_slice(&setting.device, &logps, &[candidates])?;

    let config = ControllerConfig { top_k: TOP_K, max_depth: LEVELS, ..ControllerConfig::default() };
    let mut controller = Controller::new(Policy::Smart, config, Roofline::H200_LLAMA_8B.cost_model(2048));
    let view = |id| SequenceView {
        id: id as u64,
        root_token: 7,
        context_len: 1000,
        // A greedy batch drafts fewer children.
        sampled: true,
        backlog: 0,
        weight: 1.0,
        max_depth: usize::MAX,
    };
    let most = controller.config().max_draft_tokens;
    controller.begin_round(&(0..sequences).map(view).collect::<Vec<_>>());
    // Whatever the controller makes of a first round.
    let round = controller.round_mut();
    round.restart(Plan { max_draft_tokens: most, ..round.plan().clone() }, round.costs().clone());
    let mut control = ControlRound::new(&setting.device, limits)?;
    control.upload(controller.round())?;
    setting.device.synchronize()?;

    let round = controller.round_mut();
    let mut drafted = 0;
    while let Some(rows) = round.next_level() {
        let level = drafted..drafted + rows.len() * TOP_K;
        drafted = level.end;
        round.add_level(&tokens[level.clone()], &logps[level]);
    }
    let want: Vec<i32> = round.select().iter().flat_map(|selected| selected.tree.tokens().to_vec()).collect();
    let tree_tokens = control.tree_tokens.clone();
    Ok(Case {
        // Candidates read, their nodes written, and the packed rows.
        bytes: (drafted * (8 + size_of::<ControlNode>()) + want.len() * 48) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            control.begin()?;
            for _ in 0..LEVELS {
                control.frontier()?;
                control.extend(&device_tokens, &device_logps)?;
                control.select()?;
            }
            control.pack()
        }),
        check: Box::new(move || {
            assert_eq!(tree_tokens.to_vec::<i32>()?[..want.len()], want);
            Ok(())
        }),
    })
}
