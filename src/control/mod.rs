//! The cost-aware tree controller: numbers in, decisions out. No CUDA here; usable under any runtime.
//!
//! A [`Controller`] runs a [`Policy`]. Each round: [`Controller::begin_round`] decides who drafts; the [`DraftRound`] is
//! executed level by level; [`DraftRound::select`] yields one packed tree per sequence; [`Controller::observe`] learns from the
//! outcome and the measured times.
//!
//! | file | what it owns |
//! |---|---|
//! | `policy` | names of policies, and the plain-data [`Plan`] that each is |
//! | `controller` | the round cycle |
//! | `forecast` | whether to draft at all; probes |
//! | `round`, `pool` | the executor of a plan, and the nodes it has drafted |
//! | `scan` | which nodes to verify, how many to run: the SMART rule |
//! | `gain` | what running a node is worth |
//! | `acceptance` | calibrated probability of acceptance |
//! | `cost` | measured cost of passes |
//! | `roofline` | ideal costs of a model on a card |
//! | `trace` | the records of `--trace` |
#![forbid(unsafe_code)]

pub mod acceptance;
pub mod controller;
pub mod cost;
mod forecast;
mod gain;
pub mod policy;
pub mod pool;
pub mod roofline;
pub mod round;
pub mod scan;
pub mod trace;

pub use acceptance::AcceptanceModel;
pub use controller::{
    Controller, ControllerConfig, PhaseTimes, PredictedTimes, RoundPlan, RoundReport, SequenceOutcome,
    SequenceView,
};
pub use cost::{CostModel, SweepKind, SweepPoint, Treads};
pub use policy::{MAX_DRAFT_TOKENS, MAX_TOP_K, Plan, Policy};
pub use pool::{CandidatePool, NONE, PoolNode};
pub use round::{DraftRound, FrontierRow, SelectedTree};
