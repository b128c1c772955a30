//! smart-run as a worker of NVIDIA Dynamo.
//!
//! Dynamo's frontend reads HTTP, applies chat templates, tokenizes, chooses a worker by what its prefix cache holds, and starts a request
//! anew elsewhere when a worker dies. A worker gets token ids and answers with token ids. [`SmartEngine`] is that worker's heart: the trait
//! `LLMEngine` over [`smart_run::service`]. Registration, discovery, the request plane and signals are Dynamo's.
//!
//! | file | what it owns |
//! |---|---|
//! | `engine` | the contract: start, generate, cleanup |
//! | `request` | what a request asks, mapped or refused by name |
//! | `guided` | guided decoding as a grammar |
//! | `answer` | from rounds to chunks |
//! | `router_events` | blocks of the prefix cache as the router names them |
//! | `metrics` | what the router and Prometheus read |
//! | `args` | the command line |
//! | `errors` | Dynamo's error types |
#![forbid(unsafe_code)]

mod answer;
pub mod args;
mod engine;
mod errors;
mod guided;
mod metrics;
mod request;
mod router_events;

pub use engine::{Settings, SmartEngine};
