//! The demo pair inside the binary (feature `demo-model`).

use smart_run::Result;
use smart_run::config::ModelSource;

/// The embedded target and drafter.
#[cfg(feature = "demo-model")]
pub fn pair() -> Result<(ModelSource, ModelSource)> {
    use smart_run::config::EmbeddedModel;

    static TARGET: EmbeddedModel = EmbeddedModel {
        name: "demo target",
        config: include_str!("../../../assets/demo/target/config.json"),
        generation_config: Some(include_str!("../../../assets/demo/target/generation_config.json")),
        tokenizer: Some(include_bytes!("../../../assets/demo/target/tokenizer.json")),
        weights: include_bytes!("../../../assets/demo/target/model.safetensors"),
    };
    static DRAFTER: EmbeddedModel = EmbeddedModel {
        name: "demo drafter",
        config: include_str!("../../../assets/demo/drafter/config.json"),
        generation_config: None,
        tokenizer: None,
        weights: include_bytes!("../../../assets/demo/drafter/model.safetensors"),
    };
    Ok((ModelSource::Embedded(&TARGET), ModelSource::Embedded(&DRAFTER)))
}

/// This build carries no demo pair.
#[cfg(not(feature = "demo-model"))]
pub fn pair() -> Result<(ModelSource, ModelSource)> {
    Err(smart_run::Error::Input("this build has no demo pair (feature demo-model); give --model DIR".into()))
}
