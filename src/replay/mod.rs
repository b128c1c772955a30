//! Record once, replay any policy: what a drafter said and a target drew, played back under modelled time.
//!
//! A [`Record`] holds, for every position of some texts, a wide draft tree rooted there and the token that the target drew there.
//! As a draw is a function of position and not of speculation, every policy emits these very texts: a policy's rounds, trees and
//! accepted tokens follow from the record *exactly*, at any temperature and batch size, and their time from a cost model. No
//! model, no CUDA.
//!
//! | file | what it owns |
//! |---|---|
//! | `record` | the record and its checks |
//! | `lines` | the record as JSON Lines |
//! | `process` | synthetic records of known acceptance |
//! | `lanes` | texts in play |
//! | `player` | rounds of a policy over a record |
//! | `outcome` | what rounds came to, replayed or run |
//! | `rivals` | the best static tree for a record, batch and cost model |
//! | `interval` | how sure a mean of repetitions is |
//! | `oracle` | the ceiling: true probabilities known beforehand |
#![forbid(unsafe_code)]

mod interval;
mod lanes;
mod lines;
mod oracle;
mod outcome;
mod player;
pub mod process;
pub(crate) mod random;
mod record;
mod rivals;

pub use interval::{Interval, geometric_mean};
pub use lines::{RECORD_VERSION, RecordHeader, RecordWriter};
pub use oracle::oracle;
pub use outcome::{Outcome, RELIABILITY_BINS, ReliabilityBin, RoundCount};
pub use player::{Knowledge, Player, Settings, replay};
pub use record::{Record, RecordShape, RecordedSequence, RecordedTree};
pub use rivals::{best_static, static_grid};
