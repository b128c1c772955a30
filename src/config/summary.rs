//! What a folder holds, said of any model: also of those that cannot be run.

use super::architecture::SeeingModel;
use super::fields::Fields;
use super::model::max_position;
use super::{Architecture, FloatType, MedusaConfig, ModelSource};
use crate::Result;

/// Families of models that folders hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// A language model that generates by itself.
    Target,
    /// A drafter that reads features of several target layers, or of the last one (arXiv 2503.01840).
    Eagle3,
    /// A drafter that reads the target's last feature (arXiv 2401.15077, 2406.16858: the weights are alike).
    Eagle1,
    /// As EAGLE-2, for targets that see images (MSD, arXiv 2505.14260).
    Msd,
    /// Heads on the target's last feature, each for a later token (arXiv 2401.10774).
    Medusa,
}

impl ModelKind {
    /// What the model with this config and tensors of these `names` is. Names decide: configs of drafters often repeat
    /// their target's.
    pub fn of<'a>(config: &ConfigSummary, names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (mut has_fc, mut has_hidden_norm, mut has_heads, mut has_embedding) =
            (false, false, false, false);
        for name in names {
            has_heads |= MedusaConfig::knows(name);
            let name = name.strip_prefix("model.").unwrap_or(name);
            has_fc |= name == "fc.weight";
            has_hidden_norm |= name.ends_with(".hidden_norm.weight");
            has_embedding |= name.ends_with("embed_tokens.weight");
        }
        let sees_images = config.model_type.as_deref().is_some_and(|name| {
            ["llava", "vl"].iter().any(|part| name.split(['_', '-']).any(|word| word == *part))
        });
        match (has_fc, has_hidden_norm) {
            // One that reads a single feature has no fc.
            (_, true) => Some(ModelKind::Eagle3),
            (true, false) if sees_images => Some(ModelKind::Msd),
            (true, false) => Some(ModelKind::Eagle1),
            _ if has_heads || config.num_medusa_heads.is_some() => Some(ModelKind::Medusa),
            _ if has_embedding && config.architecture.is_some() => Some(ModelKind::Target),
            _ => None,
        }
    }

    /// The name in machine-readable reports.
    pub fn name(self) -> &'static str {
        match self {
            ModelKind::Target => "target",
            ModelKind::Eagle3 => "eagle3",
            ModelKind::Eagle1 => "eagle1",
            ModelKind::Msd => "msd",
            ModelKind::Medusa => "medusa",
        }
    }

    /// The name in sentences.
    pub fn title(self) -> &'static str {
        match self {
            ModelKind::Target => "target",
            ModelKind::Eagle3 => "EAGLE-3 drafter",
            ModelKind::Eagle1 => "EAGLE-1 or EAGLE-2 drafter",
            ModelKind::Msd => "MSD drafter",
            ModelKind::Medusa => "Medusa heads",
        }
    }
}

/// The sizes that a `config.json` names. A field that is missing or makes no sense is `None`: what can be run is for
/// [`super::ModelConfig`], [`super::Eagle3Config`], [`super::Eagle1Config`] and [`MedusaConfig`] to say.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct ConfigSummary {
    pub architecture: Option<String>,
    pub model_type: Option<String>,
    pub vocab_size: Option<usize>,
    pub draft_vocab_size: Option<usize>,
    pub hidden_size: Option<usize>,
    /// Of a drafter: the width of its target's features, where it is not `hidden_size`.
    pub target_hidden_size: Option<usize>,
    pub num_layers: Option<usize>,
    pub num_kv_heads: Option<usize>,
    pub head_dim: Option<usize>,
    /// Longest context in tokens.
    pub max_position: Option<usize>,
    pub dtype: Option<FloatType>,
    pub num_medusa_heads: Option<usize>,
}

impl ConfigSummary {
    /// Reads the `config.json` of `source`; all is `None` where there is none.
    ///
    /// # Errors
    /// A file that is not a JSON object.
    pub fn read(source: &ModelSource) -> Result<Self> {
        source.check_root()?;
        let Some(fields) = Fields::read_optional(source, "config.json")? else { return Ok(Self::default()) };
        // Drafters of vLLM, and models that see images, keep the decoder's fields in an object of their own.
        let mut nested = ["transformer_layer_config", "text_config"]
            .iter()
            .find_map(|field| fields.object(field).ok().flatten());
        let is_llava = |model| matches!(model, SeeingModel::Llava | SeeingModel::LlavaNext);
        if let Some(text) = &mut nested
            && SeeingModel::from_fields(&fields).ok().flatten().is_some_and(is_llava)
        {
            // An architecture that is not known leaves its sizes unsaid.
            let _ = Architecture::fill_in(text);
        }
        let layer = nested.as_ref().unwrap_or(&fields);
        let text = |field: &str| fields.text(field).ok().flatten().map(String::from);
        let count = |fields: &Fields, field: &str| fields.count(field, 1..=1 << 32).ok().flatten();
        let num_q_heads = count(layer, "num_attention_heads");
        let hidden_size = count(layer, "hidden_size");
        let divided = || Some(hidden_size? / num_q_heads?);
        Ok(ConfigSummary {
            architecture: fields.architecture().ok().map(String::from),
            model_type: text("model_type"),
            vocab_size: count(layer, "vocab_size"),
            draft_vocab_size: count(&fields, "draft_vocab_size"),
            hidden_size,
            target_hidden_size: count(&fields, "target_hidden_size"),
            num_layers: count(layer, "num_hidden_layers"),
            num_kv_heads: count(layer, "num_key_value_heads").or(num_q_heads),
            head_dim: count(layer, "head_dim").or_else(divided),
            max_position: max_position(layer).ok(),
            dtype: layer.float_type().ok().flatten().or_else(|| fields.float_type().ok().flatten()),
            num_medusa_heads: count(&fields, "medusa_num_heads"),
        })
    }

    /// Bytes of the keys and values of one token over all layers, stored as `dtype`.
    pub fn kv_bytes_per_token(&self, dtype: FloatType) -> Option<usize> {
        let sizes = [self.num_layers?, 2, self.num_kv_heads?, self.head_dim?, dtype.size_in_bytes()];
        sizes.into_iter().try_fold(1usize, usize::checked_mul)
    }
}

/// The content of a `config.json` at `path` with `dtype` as the type of the weights, if it names one.
pub fn with_dtype(path: &std::path::Path, json: &[u8], dtype: FloatType) -> Result<Vec<u8>> {
    Fields::parse(path.to_path_buf(), json)?.with_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(model_type: &str, names: &[&str]) -> Option<ModelKind> {
        let config = ConfigSummary {
            architecture: Some("LlamaForCausalLM".into()),
            model_type: Some(model_type.into()),
            ..ConfigSummary::default()
        };
        ModelKind::of(&config, names.iter().copied())
    }

    /// LLaVA-1.5-7B's own config says no more of its language model than this.
    #[test]
    fn a_seeing_model_has_the_sizes_that_its_config_leaves_out() {
        let folder = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32000,
            "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                            "torch_dtype": "float16", "vocab_size": 32064},
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                              "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
                              "patch_size": 14},
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let source = ModelSource::from(folder.path());
        let summary = ConfigSummary::read(&source).unwrap();
        assert_eq!(
            (summary.hidden_size, summary.num_layers, summary.head_dim),
            (Some(4096), Some(32), Some(128))
        );
        assert_eq!((summary.vocab_size, summary.max_position), (Some(32_064), Some(4096)));
        let model = crate::config::ModelConfig::from_hf(&source).unwrap();
        assert_eq!((model.geometry.hidden_size, model.geometry.intermediate_size), (4096, 11_008));
        let tower = model.vision.unwrap().tower;
        assert_eq!((tower.num_layers_run, tower.head_dim, tower.patch_size), (23, 64, 14));
    }

    /// The published layouts (EAGLE's and MSD's repositories, vLLM's speculators, Medusa's).
    #[test]
    fn tensors_tell_the_family() {
        let eagle1 = ["embed_tokens.weight", "fc.weight", "fc.bias", "layers.0.self_attn.q_proj.weight"];
        let target =
            ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"];
        assert_eq!(
            kind("llama", &["fc.weight", "midlayer.hidden_norm.weight", "d2t"]),
            Some(ModelKind::Eagle3)
        );
        assert_eq!(
            kind("llama", &["model.fc.weight", "model.layers.0.hidden_norm.weight"]),
            Some(ModelKind::Eagle3)
        );
        let single_feature =
            ["embed_tokens.weight", "midlayer.hidden_norm.weight", "midlayer.self_attn.q_proj.weight"];
        assert_eq!(kind("llama", &single_feature), Some(ModelKind::Eagle3));
        assert_eq!(kind("llama", &eagle1), Some(ModelKind::Eagle1));
        assert_eq!(kind("llava", &eagle1), Some(ModelKind::Msd));
        assert_eq!(kind("qwen2_vl", &eagle1), Some(ModelKind::Msd));
        assert_eq!(kind("llama", &["0.0.linear.weight", "0.1.weight"]), Some(ModelKind::Medusa));
        assert_eq!(kind("llama", &["medusa_head.0.0.linear.weight"]), Some(ModelKind::Medusa));
        assert_eq!(kind("llama", &target), Some(ModelKind::Target));
        assert_eq!(kind("qwen2_vl", &target), Some(ModelKind::Target));
        assert_eq!(kind("bert", &["encoder.weight"]), None);
    }
}
