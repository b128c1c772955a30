//! What is told of the worker: to the router how full it is, to Prometheus everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dynamo_backend_common::{ComponentSnapshot, SnapshotPublisher};
use smart_run::service::{Client, MetricsPage};

/// How often the router is told.
const PERIOD: Duration = Duration::from_millis(100);

/// Tokens of prompts.
#[derive(Default)]
pub struct Counts {
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
}

impl Counts {
    /// Adds a prompt, and what the prefix cache held of it.
    pub fn count_prompt(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Ordering::Relaxed);
    }

    /// The share of all prompts' tokens that was found; none before there was a prompt.
    fn hit_rate(&self) -> Option<f32> {
        let tokens = self.prompt_tokens.load(Ordering::Relaxed);
        (tokens > 0).then(|| (self.cached_tokens.load(Ordering::Relaxed) as f64 / tokens as f64) as f32)
    }
}

/// The page for Prometheus: what the engine counts, under the names that `smart-run serve` uses, too.
pub fn page(client: &Client, counts: &Counts) -> String {
    let mut page = MetricsPage::default();
    page.gauge("up", "Whether requests are taken.", u8::from(client.is_open()));
    page.counter("prompt_tokens_total", "Tokens of prompts.", counts.prompt_tokens.load(Ordering::Relaxed));
    page.counter(
        "cached_prompt_tokens_total",
        "Tokens of prompts whose keys and values were there.",
        counts.cached_tokens.load(Ordering::Relaxed),
    );
    client.snapshot().write_metrics(&mut page);
    page.into_text()
}

/// Tells how the worker stands, for as long as the task is let.
pub async fn publish(publisher: Arc<SnapshotPublisher>, client: Client, counts: Arc<Counts>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pages = client.snapshot().pages;
        let (used, total) = (pages.used as u64, pages.total as u64);
        publisher.publish(
            0,
            ComponentSnapshot {
                kv_used_blocks: used,
                kv_total_blocks: total,
                gpu_cache_usage: (used as f64 / (total as f64).max(1.0)) as f32,
                kv_cache_hit_rate: counts.hit_rate(),
                dp_rank: 0,
            },
        );
    }
}
