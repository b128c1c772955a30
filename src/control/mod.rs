//! The cost-aware tree controller: numbers in, decisions out. No CUDA here; usable under any runtime.
//!
//! A [`Controller`] runs a [`Policy`]. Each round: [`Controller::begin_round`] decides who drafts; the [`DraftRound`] is
//! executed level by level; [`DraftRound::select`] yields one packed tree per sequence; [`Controller::observe`] learns from the
//! outcome and the measured times.
//!
//! ```
//! use smart_run::control::{Controller, ControllerConfig, Policy, RoundReport, SequenceOutcome, SequenceView};
//! use smart_run::control::roofline::Roofline;
//!
//! let cost = Roofline::H200_LLAMA_8B.cost_model(256); // a real runtime measures: CostModel::from_sweep
//! let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), cost);
//! let view =
//!     SequenceView { id: 0, root_token: 17, context_len: 300, sampled: false, backlog: 0, max_depth: 100, weight: 1.0 };
//! let plan = controller.begin_round(&[view]);
//! assert!(plan.drafts(), "nothing is known yet: worth a try");
//!
//! let round = controller.round_mut();
//! while let Some(rows) = round.next_level() {
//!     // Run `rows` through the drafter; here every row's likeliest child has probability 0.9.
//!     let tokens: Vec<i32> = rows.iter().flat_map(|_| 0..plan.top_k as i32).collect();
//!     let logps: Vec<f32> = tokens.iter().map(|&rank| if rank == 0 { -0.1 } else { -5.0 }).collect();
//!     round.add_level(&tokens, &logps);
//! }
//! let tree = round.select()[0].tree.clone();
//! assert!(tree.num_draft_tokens() > 3);
//!
//! // Verify `tree`; here the target draws token 0 after every node.
//! let drawn = vec![0; tree.num_nodes()];
//! let (accepted, bonus_token) = tree.walk(&drawn);
//! assert!(!accepted.is_empty() && bonus_token == 0);
//! let accepted: Vec<u32> = accepted.iter().map(|&node| node as u32).collect();
//! let outcome = SequenceOutcome { accepted: &accepted, drawn: &drawn };
//! controller.observe(&RoundReport { sequences: &[outcome], ..RoundReport::default() });
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `policy` | names of policies |
//! | `plan` | how to run a round, as plain data |
//! | `planner` | the [`Plan`] of a policy for the coming round |
//! | `controller` | the round cycle |
//! | `forecast` | whether to draft at all; probes |
//! | `round`, `pool` | the executor of a plan, and the nodes it has drafted |
//! | `scan` | which nodes to verify, how many to run: the SMART rule |
//! | `gain` | what running a node is worth |
//! | `acceptance` | calibrated probability of acceptance |
//! | `fading` | when evidence is too old to count |
//! | `learner` | when what a round has taught of these two is learned |
//! | `cost` | measured cost of passes, as a model and as a file |
//! | `roofline` | ideal costs of a model on a card |
//! | `trace` | the records of `--trace` |
#![forbid(unsafe_code)]

pub mod acceptance;
pub mod controller;
pub mod cost;
mod fading;
mod forecast;
pub(crate) mod gain;
mod learner;
pub mod plan;
pub mod planner;
pub mod policy;
pub mod pool;
pub mod roofline;
pub mod round;
pub mod scan;
pub mod trace;

pub use acceptance::AcceptanceModel;
pub use controller::{
    Controller, ControllerConfig, Passenger, PhaseTimes, PredictedTimes, RoundPlan, RoundReport,
    SequenceOutcome, SequenceView,
};
pub use cost::{CostModel, CostSource, CostTable, KeptSweep, SweepKind, SweepPoint, Treads};
pub use plan::Plan;
pub use policy::{MAX_DRAFT_TOKENS, MAX_TOP_K, Policy};
pub use pool::{CandidatePool, NONE, PoolNode};
pub use round::{DraftRound, FrontierRow, SelectedTree};
