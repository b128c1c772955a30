//! From a picture file to what a vision tower is given.
//!
//! [`Picture`] is a decoded file, [`ImageProcessor`] what a model does with it, [`Patches`] the result, [`PatchLayout`] its shape,
//! which is known beforehand. Results are those of
//! the image processors of Hugging Face transformers over Pillow: bit by bit for the pixels of a lossless file; decoders of
//! JPEG and lossy WebP differ from each other by a few levels of 255. Runs on the host; imports no CUDA.
#![forbid(unsafe_code)]

mod anyres;
mod dynamic;
mod fixed;
mod gif;
mod jpeg;
mod patches;
mod picture;
mod processor;
mod resample;

pub use anyres::{AnyresProcessor, best_resolution};
pub use dynamic::{DynamicProcessor, smart_resize};
pub use fixed::FixedProcessor;
pub use patches::{PatchLayout, Patches};
pub use picture::{MAX_PIXELS, MAX_SIDE, Picture};
pub use processor::ImageProcessor;
