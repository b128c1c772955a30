//! The best tree that anyone could have tuned: every static shape of a grid, replayed.
#![forbid(unsafe_code)]

use super::outcome::Outcome;
use super::player::{Settings, replay};
use super::record::{Record, RecordShape};
use crate::control::{CostModel, Policy};
use crate::error::Result;

/// Nodes verified, drafter passes and children of the grid.
const TOTALS: [usize; 7] = [4, 8, 16, 24, 32, 48, 60];
const MAX_LEVELS: usize = 8;
const TOP_KS: [usize; 5] = [1, 2, 4, 8, 10];
/// Shapes that a first look at a part of the tokens leaves for the whole.
const FINALISTS: usize = 12;
const FIRST_LOOK: usize = 4;

/// EAGLE-2 trees of {4, 8, 16, 24, 32, 48, 60} nodes, 1 to 8 levels and {1, 2, 4, 8, 10} children, as far as `shape` holds them;
/// a shape whose levels bring fewer nodes than another of the grid already verifies is left out.
pub fn static_grid(shape: RecordShape) -> Vec<Policy> {
    let mut grid = Vec::new();
    for top_k in TOP_KS.into_iter().filter(|&top_k| top_k <= shape.top_k) {
        for levels in 1..=MAX_LEVELS.min(shape.levels) {
            let drafted = top_k + (levels - 1) * top_k * top_k;
            let mut is_whole = false;
            for total in TOTALS {
                // The first total that takes all drafted nodes stands for all larger ones.
                if !std::mem::replace(&mut is_whole, total > drafted) {
                    grid.push(Policy::Eagle2 { top_k, depth: levels - 1, total });
                }
            }
        }
    }
    grid
}

/// The fastest policy of `grid` on `record`, and its outcome: all are played over a part of the tokens, the best again over all.
///
/// # Errors
/// As [`replay`].
pub fn best_static(
    record: &Record,
    costs: &CostModel,
    grid: &[Policy],
    settings: &Settings,
) -> Result<Option<(Policy, Outcome)>> {
    let first_look = Settings { tokens: settings.tokens / FIRST_LOOK, ..settings.clone() };
    let mut looks = Vec::new();
    for &policy in grid {
        looks.push((replay(record, costs, policy, &first_look)?.speedup(), policy));
    }
    looks.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut best: Option<(Policy, Outcome)> = None;
    for &(_, policy) in looks.iter().take(FINALISTS) {
        let outcome = replay(record, costs, policy, settings)?;
        if best.as_ref().is_none_or(|(_, best)| outcome.speedup() > best.speedup()) {
            best = Some((policy, outcome));
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_names_every_shape_once() {
        let grid = static_grid(RecordShape::DEFAULT);
        assert!(grid.len() > 150, "{}", grid.len());
        assert!(grid.contains(&Policy::Eagle2 { top_k: 10, depth: 5, total: 60 }));
        // One level of one child: a root and a node; no larger tree of that kind exists.
        let smallest = grid.iter().filter(|p| matches!(p, Policy::Eagle2 { top_k: 1, depth: 0, .. }));
        assert_eq!(smallest.count(), 1);
        for (i, policy) in grid.iter().enumerate() {
            assert!(!grid[..i].contains(policy), "{policy} twice");
        }
    }
}
