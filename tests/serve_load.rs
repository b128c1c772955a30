//! `smart_run::serve` under load, in a process of its own: what memory and files it holds is its own.

#[allow(dead_code)]
#[path = "serve/client.rs"]
mod client;
#[path = "serve/load.rs"]
mod load;
#[allow(dead_code)]
#[path = "serve/running.rs"]
mod running;
