//! Doors to what clients send, for the fuzz targets in `fuzz/`; no part of the library.

use std::path::Path;
use std::sync::Arc;

use super::answers::Asked;
use super::app::{App, Serving};
use super::conversation::Conversation;
use super::errors::ApiError;
use super::fields::Fields;
use super::{ServedModel, ServerConfig, chat, completions};
use crate::config::ModelSource;
use crate::device::DeviceChoice;
use crate::engine::Engine;
use crate::service::ServiceConfig;

/// Reads bodies as the endpoints do, up to where the engine would be asked.
pub struct Bodies {
    serving: Arc<Serving>,
    /// Holds the engine.
    _app: App,
}

impl Bodies {
    /// For the model in `folder`, on the host driver.
    ///
    /// # Panics
    /// If it cannot be served.
    pub fn open(folder: &Path) -> Self {
        let source = ModelSource::from(folder);
        let app = App::new(ServerConfig::default());
        let engine =
            Engine::builder(source.clone()).device(DeviceChoice::Host).max_context(256).max_sequences(1);
        let model = ServedModel::open(&source, "demo").expect("a model");
        app.begin(model, None, engine.build().expect("an engine"), ServiceConfig { max_waiting: 256 });
        Self { serving: app.model().expect("a model that is served"), _app: app }
    }

    /// The status of a request to complete.
    pub fn completion(&self, body: &[u8]) -> u16 {
        status(completions::Asked::read(body, &self.serving))
    }

    /// The status of a chat.
    pub fn chat(&self, body: &[u8]) -> u16 {
        status(chat::Asked::read(body, &self.serving))
    }

    /// The status of a conversation to be tokenized.
    pub fn tokenize(&self, body: &[u8]) -> u16 {
        let conversation = || {
            let mut fields = Fields::parse(body)?;
            Conversation::read(&mut fields, &self.serving)?.prompt(&self.serving)
        };
        status(conversation())
    }
}

/// The bytes of a picture's data URL.
///
/// # Errors
/// What is wrong with it.
pub fn decode_data_url(url: &str) -> Result<Vec<u8>, &'static str> {
    super::pictures::decode_data_url(url)
}

fn status<T>(outcome: Result<T, ApiError>) -> u16 {
    outcome.map_or_else(|error| error.status.as_u16(), |_| 200)
}
