//! [`KeptSweep`]: start-up sweeps on disk. Read if they are ours and sound, written if there is room, never a reason to fail.
//!
//! A machine may be busy while it is measured, and what disturbs a pass only lengthens it. So the first few starts all measure, and the
//! least time of each pass is kept: a single bad moment is not kept for good.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::table::fit;
use super::{CostModel, SweepPoint, Treads};

/// Changes whenever the meaning of the stored numbers does.
const VERSION: u32 = 4;
/// Sweeps after which no more are taken.
const SETTLED: u32 = 3;
/// Sweeps of so many targets, drafters and limits share a file; those measured last stay.
const MAX_KEPT: usize = 16;

/// The least times of the passes of all sweeps of one target and drafter on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptSweep {
    /// GPU, driver, model, dtype: whatever makes the numbers someone else's.
    fingerprint: String,
    /// How many were taken.
    sweeps: u32,
    treads: Treads,
    points: Vec<SweepPoint>,
}

#[derive(Serialize, Deserialize)]
struct CacheFile {
    version: u32,
    /// The one measured last comes last.
    kept: Vec<KeptSweep>,
}

impl KeptSweep {
    /// Nothing yet, for the machine, target and drafter that `fingerprint` tells from all others.
    pub fn new(fingerprint: &str) -> Self {
        Self {
            fingerprint: fingerprint.into(),
            sweeps: 0,
            treads: Treads { tokens: 1, nodes: 1 },
            points: Vec::new(),
        }
    }

    /// What is stored at `path` for `fingerprint`; nothing, with a warning where the file is odd, if there is none.
    pub fn load(path: &Path, fingerprint: &str) -> Self {
        let new = Self::new(fingerprint);
        let Some(kept) = read(path).into_iter().find(|kept| kept.fingerprint == fingerprint) else {
            return new;
        };
        if fit(&kept.points, kept.treads).is_err() {
            tracing::warn!("{}: cost cache holds unusable numbers; measuring again", path.display());
            return new;
        }
        kept
    }

    /// Whether enough sweeps were taken.
    pub fn is_settled(&self) -> bool {
        self.sweeps >= SETTLED
    }

    /// Adds a sweep: the least time of each pass is kept.
    pub fn add(&mut self, points: &[SweepPoint], treads: Treads) {
        for new in points {
            let us = |point: &SweepPoint| SweepPoint { us: new.us, ..*point };
            match self.points.iter_mut().find(|known| us(known) == *new) {
                Some(known) => known.us = known.us.min(new.us),
                None => self.points.push(*new),
            }
        }
        self.treads = treads;
        self.sweeps += 1;
    }

    /// The costs that these sweeps show.
    ///
    /// # Errors
    /// As [`CostModel::from_sweep`].
    pub fn cost_model(&self) -> crate::error::Result<CostModel> {
        CostModel::from_sweep(&self.points, self.treads)
    }

    /// Stores this at `path`, beside what is kept there of others; failure is a warning. Returns whether it was stored.
    pub fn save(&self, path: &Path) -> bool {
        let stored = self.write(path);
        if let Err(error) = &stored {
            tracing::warn!(
                "{}: cost cache not written ({error}); the next start measures again",
                path.display()
            );
        }
        stored.is_ok()
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut kept = read(path);
        kept.retain(|other| other.fingerprint != self.fingerprint);
        kept.drain(..(kept.len() + 1).saturating_sub(MAX_KEPT));
        kept.push(self.clone());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        write_whole(path, &serde_json::to_vec(&CacheFile { version: VERSION, kept })?)
    }
}

/// All that is kept at `path`; nothing, with a warning unless it is of another version, if that cannot be read.
fn read(path: &Path) -> Vec<KeptSweep> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("{}: cost cache not readable ({error}); measuring again", path.display());
            return Vec::new();
        }
    };
    let file = serde_json::from_slice(&content).and_then(|Versioned { version }| {
        let is_ours = version == u64::from(VERSION);
        is_ours.then(|| serde_json::from_slice::<CacheFile>(&content)).transpose()
    });
    match file {
        Ok(file) => file.map(|file| file.kept).unwrap_or_default(),
        Err(error) => {
            tracing::warn!("{}: cost cache is damaged ({error}); measuring again", path.display());
            Vec::new()
        }
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
