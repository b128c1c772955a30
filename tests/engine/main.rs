//! The whole engine on the device at hand (the host driver where there is no GPU), through the public API.

mod batch;
mod costs;
pub(crate) mod drafters;
mod eagle3;
pub(crate) mod fixtures;
mod lossless;
mod recording;
mod targets;
