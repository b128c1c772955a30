//! Counters in the text format of Prometheus (version 0.0.4).

use std::fmt::{Display, Write};

use super::snapshot::{Histogram, Snapshot};

/// A page of metrics, every name under `smart_run_`.
#[derive(Default)]
pub struct MetricsPage {
    text: String,
}

impl MetricsPage {
    /// The comments before a metric's lines: its kind and what it says.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        // A `String` takes all that is written.
        let _ = write!(self.text, "# HELP smart_run_{name} {help}\n# TYPE smart_run_{name} {kind}\n");
    }

    /// One value; `labels` in braces, or nothing.
    pub fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.text, "smart_run_{name}{labels} {value}");
    }

    /// What only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    /// What goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    /// Times by size.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        for (bound, count) in histogram.buckets() {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".into() };
            self.line(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count);
        }
        self.line(&format!("{name}_sum"), "", histogram.sum());
        self.line(&format!("{name}_count"), "", histogram.count());
    }

    /// The whole page.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Snapshot {
    /// Writes all of it to `page`.
    pub fn write_metrics(&self, page: &mut MetricsPage) {
        let sums = &self.stats;
        page.gauge("requests_waiting", "Sequences waiting for a place.", self.waiting);
        page.gauge("sequences_running", "Sequences running: the batch.", self.running);
        page.gauge("pages", "Pages of keys and values.", self.pages.total);
        page.gauge("pages_used", "Pages held by running sequences.", self.pages.used);
        page.gauge(
            "pages_cached",
            "Pages held by nobody whose keys and values may be used again.",
            self.pages.cached,
        );
        page.counter(
            "preemptions_total",
            "Times that a sequence gave its pages up to an older one.",
            self.preemptions,
        );
        page.counter("sequences_total", "Sequences accepted.", self.requests);
        page.head("sequences_ended_total", "counter", "Sequences by how they ended.");
        for (outcome, count) in [
            ("eos", self.finished_eos),
            ("length", self.finished_length),
            ("cancelled", self.cancelled),
            ("failed", self.failed),
        ] {
            page.line("sequences_ended_total", &format!("{{outcome={outcome:?}}}"), count);
        }
        page.counter("rounds_total", "Rounds run, plain ones included.", sums.rounds);
        page.counter("rounds_failed_total", "Rounds that failed.", self.failed_rounds);
        page.counter("sequence_rounds_total", "Rounds times running sequences.", sums.sequence_rounds);
        page.counter("emitted_tokens_total", "Tokens emitted, first ones included.", self.emitted_tokens);
        page.counter("decoded_tokens_total", "Tokens emitted by rounds.", sums.emitted_tokens);
        page.counter("accepted_tokens_total", "Draft tokens accepted.", sums.accepted_tokens);
        page.counter("nodes_total", "Tree nodes verified, roots included.", sums.nodes);
        page.head(
            "phase_seconds_total",
            "counter",
            "Time by phase of the engine; meanwhile: what the host did while the device was busy.",
        );
        for (phase, ms) in [
            ("prefill", sums.prefill_ms),
            ("draft", sums.draft_ms),
            ("verify", sums.verify_ms),
            ("control", sums.control_ms),
            ("meanwhile", sums.meanwhile_ms),
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
        page.gauge("round_predicted_seconds", "Predicted time of the latest round.", self.predicted_seconds);
        page.gauge("round_measured_seconds", "Measured time of the latest round.", self.measured_seconds);
        page.gauge("round_speedup", "Predicted speed of the latest round over a plain one's.", self.speedup);
        page.histogram("round_seconds", "Wall time of rounds.", &self.round_seconds);
        page.histogram("queue_seconds", "From acceptance to a place.", &self.queue_seconds);
        page.histogram(
            "first_token_seconds",
            "From acceptance to the first token.",
            &self.first_token_seconds,
        );
        page.histogram(
            "sequence_seconds",
            "From acceptance to the last token, of sequences that ended by themselves.",
            &self.request_seconds,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let mut histogram = Histogram::default();
        histogram.observe(0.3);
        let mut page = MetricsPage::default();
        page.histogram("x", "X.", &histogram);
        let text = page.into_text();
        assert!(text.starts_with("# HELP smart_run_x X.\n# TYPE smart_run_x histogram\n"));
        assert!(text.contains("smart_run_x_bucket{le=\"0.25\"} 0\nsmart_run_x_bucket{le=\"0.5\"} 1\n"));
        assert!(text.ends_with("_bucket{le=\"+Inf\"} 1\nsmart_run_x_sum 0.3\nsmart_run_x_count 1\n"));
    }

    #[test]
    fn a_snapshot_is_written_once_a_name() {
        let mut page = MetricsPage::default();
        Snapshot { running: 3, ..Snapshot::default() }.write_metrics(&mut page);
        let text = page.into_text();
        assert!(text.contains("smart_run_sequences_running 3\n"));
        let mut names: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
