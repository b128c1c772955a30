//! The controller from outside: executor, scans, models, and whole simulated runs.

mod common;
mod executor;
mod process;
mod simulation;
