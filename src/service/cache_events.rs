//! [`CacheEvents`]: the prefix cache of a service, followed from outside.

use tokio::sync::mpsc as channel;

use crate::engine::{CacheEvent, Engine};

/// Yields what happens in the prefix cache: first all blocks that it holds, then what each round stores and removes. Dropping it ends that.
///
/// Nothing waits for a slow reader: what has not been read yet is kept, however much it is.
pub struct CacheEvents {
    inbox: channel::UnboundedReceiver<Vec<CacheEvent>>,
}

impl CacheEvents {
    pub(super) fn open() -> (Self, channel::UnboundedSender<Vec<CacheEvent>>) {
        let (outbox, inbox) = channel::unbounded_channel();
        (Self { inbox }, outbox)
    }

    /// The next events, in order, the first time perhaps none; `None` once the engine's thread has ended.
    pub async fn next(&mut self) -> Option<Vec<CacheEvent>> {
        self.inbox.recv().await
    }

    /// As [`CacheEvents::next`], for a thread that may wait.
    ///
    /// # Panics
    /// Within an asynchronous context.
    pub fn wait(&mut self) -> Option<Vec<CacheEvent>> {
        self.inbox.blocking_recv()
    }
}

/// Those who follow the cache.
#[derive(Default)]
pub(super) struct Followers {
    outboxes: Vec<channel::UnboundedSender<Vec<CacheEvent>>>,
}

impl Followers {
    /// Whoever begins late learns first what is there.
    pub fn add(&mut self, engine: &mut Engine, outbox: channel::UnboundedSender<Vec<CacheEvent>>) {
        self.tell(engine);
        if outbox.send(engine.cached_blocks()).is_ok() {
            engine.record_cache_events(true);
            self.outboxes.push(outbox);
        }
    }

    /// Hands out what has happened; once nobody is left the engine keeps nothing more.
    pub fn tell(&mut self, engine: &mut Engine) {
        if self.outboxes.is_empty() {
            return;
        }
        let events = engine.take_cache_events();
        match events.is_empty() {
            true => self.outboxes.retain(|outbox| !outbox.is_closed()),
            false => self.outboxes.retain(|outbox| outbox.send(events.clone()).is_ok()),
        }
        if self.outboxes.is_empty() {
            engine.record_cache_events(false);
        }
    }
}
