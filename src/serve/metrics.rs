//! `GET /metrics`: counters in the text format of Prometheus (version 0.0.4).

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::app::{App, Serving};
use super::counters::Counters;
use crate::service::Histogram;

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut page = Page::default();
    page.gauge(
        "up",
        "Whether requests are taken: 1, or 0 while loading, draining or failed.",
        u8::from(app.serving().is_ok()),
    );
    of_http(&mut page, &app.counters);
    if let Some(serving) = app.model() {
        of_engine(&mut page, &serving);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.text).into_response()
}

fn of_http(page: &mut Page, counters: &Counters) {
    page.head("http_responses_total", "counter", "Responses by route and status.");
    for ((route, status), count) in counters.answers() {
        page.line("http_responses_total", &format!("{{route={route:?},status=\"{status}\"}}"), count);
    }
    page.gauge("http_connections", "Open connections.", counters.connections.load(Ordering::Relaxed));
    page.counter(
        "http_connections_refused_total",
        "Connections turned away at the limit.",
        counters.refused_connections.load(Ordering::Relaxed),
    );
    page.head("choices_total", "counter", "Answers by how they ended: stop, length, cancelled, failed.");
    for (outcome, count) in counters.choices() {
        page.line("choices_total", &format!("{{outcome={outcome:?}}}"), count);
    }
    page.histogram(
        "request_seconds",
        "From acceptance to the last token, of answers that ended by stop or length.",
        &counters.choice_seconds(),
    );
    let tokens = [
        ("prompt_tokens_total", "Tokens of prompts.", &counters.prompt_tokens),
        (
            "cached_prompt_tokens_total",
            "Tokens of prompts whose keys and values were there.",
            &counters.cached_tokens,
        ),
        ("completion_tokens_total", "Tokens of answers.", &counters.completion_tokens),
    ];
    for (name, help, count) in tokens {
        page.counter(name, help, count.load(Ordering::Relaxed));
    }
}

fn of_engine(page: &mut Page, serving: &Serving) {
    let snapshot = serving.client.snapshot();
    let sums = &snapshot.stats;
    let facts = &serving.facts;
    page.head("info", "gauge", "What runs, as labels.");
    let labels = format!(
        "{{version={:?},model={},policy={},dtype={:?},device={}}}",
        env!("CARGO_PKG_VERSION"),
        quoted(&serving.model.name),
        quoted(&facts.policy),
        facts.dtype,
        quoted(&facts.device)
    );
    page.line("info", &labels, 1);
    page.gauge("requests_waiting", "Sequences waiting for a place.", snapshot.waiting);
    page.gauge("sequences_running", "Sequences running: the batch.", snapshot.running);
    page.gauge("sequences_max", "Sequences that can run at once.", facts.max_sequences);
    page.gauge("pages", "Pages of keys and values.", snapshot.pages.total);
    page.gauge("pages_used", "Pages held by running sequences.", snapshot.pages.used);
    page.gauge(
        "pages_cached",
        "Pages held by nobody whose keys and values may be used again.",
        snapshot.pages.cached,
    );
    page.counter(
        "preemptions_total",
        "Times that a sequence gave its pages up to an older one.",
        snapshot.preemptions,
    );
    page.counter("sequences_total", "Sequences accepted.", snapshot.requests);
    page.counter("rounds_total", "Rounds run, plain ones included.", sums.rounds);
    page.counter("rounds_failed_total", "Rounds that failed.", snapshot.failed_rounds);
    page.counter("sequence_rounds_total", "Rounds times running sequences.", sums.sequence_rounds);
    page.counter("emitted_tokens_total", "Tokens emitted, first ones included.", snapshot.emitted_tokens);
    page.counter("decoded_tokens_total", "Tokens emitted by rounds.", sums.emitted_tokens);
    page.counter("accepted_tokens_total", "Draft tokens accepted.", sums.accepted_tokens);
    page.counter("nodes_total", "Tree nodes verified, roots included.", sums.nodes);
    page.head("phase_seconds_total", "counter", "Time by phase of the engine.");
    for (phase, ms) in [
        ("prefill", sums.prefill_ms),
        ("draft", sums.draft_ms),
        ("verify", sums.verify_ms),
        ("control", sums.control_ms),
        ("decode", sums.decode_ms),
    ] {
        page.line("phase_seconds_total", &format!("{{phase={phase:?}}}"), ms / 1e3);
    }
    page.gauge(
        "tokens_per_second",
        "Tokens per second of decoding since the start.",
        sums.tokens_per_second(),
    );
    page.gauge(
        "accepted_per_round",
        "Draft tokens accepted per sequence and round since the start.",
        sums.mean_accepted_len(),
    );
    page.gauge(
        "nodes_per_round",
        "Nodes verified per sequence and round since the start.",
        sums.mean_nodes(),
    );
    page.gauge("round_predicted_seconds", "Predicted time of the latest round.", snapshot.predicted_seconds);
    page.gauge("round_measured_seconds", "Measured time of the latest round.", snapshot.measured_seconds);
    page.gauge("round_speedup", "Predicted speed of the latest round over a plain one's.", snapshot.speedup);
    page.histogram("round_seconds", "Wall time of rounds.", &snapshot.round_seconds);
    page.histogram("queue_seconds", "From acceptance to a place.", &snapshot.queue_seconds);
    page.histogram(
        "first_token_seconds",
        "From acceptance to the first token.",
        &snapshot.first_token_seconds,
    );
}

/// A page of metrics, every name under `smart_run_`.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // A `String` takes all that is written.
        let _ = write!(self.text, "# HELP smart_run_{name} {help}\n# TYPE smart_run_{name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.text, "smart_run_{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        for (bound, count) in histogram.buckets() {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".into() };
            self.line(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count);
        }
        self.line(&format!("{name}_sum"), "", histogram.sum());
        self.line(&format!("{name}_count"), "", histogram.count());
    }
}

/// A label's value: quotes, backslashes and line ends are escaped, nothing else.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative_and_labels_escaped() {
        let mut histogram = Histogram::default();
        histogram.observe(0.3);
        let mut page = Page::default();
        page.histogram("x", "X.", &histogram);
        assert!(page.text.starts_with("# HELP smart_run_x X.\n# TYPE smart_run_x histogram\n"));
        assert!(page.text.contains("smart_run_x_bucket{le=\"0.25\"} 0\nsmart_run_x_bucket{le=\"0.5\"} 1\n"));
        assert!(page.text.ends_with("_bucket{le=\"+Inf\"} 1\nsmart_run_x_sum 0.3\nsmart_run_x_count 1\n"));
        assert_eq!(quoted("a\"b\\c\nd é"), "\"a\\\"b\\\\c\\nd é\"");
    }
}
