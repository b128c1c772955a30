//! [`Counters`]: what the HTTP side of the server counts; the engine's side is in the service's snapshot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::service::{Histogram, Usage};

#[derive(Default)]
pub(super) struct Counters {
    /// Answers by route and status.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Choices by how they ended.
    choices: Mutex<BTreeMap<&'static str, u64>>,
    /// From acceptance to the last token of choices that came to their end, by a stop string, too: to the engine's service, which knows
    /// tokens alone, these are cancelled.
    choice_seconds: Mutex<Histogram>,
    pub prompt_tokens: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub completion_tokens: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicUsize,
    /// Connections that were turned away: there were too many.
    pub refused_connections: AtomicU64,
}

impl Counters {
    /// Counts an answer.
    pub fn count_answer(&self, route: &'static str, status: u16) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry((route, status)).or_default() += 1;
    }

    /// Counts a choice that ended as `outcome` says.
    pub fn count_choice(&self, outcome: &'static str) {
        *self.choices.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// Counts a choice that took `seconds` to its end.
    pub fn count_seconds(&self, seconds: f64) {
        self.choice_seconds.lock().unwrap_or_else(PoisonError::into_inner).observe(seconds);
    }

    /// Counts the tokens of a request.
    pub fn count_usage(&self, usage: &Usage) {
        self.prompt_tokens.fetch_add(usage.prompt_tokens as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(usage.cached_tokens as u64, Ordering::Relaxed);
        self.completion_tokens.fetch_add(usage.completion_tokens as u64, Ordering::Relaxed);
    }

    pub fn answers(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn choice_seconds(&self) -> Histogram {
        self.choice_seconds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn choices(&self) -> BTreeMap<&'static str, u64> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
