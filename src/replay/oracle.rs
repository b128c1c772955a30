//! [`oracle`]: the ceiling. It knows the target's probability of every recorded node before anything is drafted, and the true costs, but
//! not what will be drawn; it pays for what it drafts and verifies like any policy.
//!
//! Long-run speed is a ratio of sums, so a round is worth `A - lambda t`: expected tokens less time at the long-run speed
//! `lambda` (Dinkelbach 1967), found by playing the record again until it stands. Within a round trees are chosen by two
//! prices, of a place in the target pass and of a drafter row: at given prices the best trees follow exactly from the leaves up, and
//! the prices are searched from those of the round before. What a drafter has to catch up on is no part of a round's worth, only of its
//! time: it is due whenever the sequence drafts next, and who is charged with it in every round that is weighed never drafts again.
//! What it finds is a strong lower bound of what such knowledge could reach, hence a ceiling in practice, not a proof.
#![forbid(unsafe_code)]

use super::lanes::{Lane, Texts};
use super::outcome::Outcome;
use super::player::Settings;
use super::record::Record;
use crate::control::CostModel;
use crate::error::{Error, Result};

/// Prices of a place in the target pass and of a drafter row, in tokens.
const PRICES: [f32; 18] = [
    0.0, 0.001, 0.002, 0.004, 0.008, 0.015, 0.025, 0.04, 0.06, 0.09, 0.13, 0.18, 0.25, 0.33, 0.43, 0.55, 0.7,
    0.9,
];
/// Nodes less likely than this are in no good tree.
const LEAST: f32 = 5e-4;
/// Most draft tokens of a tree.
const MAX_NODES: usize = crate::control::MAX_DRAFT_TOKENS;
/// While nothing is drafted: rounds between searches among all prices, as from where no price near makes a difference no way leads back.
const LOOK_AROUND: u64 = 8;
/// Times that the record is played to find the long-run speed.
const PASSES: usize = 4;

/// Plays `record` as the oracle does; `settings` as for a policy, as far as they do not concern what one must learn.
///
/// # Errors
/// [`Error::Input`] if the record has no probabilities of the target or if the batch is empty.
pub fn oracle(record: &Record, costs: &CostModel, settings: &Settings) -> Result<Outcome> {
    if !record.has_probs() {
        return Err(Error::Input(
            "the record does not hold the target's probabilities; record at a temperature above 0 with --uncoupled".into(),
        ));
    }
    if settings.batch == 0 {
        return Err(Error::Input("a replay needs a batch of at least 1".into()));
    }
    let mut best = Outcome::default();
    let mut speed = 0.0;
    for pass in 0..PASSES {
        let last = pass + 1 == PASSES;
        let tokens = if last { settings.tokens } else { settings.tokens / 4 + 1 };
        let outcome = play(record, costs, &Settings { tokens, ..settings.clone() }, speed);
        speed = outcome.expected_tokens.unwrap_or_default() / outcome.us;
        best = outcome;
    }
    Ok(best)
}

/// A child that may be verified.
#[derive(Clone, Copy)]
struct Node {
    /// Index among the sequence's nodes; `usize::MAX` under the root.
    parent: usize,
    /// Its place in the recorded tree.
    child: usize,
    depth: usize,
    path_prob: f32,
    /// Its children are recorded.
    runnable: bool,
}

/// What the oracle does in a round.
#[derive(Clone, Copy, PartialEq)]
struct Prices {
    place: usize,
    row: usize,
    levels: usize,
}

/// Nodes chosen for one sequence.
#[derive(Clone, Default)]
struct Chosen {
    verified: Vec<bool>,
    run: Vec<bool>,
    drafts: bool,
}

/// A round's choice with its expected tokens and time.
struct Choice {
    sequences: Vec<Chosen>,
    expected: f64,
    draft_us: f64,
    /// The part of it that is catching up.
    catch_up_us: f64,
    verify_us: f64,
    overhead_us: f64,
    rows: usize,
    levels: usize,
}

impl Choice {
    fn us(&self) -> f64 {
        self.draft_us + self.verify_us + self.overhead_us
    }

    fn worth(&self, speed: f64) -> f64 {
        self.expected - speed * (self.us() - self.catch_up_us)
    }
}

fn play(record: &Record, costs: &CostModel, settings: &Settings, speed: f64) -> Outcome {
    let (mut texts, mut lanes) = Texts::start(record, settings);
    let levels = settings.config.max_depth.min(record.shape().levels);
    let mut prices = Prices { place: 9, row: 6, levels };
    let mut outcome = Outcome { expected_tokens: Some(0.0), ..Outcome::default() };
    let mut plain_rounds = 0;
    while outcome.tokens < settings.tokens as u64 {
        let nodes: Vec<Vec<Node>> = lanes.iter().map(|lane| nodes_of(lane, levels)).collect();
        let total_context: usize = lanes.iter().map(Lane::context_len).sum();
        let plain_us = costs.plain_us(lanes.len(), total_context) + costs.plain_overhead_us();
        // Without a speed yet: that of plain decoding.
        let speed = if speed > 0.0 { speed } else { lanes.len() as f64 / plain_us };
        let widely = outcome.rounds == 0 || plain_rounds % LOOK_AROUND == 1;
        let (choice, found) = search(&nodes, &lanes, costs, prices, levels, speed, widely);
        prices = found;
        let is_plain = choice.worth(speed) <= lanes.len() as f64 - speed * plain_us;
        plain_rounds = if is_plain { plain_rounds + 1 } else { 0 };
        count(&mut outcome, &choice, is_plain, plain_us, lanes.len());
        if let Some(expected) = &mut outcome.expected_tokens {
            *expected += if is_plain { lanes.len() as f64 } else { choice.expected };
        }
        for (sequence, lane) in lanes.iter_mut().enumerate() {
            let chosen = &choice.sequences[sequence];
            let accepted = if is_plain { 0 } else { accepted_len(lane, &nodes[sequence], chosen) };
            outcome.accepted += accepted as u64;
            outcome.tokens += accepted as u64 + 1;
            outcome.plain_us += plain_us * (accepted + 1) as f64 / nodes.len() as f64;
            lane.advance(accepted, !is_plain && chosen.drafts, &mut texts);
        }
    }
    outcome
}

fn count(outcome: &mut Outcome, choice: &Choice, is_plain: bool, plain_us: f64, batch: usize) {
    outcome.rounds += 1;
    outcome.sequence_rounds += batch as u64;
    outcome.nodes += batch as u64;
    if is_plain {
        outcome.plain_rounds += 1;
        outcome.us += plain_us;
        outcome.verify_us += plain_us;
        return;
    }
    outcome.us += choice.us();
    outcome.draft_us += choice.draft_us;
    outcome.verify_us += choice.verify_us;
    outcome.levels += choice.levels as u64;
    outcome.drafter_rows += choice.rows as u64;
    let verified =
        choice.sequences.iter().flat_map(|chosen| &chosen.verified).filter(|&&is_verified| is_verified);
    outcome.nodes += verified.count() as u64;
}

/// Likely children of a lane's tree, parents first.
fn nodes_of(lane: &Lane, levels: usize) -> Vec<Node> {
    let tree = lane.tree();
    let probs = tree.probs().unwrap_or_default();
    let deepest = levels.min(lane.view().max_depth);
    let mut nodes: Vec<Node> = Vec::new();
    // Row by row; where a row's node is in `nodes`.
    let mut node_of_row = vec![usize::MAX; tree.num_rows()];
    for row in 0..tree.num_rows() {
        let parent = node_of_row[row];
        let (above, depth) = match nodes.get(parent) {
            Some(node) => (node.path_prob, node.depth),
            None if row == 0 => (1.0, 0),
            None => continue,
        };
        if depth >= deepest {
            continue;
        }
        let children = row * tree.top_k()..(row + 1) * tree.top_k();
        for (child, prob) in children.clone().zip(&probs[children]) {
            let path_prob = above * prob.clamp(0.0, 1.0);
            if path_prob < LEAST {
                continue;
            }
            if let Some(row) = tree.row_of(child) {
                node_of_row[row] = nodes.len();
            }
            let runnable = tree.row_of(child).is_some();
            nodes.push(Node { parent, child, depth: depth + 1, path_prob, runnable });
        }
    }
    nodes
}

/// Climbs from `start` to the prices whose choice is worth most.
fn search(
    nodes: &[Vec<Node>],
    lanes: &[Lane],
    costs: &CostModel,
    start: Prices,
    levels: usize,
    speed: f64,
    widely: bool,
) -> (Choice, Prices) {
    let choose = |prices: Prices| choose(nodes, lanes, costs, prices);
    let mut best = (choose(start), start);
    let consider = |prices: Prices, best: &mut (Choice, Prices)| {
        let choice = choose(prices);
        let better = choice.worth(speed) > best.0.worth(speed);
        if better {
            *best = (choice, prices);
        }
        better
    };
    if widely {
        for place in (1..PRICES.len()).step_by(3) {
            for row in (1..PRICES.len()).step_by(3) {
                for levels in 1..=levels {
                    consider(Prices { place, row, levels }, &mut best);
                }
            }
        }
    }
    loop {
        let Prices { place, row, levels: depth } = best.1;
        let mut improved = false;
        let near = |at: usize, end: usize| {
            [at.saturating_sub(2), at.saturating_sub(1), (at + 1).min(end), (at + 2).min(end)]
        };
        for place in near(place, PRICES.len() - 1) {
            improved |= consider(Prices { place, ..best.1 }, &mut best);
        }
        for row in near(row, PRICES.len() - 1) {
            improved |= consider(Prices { row, ..best.1 }, &mut best);
        }
        for depth in near(depth, levels) {
            improved |= consider(Prices { levels: depth.max(1), ..best.1 }, &mut best);
        }
        if !improved {
            return best;
        }
    }
}

/// The best trees at given prices, and places that come free with them.
fn choose(nodes: &[Vec<Node>], lanes: &[Lane], costs: &CostModel, prices: Prices) -> Choice {
    let (place, row) = (PRICES[prices.place], PRICES[prices.row]);
    let mut sequences = Vec::with_capacity(nodes.len());
    let mut rows_of_level = vec![0usize; prices.levels];
    let mut context_of_level = vec![0usize; prices.levels];
    for (nodes, lane) in nodes.iter().zip(lanes) {
        let chosen = best_tree(nodes, place, row, prices.levels);
        if chosen.drafts {
            rows_of_level[0] += lane.backlog + 1;
            context_of_level[0] += lane.context_len();
            let mut deepest = 0;
            for (node, _) in nodes.iter().zip(&chosen.run).filter(|&(_, &is_run)| is_run) {
                rows_of_level[node.depth] += 1;
                deepest = deepest.max(node.depth);
            }
            context_of_level[1..=deepest].iter_mut().for_each(|context| *context += lane.context_len());
        }
        sequences.push(chosen);
    }
    let levels = rows_of_level.iter().take_while(|&&rows| rows > 0).count();
    let passes = rows_of_level.iter().zip(&context_of_level).take(levels);
    let draft_us = passes.map(|(&rows, &context)| costs.draft_us(rows, context)).sum();
    let drafting = sequences.iter().filter(|chosen| chosen.drafts).count();
    let catch_up_us = match drafting {
        0 => 0.0,
        _ => costs.draft_us(rows_of_level[0], 0) - costs.draft_us(drafting, 0),
    };
    fill_free_places(nodes, lanes, costs, &mut sequences);
    let expected: f64 = nodes.iter().zip(&sequences).map(|(nodes, chosen)| mass(nodes, chosen)).sum();
    Choice {
        expected: nodes.len() as f64 + expected,
        draft_us,
        catch_up_us,
        verify_us: verify_us(lanes, costs, &sequences),
        overhead_us: costs.overhead_us(),
        rows: rows_of_level.iter().sum(),
        levels,
        sequences,
    }
}

fn mass(nodes: &[Node], chosen: &Chosen) -> f64 {
    nodes
        .iter()
        .zip(&chosen.verified)
        .filter(|&(_, &verified)| verified)
        .map(|(node, _)| f64::from(node.path_prob))
        .sum()
}

fn verify_us(lanes: &[Lane], costs: &CostModel, sequences: &[Chosen]) -> f64 {
    let sizes =
        || sequences.iter().map(|chosen| 1 + chosen.verified.iter().filter(|&&verified| verified).count());
    costs.verify_us(sizes().sum(), sizes().zip(lanes.iter().map(Lane::context_len)))
}

/// The best tree of one sequence where a verified node costs `place` and a drafter row `row`, both in tokens.
fn best_tree(nodes: &[Node], place: f32, row: f32, levels: usize) -> Chosen {
    // Worth of what lies below each node once it is run, rows and places paid; the root's own row is paid by its sequence.
    let mut below = vec![0.0f32; nodes.len()];
    let mut root = 0.0f32;
    for (i, node) in nodes.iter().enumerate().rev() {
        let runs = node.runnable && node.depth < levels;
        let gain = node.path_prob - place + if runs { (below[i] - row).max(0.0) } else { 0.0 };
        if gain > 0.0 {
            match below.get_mut(node.parent) {
                Some(sum) => *sum += gain,
                None => root += gain,
            }
        }
    }
    let mut chosen =
        Chosen { verified: vec![false; nodes.len()], run: vec![false; nodes.len()], drafts: root > row };
    if !chosen.drafts {
        return chosen;
    }
    let mut left = MAX_NODES;
    for (i, node) in nodes.iter().enumerate() {
        let reached = chosen.run.get(node.parent).copied().unwrap_or(true);
        let runs = node.runnable && node.depth < levels && below[i] > row;
        let gain = node.path_prob - place + if runs { below[i] - row } else { 0.0 };
        if reached && gain > 0.0 && left > 0 {
            left -= 1;
            chosen.verified[i] = true;
            chosen.run[i] = runs;
        }
    }
    chosen
}

/// Adds drafted nodes, likeliest first, as long as the target pass takes no longer.
fn fill_free_places(nodes: &[Vec<Node>], lanes: &[Lane], costs: &CostModel, sequences: &mut [Chosen]) {
    let mut open: Vec<(f32, usize, usize)> = Vec::new();
    for (sequence, (nodes, chosen)) in nodes.iter().zip(sequences.iter()).enumerate() {
        if !chosen.drafts || chosen.verified.iter().filter(|&&verified| verified).count() >= MAX_NODES {
            continue;
        }
        for (i, node) in nodes.iter().enumerate() {
            // Children of what was run lie drafted.
            if chosen.run.get(node.parent).copied().unwrap_or(true) && !chosen.verified[i] {
                open.push((node.path_prob, sequence, i));
            }
        }
    }
    open.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let before = verify_us(lanes, costs, sequences);
    for (_, sequence, node) in open {
        sequences[sequence].verified[node] = true;
        if verify_us(lanes, costs, sequences) > before {
            sequences[sequence].verified[node] = false;
            break;
        }
    }
}

/// Accepted nodes of a chosen tree along the text.
fn accepted_len(lane: &Lane, nodes: &[Node], chosen: &Chosen) -> usize {
    let tree = lane.tree();
    let (mut parent, mut accepted) = (usize::MAX, 0);
    loop {
        let drawn = lane.text.trees[lane.at + accepted].drawn;
        let hit = (0..nodes.len()).find(|&i| {
            nodes[i].parent == parent && chosen.verified[i] && tree.tokens()[nodes[i].child] == drawn
        });
        match hit {
            Some(node) => parent = node,
            None => return accepted,
        }
        accepted += 1;
    }
}
