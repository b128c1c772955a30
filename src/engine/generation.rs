//! One request as an iterator of token batches: the simplest way to use an engine.

use crate::engine::{Engine, Failure, FinishReason, Request, SequenceId};
use crate::error::Result;

/// Yields the tokens of each round until the sequence ends. Dropping it cancels the sequence.
pub struct Generation<'e> {
    engine: &'e mut Engine,
    id: SequenceId,
    finished: Option<FinishReason>,
    /// A round failed: nothing more will come.
    failed: bool,
    /// Why the text cannot go on, if the caller has not been told yet.
    failure: Option<Failure>,
}

impl Engine {
    /// Serves one request to its end; other running sequences advance too, their tokens are lost to the caller.
    pub fn generate(&mut self, request: Request) -> Result<Generation<'_>> {
        let id = self.submit(request)?;
        Ok(Generation { engine: self, id, finished: None, failed: false, failure: None })
    }
}

impl Generation<'_> {
    /// Why it ended; `None` while it runs, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// The engine, to read its statistics.
    pub fn engine(&self) -> &Engine {
        self.engine
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Vec<i32>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(failure) = self.failure.take() {
                return Some(Err(failure.into_error()));
            }
            if self.finished.is_some() || self.failed {
                return None;
            }
            let emissions = match self.engine.step() {
                Ok(emissions) => emissions,
                Err(error) => {
                    self.engine.cancel(self.id);
                    self.failed = true;
                    return Some(Err(error));
                }
            };
            // A step may read prompts alone, or serve others.
            let own = emissions.into_iter().find(|emission| emission.sequence == self.id);
            let Some(own) = own else { continue };
            self.finished = own.finished;
            self.failure = own.failure;
            if !own.tokens.is_empty() {
                return Some(Ok(own.tokens));
            }
        }
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        if self.finished.is_none() {
            self.engine.cancel(self.id);
        }
    }
}
