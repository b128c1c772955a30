//! What a model folder says about the model, in our own words.
//!
//! [`ModelConfig`] and [`Eagle3Config`] are parsed once, validated on the way in, and immutable. This module is the only
//! place that knows Hugging Face spellings; it imports no CUDA and opens no weights. A [`ModelSource`] is where the files
//! come from: a folder, or a model embedded in the program. A new architecture is a variant of [`Architecture`] and a file that
//! says what its layers have.
#![forbid(unsafe_code)]

mod architecture;
mod eagle1;
mod eagle3;
mod fields;
mod float_type;
mod geometry;
mod image;
mod llama;
mod medusa;
mod mistral;
mod model;
mod qwen2;
mod qwen3;
mod rope;
mod source;
mod summary;
mod vision;

pub use architecture::Architecture;
pub use eagle1::Eagle1Config;
pub use eagle3::{Eagle3Config, FeatureKind};
pub use float_type::FloatType;
pub use geometry::{Geometry, HEAD_DIMS};
pub use image::{
    Anyres, DynamicResolution, FixedResolution, ImageConfig, Interpolation, PixelScale, ResizeTo,
};
pub use medusa::MedusaConfig;
pub use model::ModelConfig;
pub use rope::{RopeConfig, RopeScaling};
pub use source::{EmbeddedModel, ModelSource};
pub use summary::{ConfigSummary, ModelKind, with_dtype};
pub use vision::{Activation, JoinConfig, ProjectorConfig, TowerConfig, TowerKind, VisionConfig};
