//! The controller from outside: executor, scans, models, and whole simulated runs.

mod acceptance;
mod allocations;
mod common;
mod cost;
mod cost_table;
mod eagle2;
mod executor;
mod heads;
mod passengers;
mod planners;
mod priorities;
mod properties;
mod scan;
mod simulation;
mod slow_spell;
mod stops;
