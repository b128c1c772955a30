//! What kernel tests share: the device and its modes, seeded inputs with outliers, poisoned outputs, comparison.
#![allow(dead_code)] // each test binary uses a part

pub mod compare;
pub mod device;
pub mod dump;
pub mod inputs;
