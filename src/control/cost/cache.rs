//! The cost model on disk: read if it is ours and sound, written if there is room, never a reason to fail.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CostModel;

/// Changes whenever the meaning of the stored numbers does.
const VERSION: u32 = 3;

#[derive(Serialize, Deserialize)]
struct CostFile<Model> {
    version: u32,
    /// GPU, driver, model, dtype: whatever makes the numbers someone else's.
    fingerprint: String,
    model: Model,
}

impl CostModel {
    /// The model stored at `path` for `fingerprint`; `None`, with a warning where it is odd, if a new sweep is needed.
    pub fn load(path: &Path, fingerprint: &str) -> Option<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("{}: cost cache not readable ({error}); measuring again", path.display());
                return None;
            }
        };
        match serde_json::from_str::<CostFile<CostModel>>(&text) {
            Ok(file) if file.version != VERSION || file.fingerprint != fingerprint => None,
            Ok(file) if file.model.is_sound() => Some(file.model),
            Ok(_) => {
                tracing::warn!("{}: cost cache holds unusable numbers; measuring again", path.display());
                None
            }
            Err(error) => {
                tracing::warn!("{}: cost cache is damaged ({error}); measuring again", path.display());
                None
            }
        }
    }

    /// Stores the model at `path`, replacing it whole; failure is a warning. Returns whether it was stored.
    pub fn save(&self, path: &Path, fingerprint: &str) -> bool {
        let stored = self.write(path, fingerprint);
        if let Err(error) = &stored {
            tracing::warn!(
                "{}: cost cache not written ({error}); the next start measures again",
                path.display()
            );
        }
        stored.is_ok()
    }

    fn write(&self, path: &Path, fingerprint: &str) -> io::Result<()> {
        let file = CostFile { version: VERSION, fingerprint: fingerprint.to_string(), model: self };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        write_whole(path, &serde_json::to_vec(&file)?)
    }
}

/// Writes a file whole or not at all: whoever reads it meanwhile finds the old one.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let written = fs::write(&partial, content).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}
