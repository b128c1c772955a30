//! The whole engine on the device at hand (the host driver where there is no GPU), through the public API.

#[path = "../common/mod.rs"]
pub(crate) mod common;

mod batch;
mod breakdown;
mod controllers;
mod costs;
mod coupling;
mod draft_vocabulary;
pub(crate) mod drafters;
mod dummy_weights;
mod eagle3_variants;
mod early_ends;
mod errand;
pub(crate) mod fixtures;
mod grammar_branches;
mod grammars;
mod large_vocabulary;
mod lossless;
mod medusa;
mod pass_graphs;
mod penalties;
mod prefetch;
pub(crate) mod random_drafters;
mod recording;
mod run_ahead;
mod scheduling;
mod targets;
mod tuning;
mod vision;
