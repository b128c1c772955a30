//! The structs of `kernels/control.cuh`, and the plan as the kernels read it.

use super::{ControlLimits, MAX_LEVELS, MAX_NODES};
use crate::control::acceptance::Calibration;
use crate::control::gain::GainTable;
use crate::control::plan::{Plan, SelectionRule, StopRule, WidthRule};
use crate::control::{DraftRound, MAX_DRAFT_TOKENS};
use crate::error::{Error, Result};

/// A node of a pool as the device keeps it: the fields of [`PoolNode`](crate::control::PoolNode), -1 for `NONE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub struct ControlNode {
    pub parent: i32,
    pub depth: i32,
    pub token: i32,
    pub logp: f32,
    pub path_logp: f32,
    pub q: f32,
    pub path_prob: f32,
    pub candidate: i32,
    pub row: i32,
    pub slot: i32,
    pub first_child: i32,
    pub num_children: i32,
    pub verified: i32,
}

/// How far a sequence has come.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SequenceState {
    /// Nodes of its pool, the root included.
    pub num_nodes: i32,
    /// First node of the newest level.
    pub newest: i32,
    /// Drafter rows, the root excluded.
    pub num_slots: i32,
    /// Nodes that could be verified.
    pub num_kept: i32,
}

/// A [`Selection`](crate::control::scan::Selection).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub struct ControlSelection {
    pub expected: u64,
    pub ns: u64,
    pub prefix: i32,
    pub tokens: i32,
    pub price: f32,
    unused: i32,
}

/// The state of a round.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RoundState {
    /// Predicted time of what has been run.
    pub sunk_ns: u64,
    /// After the newest level; after packing, of what was packed.
    pub selection: ControlSelection,
    packed: [u64; 2],
    /// Drafter passes.
    pub num_levels: i32,
    /// Their rows, catch-up rows included.
    pub rows_run: i32,
    /// Candidates drafted before the newest level.
    pub first_candidate: i32,
    /// Rows of the newest level, each sequence's root counted once; 0 when drafting is over.
    pub frontier_len: i32,
    /// Nodes that could be verified.
    pub num_kept: i32,
    num_packed: i32,
}

/// A [`LevelRecord`](crate::control::round::LevelRecord).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub struct ControlLevel {
    pub ns: u64,
    pub first_row: i32,
    pub rows: i32,
    pub price: f32,
    unused: i32,
}

/// `ControlParams` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct ControlParams {
    pub plan: u64,
    pub tokens: u64,
    pub logp: u64,
    pub buffers: [u64; 17],
    pub pool_stride: i32,
    pub sort_capacity: i32,
}

/// `ControlPlan`: head of the plan.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PlanHead {
    overhead_ns: u64,
    attention_ns: u64,
    num_sequences: i32,
    top_k: i32,
    max_levels: i32,
    max_rows: i32,
    width_rule: i32,
    beam_width: i32,
    selection_rule: i32,
    top_n: i32,
    max_draft_tokens: i32,
    tread: i32,
    draft_tread: i32,
    tile_nodes: i32,
    sequences_at: i32,
    verify_at: i32,
    verify_len: i32,
    draft_at: i32,
    draft_len: i32,
    rate_at: i32,
    rate_len: i32,
    curves_at: i32,
    knots: [f32; 20],
    confidence_edges: [f32; 2],
    gains: [[[f32; 3]; 6]; 8],
}

/// `ControlSequence`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PlanSequence {
    context: u64,
    draft_attention_ns: u64,
    root_token: i32,
    drafts: i32,
    max_depth: i32,
    curve: i32,
    odds: f32,
    catch_up_rows: i32,
}

/// Bytes of the curves of one calibration.
const CURVES_BYTES: usize = 6 * 20 * size_of::<f32>();
/// Most rows in a tread: the sum of a pass and a tread fits 31 bits.
const MAX_TREAD: usize = 1 << 24;

/// Lays the plan out: its head, then the tables.
pub(super) struct PlanWriter;

impl PlanWriter {
    /// Bytes of the largest plan for so many sequences and catch-up rows beyond their roots'.
    pub fn most_bytes(sequences: usize, backlog: usize) -> usize {
        let tokens = sequences * MAX_NODES;
        let entries = (1 + tokens) + (1 + tokens + backlog) + (1 + MAX_NODES);
        size_of::<PlanHead>()
            + sequences * (size_of::<PlanSequence>() + CURVES_BYTES)
            + entries * size_of::<u64>()
    }

    /// Appends the plan of `round` to `bytes`, which are empty.
    ///
    /// # Errors
    /// As for [`ControlRound::upload`](super::ControlRound::upload).
    pub fn write(round: &DraftRound, limits: &ControlLimits, bytes: &mut Vec<u8>) -> Result<()> {
        let (plan, tables, sequences) = (round.plan(), round.costs(), round.sequences());
        let (width_rule, beam_width) = match &plan.width {
            WidthRule::Beam(width) => (0, *width),
            WidthRule::Scan => (1, 0),
            WidthRule::Static(_) => return Err(host_only("Static")),
            WidthRule::Admitted => return Err(host_only("Admitted")),
            WidthRule::BestTree { .. } => return Err(host_only("BestTree")),
        };
        let (selection_rule, top_n) = match plan.selection {
            SelectionRule::All => (0, 0),
            SelectionRule::TopN(count) => (1, count),
            SelectionRule::Scan => (2, 0),
            SelectionRule::PerNode => return Err(host_only("PerNode")),
            SelectionRule::Best(_) => return Err(host_only("Best")),
            SelectionRule::Chain => return Err(host_only("Chain")),
        };
        if plan.stop != StopRule::Never {
            return Err(host_only("StopRule"));
        }
        if plan.floor > 0 || sequences.iter().any(|sequence| sequence.weight != 1.0) {
            return Err(unfit("a floor or of weighted sequences, which only the host can run yet".into()));
        }
        check_plan(plan, sequences.len(), limits)?;
        for (name, value, most) in [
            ("tread", tables.tread, MAX_TREAD),
            ("draft_tread", tables.draft_tread, MAX_TREAD),
            ("tile_nodes", tables.tile_nodes, MAX_TREAD),
        ] {
            if !(1..=most).contains(&value) {
                return Err(unfit(format!("a {name} of {value}, not 1 to {most}")));
            }
        }
        let at = |bytes: &Vec<u8>| bytes.len() as i32;
        // The head is written when all offsets are known.
        bytes.resize(size_of::<PlanHead>(), 0);
        let sequences_at = at(bytes);
        let mut curves: Vec<&Calibration> = Vec::new();
        for (i, sequence) in sequences.iter().enumerate() {
            let calibration = round.calibration(sequence);
            let curve = curves.iter().position(|&known| known == calibration).unwrap_or_else(|| {
                curves.push(calibration);
                curves.len() - 1
            });
            bytes.extend_from_slice(bytemuck::bytes_of(&PlanSequence {
                context: tables.contexts[i],
                draft_attention_ns: tables.draft_attention_ns[i],
                root_token: sequence.root_token,
                drafts: i32::from(sequence.drafts),
                max_depth: bounded(sequence.max_depth),
                curve: curve as i32,
                odds: sequence.odds,
                catch_up_rows: bounded(sequence.catch_up_rows),
            }));
        }
        let mut table = |entries: &[u64]| {
            let place = at(bytes);
            bytes.extend_from_slice(bytemuck::cast_slice(entries));
            (place, entries.len() as i32)
        };
        let (verify_at, verify_len) = table(&tables.verify_ns);
        let (draft_at, draft_len) = table(&tables.draft_ns);
        let (rate_at, rate_len) = table(&tables.attention_rate);
        let curves_at = at(bytes);
        for calibration in curves {
            bytes.extend_from_slice(bytemuck::bytes_of(calibration.curves()));
        }
        let head = PlanHead {
            overhead_ns: tables.overhead_ns,
            attention_ns: tables.attention_ns,
            num_sequences: sequences.len() as i32,
            top_k: plan.top_k as i32,
            max_levels: plan.max_levels as i32,
            max_rows: bounded(round.max_rows()),
            width_rule,
            beam_width: bounded(beam_width),
            selection_rule,
            top_n: bounded(top_n),
            max_draft_tokens: plan.max_draft_tokens as i32,
            tread: tables.tread as i32,
            draft_tread: tables.draft_tread as i32,
            tile_nodes: tables.tile_nodes as i32,
            sequences_at,
            verify_at,
            verify_len,
            draft_at,
            draft_len,
            rate_at,
            rate_len,
            curves_at,
            knots: *Calibration::KNOTS,
            confidence_edges: *GainTable::CONFIDENCE_EDGES,
            gains: *round.gains().gains(),
        };
        bytes[..size_of::<PlanHead>()].copy_from_slice(bytemuck::bytes_of(&head));
        Ok(())
    }
}

/// Refuses what the buffers were not sized for.
fn check_plan(plan: &Plan, sequences: usize, limits: &ControlLimits) -> Result<()> {
    for (name, value, least, most) in [
        ("sequences", sequences, 1, limits.sequences),
        ("top_k", plan.top_k, 1, limits.top_k),
        ("max_levels", plan.max_levels, 0, MAX_LEVELS),
        ("max_draft_tokens", plan.max_draft_tokens, 0, MAX_DRAFT_TOKENS),
    ] {
        if !(least..=most).contains(&value) {
            return Err(unfit(format!("{value} {name}, not {least} to {most}")));
        }
    }
    let all_levels = plan.max_levels.saturating_sub(1);
    let drafted = match plan.width {
        WidthRule::Beam(width) => plan.top_k * (1 + width.saturating_mul(all_levels).min(MAX_NODES)),
        _ => usize::MAX,
    };
    let verified = match plan.selection {
        SelectionRule::All => drafted,
        SelectionRule::TopN(count) => count,
        _ => 0,
    };
    if plan.max_levels > 0 && verified > MAX_DRAFT_TOKENS {
        return Err(unfit(format!("more than {MAX_DRAFT_TOKENS} nodes verified of a sequence")));
    }
    Ok(())
}

fn unfit(what: String) -> Error {
    Error::Input(format!("control: the buffers are not made for a round of {what}"))
}

fn host_only(rule: &str) -> Error {
    Error::Input(format!(
        "control: the rule {rule} runs on the host only; use a plan with the width rules Scan or Beam and the selection rules Scan, \
         TopN or All"
    ))
}

/// `value` as the kernels count, where anything larger means the same.
fn bounded(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_layout() {
        assert_eq!(size_of::<ControlNode>(), 52);
        assert_eq!(size_of::<SequenceState>(), 16);
        assert_eq!(size_of::<RoundState>(), 80);
        assert_eq!(size_of::<ControlLevel>(), 24);
        assert_eq!(size_of::<ControlParams>(), 168);
        assert_eq!(size_of::<PlanHead>(), 760);
        assert_eq!(size_of::<PlanSequence>(), 40);
    }
}
