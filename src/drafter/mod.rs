//! Drafters: small networks that propose the tokens of a draft tree. One file a drafting method.
#![forbid(unsafe_code)]

mod eagle3;

pub use eagle3::Eagle3;
