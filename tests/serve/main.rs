//! `smart_run::serve` and `smart-run serve` over loopback, with the demo pair on the host driver.

mod chat;
mod client;
mod completions;
mod constrained;
mod errors;
mod hosts;
mod limits;
mod openapi;
mod pictures;
mod probes;
mod program;
mod running;
mod tool_choice;
