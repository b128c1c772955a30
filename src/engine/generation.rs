//! One request as an iterator of token batches: the simplest way to use an engine.

use crate::engine::{Engine, FinishReason, Request, SequenceId};
use crate::error::Result;

/// Yields the tokens of each round until the sequence ends. Dropping it cancels the sequence.
pub struct Generation<'e> {
    engine: &'e mut Engine,
    id: SequenceId,
    finished: Option<FinishReason>,
    /// A round failed: nothing more will come.
    failed: bool,
}

impl Engine {
    /// Serves one request to its end; other running sequences advance too, their tokens are lost to the caller.
    pub fn generate(&mut self, request: Request) -> Result<Generation<'_>> {
        let id = self.submit(request)?;
        Ok(Generation { engine: self, id, finished: None, failed: false })
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
        while self.finished.is_none() && !self.failed {
            let emissions = match self.engine.step() {
                Ok(emissions) => emissions,
                Err(error) => {
                    self.engine.cancel(self.id);
                    self.failed = true;
                    return Some(Err(error));
                }
            };
            if emissions.is_empty() {
                return None;
            }
            // A step may hand out other sequences' first tokens alone.
            let own = emissions.into_iter().find(|emission| emission.sequence == self.id);
            let Some(own) = own else { continue };
            self.finished = own.finished;
            if !own.tokens.is_empty() {
                return Some(Ok(own.tokens));
            }
        }
        None
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        if self.finished.is_none() {
            self.engine.cancel(self.id);
        }
    }
}
