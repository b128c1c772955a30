//! The executor on the device against the one in Rust: driven level by level with the same drafter, compared after every step.

mod mirror;

use smart_run::control::cost::CostTables;
use smart_run::control::roofline::Roofline;
use smart_run::control::{
    Controller, ControllerConfig, CostModel, Plan, RoundReport, SelectedTree, SequenceOutcome, SequenceView,
};
use smart_run::kernels::control::{ControlLimits, ControlRound};

use self::mirror::{Drafter, Mirror};
use crate::common::device::{Mode, TestDevice, device};
use crate::common::inputs::Rng;

/// Probabilities that sum to at most 1, descending.
fn ordinary(random: &mut Rng, top_k: usize) -> Vec<(i32, f32)> {
    let mut left = 1.0f32;
    let mut logps: Vec<f32> = (0..top_k)
        .map(|_| {
            let share = left * random.unit();
            left -= share;
            share.max(1e-30).ln()
        })
        .collect();
    logps.sort_by(|a, b| b.total_cmp(a));
    let base = random.below(1000) as i32 * 100;
    logps.into_iter().enumerate().map(|(rank, logp)| (base + rank as i32, logp)).collect()
}

fn certain(_: &mut Rng, top_k: usize) -> Vec<(i32, f32)> {
    (0..top_k as i32).map(|rank| (rank, 0.0)).collect()
}

fn halves(_: &mut Rng, top_k: usize) -> Vec<(i32, f32)> {
    (0..top_k as i32).map(|rank| (rank, 0.5f32.ln())).collect()
}

fn hopeless(_: &mut Rng, top_k: usize) -> Vec<(i32, f32)> {
    (0..top_k as i32).map(|rank| (rank, f32::NEG_INFINITY)).collect()
}

/// Numbers that no sound drafter brings, in any order.
fn broken(random: &mut Rng, top_k: usize) -> Vec<(i32, f32)> {
    const LOGPS: [f32; 10] =
        [f32::NAN, 0.5, f32::INFINITY, f32::NEG_INFINITY, 0.0, -1e-30, -0.2, -16.0, -1e30, -0.9];
    (0..top_k).map(|_| (random.below(5) as i32 - 2, LOGPS[random.below(LOGPS.len())])).collect()
}

fn limits(block: usize, sort_capacity: usize) -> ControlLimits {
    ControlLimits { sequences: 8, top_k: 10, backlog: 400, block, sort_capacity }
}

/// A sequence that differs from its neighbours in all that the executor reads.
fn view(id: usize) -> SequenceView {
    SequenceView {
        id: id as u64,
        root_token: 1000 + id as i32,
        context_len: 100 + 977 * id,
        sampled: id % 3 == 1,
        backlog: id % 4 * 5,
        weight: 1.0,
        max_depth: if id % 5 == 4 { 0 } else { [usize::MAX, 3, 100][id % 3] },
    }
}

/// A plain sequence.
fn even_view(id: usize) -> SequenceView {
    SequenceView { sampled: false, backlog: 0, max_depth: usize::MAX, context_len: 100, ..view(id) }
}

fn controller(policy: &str, config: ControllerConfig) -> Controller {
    let cost = match policy {
        "smart" => Roofline::H200_LLAMA_8B.cost_model(2048),
        _ => CostModel::unmeasured(),
    };
    Controller::new(policy.parse().unwrap(), config, cost)
}

/// Nothing but the device itself: a GPU, or its emulation in order. There are no native twins.
fn plain_mode(held: &TestDevice) -> Mode {
    held.modes()[0]
}

/// Feeds the outcome of a round back: at every node the target draws a child's token in `odds` of 3 cases, or another.
fn learn(controller: &mut Controller, trees: &[SelectedTree], odds: usize, random: &mut Rng) {
    let walks: Vec<(Vec<u32>, Vec<i32>)> = trees
        .iter()
        .map(|selected| {
            let tree = &selected.tree;
            let mut drawn = vec![-7; tree.num_nodes()];
            for node in 1..tree.num_nodes() {
                if random.below(3) < odds {
                    drawn[tree.parent(node).unwrap()] = tree.token(node);
                }
            }
            (tree.walk(&drawn).0.iter().map(|&node| node as u32).collect(), drawn)
        })
        .collect();
    let outcomes: Vec<_> =
        walks.iter().map(|(accepted, drawn)| SequenceOutcome { accepted, drawn }).collect();
    controller.observe(&RoundReport { sequences: &outcomes, ..RoundReport::default() });
}

const POLICIES: [&str; 7] =
    ["plain", "chain:5", "chain:1", "eagle2:3,2,8", "eagle2:4,3,60", "eagle2:10,1,30", "smart"];

#[test]
fn every_policy_under_all_schedules() {
    let held = device();
    for policy in POLICIES {
        let mut controller =
            controller(policy, ControllerConfig { top_k: 4, max_depth: 3, ..ControllerConfig::default() });
        controller.begin_round(&[view(0), view(1), view(2)]);
        let (plan, costs) = (controller.round().plan().clone(), controller.round().costs().clone());
        for mode in held.schedules().into_iter().chain([plain_mode(&held)]) {
            held.enter(mode);
            // Lists that fit into shared memory, and such that do not.
            for sort_capacity in [4, 512] {
                let name = format!("{mode:?}, {policy}, {sort_capacity} keys");
                let small = ControlLimits { sequences: 3, ..limits(64, sort_capacity) };
                let round = controller.round_mut();
                round.restart(plan.clone(), costs.clone());
                Mirror::new(&held, &name, small).run(round, ordinary, 7);
            }
        }
    }
}

#[test]
fn risky_drafters_and_batches() {
    let held = device();
    held.enter(plain_mode(&held));
    let drafters: [(&str, Drafter); 5] = [
        ("ordinary", ordinary),
        ("certain", certain),
        ("halves", halves),
        ("hopeless", hopeless),
        ("broken", broken),
    ];
    for policy in POLICIES {
        for (drafter_name, drafter) in drafters {
            for batch in [1, 8] {
                let config = ControllerConfig { top_k: 5, max_depth: 4, ..ControllerConfig::default() };
                let mut controller = controller(policy, config);
                let name = format!("{policy}, {drafter_name}, batch {batch}");
                let mut mirror = Mirror::new(&held, &name, limits(128, 64));
                let mut random = Rng::new(3);
                for seed in 0..3 {
                    let views: Vec<_> = (0..batch).map(view).collect();
                    controller.begin_round(&views);
                    let trees = mirror.run(controller.round_mut(), drafter, seed);
                    learn(&mut controller, &trees, 2, &mut random);
                }
            }
        }
    }
}

/// A non-decreasing staircase with free stretches and sudden steps.
fn staircase(random: &mut Rng, entries: usize, first: u64, step: usize) -> Vec<u64> {
    let mut ns = first;
    let mut next = |_| {
        if random.below(5) < 2 {
            ns += random.below(step.max(1)) as u64;
        }
        ns
    };
    (0..entries).map(&mut next).collect()
}

fn random_costs(random: &mut Rng, batch: usize) -> CostTables {
    let step = [1, 3000, 200_000, 1 << 40][random.below(4)];
    let mut rates = vec![0];
    rates.extend(staircase(random, 64, 1 << 10, 1 << 22));
    let mut tables = CostTables {
        tread: [1, 8, 3, 300][random.below(4)],
        verify_ns: staircase(random, 300, 50_000, step),
        draft_tread: [1, 8, 5][random.below(3)],
        draft_ns: staircase(random, 300, 5_000, step / 4),
        tile_nodes: [1, 4, 16, 255][random.below(4)],
        attention_rate: rates,
        contexts: (0..batch).map(|_| random.below(40_000) as u64).collect(),
        draft_attention_ns: (0..batch).map(|_| random.below(9_000) as u64).collect(),
        overhead_ns: random.below(50_000) as u64,
        plain_ns: 60_000,
        ..CostTables::default()
    };
    tables.attention_ns = (0..batch).map(|sequence| tables.attention_step_ns(sequence, 0)).sum();
    tables
}

#[test]
fn random_rounds_at_random_costs() {
    let held = device();
    held.enter(plain_mode(&held));
    let mut random = Rng::new(11);
    let (mut drafted, mut inner, mut cut) = (0, 0, 0);
    for seed in 0..120 {
        let config = ControllerConfig {
            heads: None,
            top_k: 1 + random.below(10),
            max_depth: 1 + random.below(7),
            max_draft_tokens: [1, 2, 7, 40, 255][random.below(5)],
            max_level_rows: [0, 3, 17, usize::MAX][(1 + random.below(7)).min(3)],
            floor: 0,
        };
        let batch = 1 + random.below(8);
        let mut controller = controller("smart", config);
        let views: Vec<_> = (0..batch).map(|i| view(i + random.below(40))).collect();
        let name = format!("seed {seed}, batch {batch}, {config:?}");
        let mut mirror =
            Mirror::new(&held, &name, limits([32, 96, 256][seed % 3], [0, 50, 1536][seed / 3 % 3]));
        for _ in 0..2 {
            controller.begin_round(&views);
            let round = controller.round_mut();
            round.restart(round.plan().clone(), random_costs(&mut random, batch));
            let trees = mirror.run(round, ordinary, seed as u64);
            let selection = round.selection();
            drafted += usize::from(round.levels().len() > 1);
            inner += usize::from(selection.prefix > 0 && selection.prefix < round.candidates().len());
            cut +=
                usize::from(trees.iter().any(|tree| tree.tree.num_draft_tokens() == config.max_draft_tokens));
            learn(&mut controller, &trees, 2, &mut random);
        }
    }
    assert!(
        drafted > 60 && inner > 60 && cut > 30,
        "{drafted} deep rounds, {inner} inner prefixes, {cut} full trees"
    );
}

/// Costs at both ends: nothing costs anything (rates are infinite), or each step as much as the tables can hold.
#[test]
fn costs_of_nothing_and_of_everything() {
    let held = device();
    held.enter(plain_mode(&held));
    for (name, ns, step, tread) in [
        ("no time at all", 0, 0, 1),
        ("no time at all, treads of 8", 0, 0, 8),
        ("one nanosecond", 1, 0, 8),
        ("free places", 1 << 50, 0, 1),
        ("13 days a step", 1 << 20, 1 << 40, 1),
        ("13 days a step, treads of 8", 1 << 20, 1 << 40, 8),
    ] {
        for policy in ["smart", "chain:5", "eagle2:4,3,60"] {
            let config = ControllerConfig { top_k: 3, max_depth: 4, ..ControllerConfig::default() };
            let mut controller = controller(policy, config);
            controller.begin_round(&[even_view(0), even_view(1)]);
            let round = controller.round_mut();
            let costs = CostTables {
                tread,
                verify_ns: (0..200).map(|i| ns + step * i).collect(),
                draft_tread: tread,
                draft_ns: (0..200).map(|i| ns / 8 + step / 8 * i).collect(),
                tile_nodes: 4,
                attention_rate: (0..=64).map(|tiles| step / 64 * tiles).collect(),
                contexts: vec![if step > 0 { 1 << 24 } else { 0 }; 2],
                draft_attention_ns: vec![ns >> 10; 2],
                plain_ns: 1,
                ..CostTables::default()
            };
            round.restart(round.plan().clone(), costs);
            Mirror::new(&held, &format!("{name}, {policy}"), limits(64, 32)).run(round, ordinary, 5);
        }
    }
}

/// Tokens and time grow alike: every prefix has the same rate, and the shortest wins.
#[test]
fn ties_of_rate_go_to_the_shorter_prefix() {
    let held = device();
    held.enter(plain_mode(&held));
    let config = ControllerConfig { top_k: 10, max_depth: 3, ..ControllerConfig::default() };
    let mut controller = controller("smart", config);
    controller.begin_round(&[even_view(0)]);
    let round = controller.round_mut();
    let costs = CostTables {
        tread: 1,
        verify_ns: (0..300).map(|tokens| 1000 * tokens).collect(),
        draft_ns: vec![0; 2],
        ..free_costs(1)
    };
    for block in [32, 256] {
        round.restart(round.plan().clone(), costs.clone());
        Mirror::new(&held, "ties", limits(block, 64)).run(round, certain, 1);
        assert!(round.candidates().len() > 2 * 32);
        assert_eq!(round.selection().prefix, 0);
    }
}

/// Deep trees that are accepted to their leaves: curves and gains of every depth differ from each other.
#[test]
fn curves_and_gains_of_every_depth() {
    let held = device();
    held.enter(plain_mode(&held));
    for policy in ["chain:10", "smart"] {
        let config = ControllerConfig { top_k: 2, max_depth: 10, ..ControllerConfig::default() };
        let mut controller = controller(policy, config);
        let mut mirror = Mirror::new(&held, policy, limits(64, 512));
        let mut random = Rng::new(5);
        for seed in 0..8 {
            controller.begin_round(&[even_view(0), SequenceView { sampled: true, ..even_view(1) }]);
            let round = controller.round_mut();
            round.restart(round.plan().clone(), free_costs(2));
            let trees = mirror.run(round, ordinary, seed);
            assert!(trees.iter().any(|tree| tree.tree.depths().iter().any(|&depth| depth >= 8)));
            learn(&mut controller, &trees, 3, &mut random);
        }
    }
}

/// Places that cost nothing: every budget is used up.
fn free_costs(batch: usize) -> CostTables {
    CostTables {
        tread: 8,
        verify_ns: vec![1_000_000; 4],
        draft_tread: 8,
        draft_ns: vec![1; 2],
        tile_nodes: 4,
        attention_rate: vec![0; 65],
        contexts: vec![1000; batch],
        draft_attention_ns: vec![0; batch],
        plain_ns: 1_000_000,
        ..CostTables::default()
    }
}

#[test]
fn trees_of_256_nodes() {
    let held = device();
    held.enter(plain_mode(&held));
    let config = ControllerConfig { top_k: 10, max_depth: 6, ..ControllerConfig::default() };
    let drafters: [Drafter; 2] = [ordinary, certain];
    for (policy, drafter) in [
        ("smart", ordinary as Drafter),
        ("smart", certain),
        ("eagle2:10,8,256", ordinary),
        ("chain:255", certain),
    ] {
        let mut controller = controller(policy, config);
        controller.begin_round(&[even_view(0), even_view(1)]);
        let round = controller.round_mut();
        let mut limits = limits(256, 1024);
        if policy == "smart" {
            round.restart(round.plan().clone(), free_costs(2));
        }
        limits.sequences = 2;
        let trees = Mirror::new(&held, policy, limits).run(round, drafter, 2);
        for tree in trees {
            assert_eq!(tree.tree.num_nodes(), 256, "{policy}");
        }
    }
    // 256 drafter rows of one sequence: there is no slot for more.
    let mut controller = controller("smart", ControllerConfig { top_k: 10, max_depth: 3, ..config });
    controller.begin_round(&[even_view(0)]);
    let round = controller.round_mut();
    let plan = Plan { max_levels: 4, ..round.plan().clone() };
    for drafter in drafters {
        round.restart(plan.clone(), free_costs(1));
        Mirror::new(&held, "all slots", limits(256, 300)).run(round, drafter, 4);
    }
}

#[test]
fn sixty_four_full_sequences() {
    let held = device();
    held.enter(plain_mode(&held));
    let config = ControllerConfig { top_k: 10, max_depth: 5, ..ControllerConfig::default() };
    let mut controller = controller("smart", config);
    let views: Vec<_> = (0..64).map(even_view).collect();
    controller.begin_round(&views);
    let round = controller.round_mut();
    // Whatever the controller makes of a first round.
    round.restart(Plan { max_draft_tokens: 255, ..round.plan().clone() }, free_costs(64));
    let limits = ControlLimits { sequences: 64, ..limits(256, 1536) };
    Mirror::new(&held, "64 sequences", limits).run(round, ordinary, 9);
    assert_eq!(round.candidates().len(), 64 * 255);
}

/// One captured graph replays rounds of other sizes and costs without the host looking on: the drafter's answers lie ready.
#[test]
fn a_captured_round_replays() {
    let held = device();
    held.enter(plain_mode(&held));
    let limits = limits(64, 256);
    let mut mirror = Mirror::new(&held, "graph", limits);
    let mut random = Rng::new(21);
    let children: Vec<(i32, f32)> =
        (0..ControlRound::max_candidates(&limits)).map(|_| ordinary(&mut random, 1)[0]).collect();
    let (tokens, logps): (Vec<i32>, Vec<f32>) = children.into_iter().unzip();
    mirror.bring(0, &tokens, &logps);
    let mut controller = controller(
        "smart",
        ControllerConfig { top_k: 4, max_depth: 5, max_draft_tokens: 30, ..ControllerConfig::default() },
    );
    // Kernels are loaded before the capture.
    controller.begin_round(&[even_view(0)]);
    mirror.run(controller.round_mut(), ordinary, 1);
    mirror.bring(0, &tokens, &logps);
    let graph = held
        .capture(|| {
            let control = &mirror.control;
            control.begin()?;
            for _ in 0..5 {
                control.frontier()?;
                control.extend(&mirror.tokens, &mirror.logp)?;
                control.select()?;
            }
            control.pack()
        })
        .unwrap();
    for (batch, costs_seed) in [(1, 1), (8, 2), (3, 3), (8, 4)] {
        let views: Vec<_> = (0..batch).map(even_view).collect();
        controller.begin_round(&views);
        let round = controller.round_mut();
        round.restart(round.plan().clone(), random_costs(&mut Rng::new(costs_seed), batch));
        mirror.control.upload(round).unwrap();
        graph.launch().unwrap();
        let mut drafted = 0;
        while let Some(rows) = round.next_level() {
            let level = drafted..drafted + rows.len() * 4;
            drafted = level.end;
            round.add_level(&tokens[level.clone()], &logps[level]);
        }
        assert!(drafted > 0);
        let trees = round.select().to_vec();
        mirror.compare_trees(&trees);
        mirror.compare_pools(round);
        mirror.compare_kept(round);
        mirror.compare_selection(round);
    }
}

#[test]
fn rounds_that_do_not_fit_are_refused() {
    let held = device();
    let mut control =
        ControlRound::new(&held, ControlLimits { sequences: 2, top_k: 4, ..limits(64, 64) }).unwrap();
    let mut refusal = |policy: &str, batch: usize, config: ControllerConfig| {
        let mut controller = controller(policy, config);
        controller.begin_round(&(0..batch).map(even_view).collect::<Vec<_>>());
        let error = control.upload(controller.round()).unwrap_err();
        assert!(error.is_input());
        error.to_string()
    };
    let narrow = ControllerConfig { top_k: 4, ..ControllerConfig::default() };
    for (policy, batch, config, says) in [
        ("eagle1", 1, narrow, "the rule Static runs on the host only"),
        ("smart-paper", 1, narrow, "the rule Admitted runs on the host only"),
        ("opt-tree:20", 1, narrow, "the rule BestTree runs on the host only"),
        ("svip", 1, narrow, "the rule Chain runs on the host only"),
        ("ddd", 1, narrow, "the rule StopRule runs on the host only"),
        ("smart", 1, ControllerConfig { floor: 2, ..narrow }, "which only the host can run"),
        ("smart", 3, narrow, "3 sequences, not 1 to 2"),
        ("smart", 0, narrow, "0 sequences, not 1 to 2"),
        ("smart", 1, ControllerConfig { top_k: 5, ..narrow }, "5 top_k, not 1 to 4"),
        ("smart", 1, ControllerConfig { max_depth: 300, ..narrow }, "300 max_levels, not 0 to 256"),
    ] {
        let text = refusal(policy, batch, config);
        assert!(text.contains(says), "{text}");
    }
    let zero = ControlRound::new(&held, ControlLimits { block: 48, ..limits(64, 64) });
    assert!(zero.err().unwrap().to_string().contains("a multiple of 32"));
}
