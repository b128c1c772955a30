//! `GET /metrics`: counters in the text format of Prometheus (version 0.0.4).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::app::{App, Serving};
use super::counters::Counters;
use crate::service::MetricsPage;

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut page = MetricsPage::default();
    page.gauge(
        "up",
        "Whether requests are taken: 1, or 0 while loading, draining or failed.",
        u8::from(app.serving().is_ok()),
    );
    of_http(&mut page, &app.counters);
    if let Some(serving) = app.model() {
        of_engine(&mut page, &serving);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.into_text()).into_response()
}

fn of_http(page: &mut MetricsPage, counters: &Counters) {
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

fn of_engine(page: &mut MetricsPage, serving: &Serving) {
    let snapshot = serving.client.snapshot();
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
    page.gauge("sequences_max", "Sequences that can run at once.", facts.max_sequences);
    page.gauge("picture_bytes", "Memory that prepared pictures hold.", serving.pictures.bytes_held());
    page.gauge("picture_bytes_max", "Memory for prepared pictures.", serving.pictures.bytes());
    snapshot.write_metrics(page);
}

/// A label's value: quotes, backslashes and line ends are escaped, nothing else.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd é"), "\"a\\\"b\\\\c\\nd é\"");
    }
}
