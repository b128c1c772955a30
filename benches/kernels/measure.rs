//! One measurement: events around replays of a graph that holds many launches.

use smart_run::Result;
use smart_run::device::{Device, Event, Graph};

use super::setting::Setting;

/// A line of the table before anything is allocated for it.
pub struct Entry {
    pub name: String,
    /// 0 is measured first; what time does not suffice for is what ranks highest.
    pub rank: u8,
    /// The shape by fields, for programs that measure other kernels at it; `family` and what the family needs.
    pub shape: serde_json::Value,
    build: Build,
}

type Build = Box<dyn Fn(&Setting) -> Result<Case>>;

impl Entry {
    pub fn new(
        rank: u8,
        name: String,
        shape: serde_json::Value,
        build: impl Fn(&Setting) -> Result<Case> + 'static,
    ) -> Self {
        Self { name, rank, shape, build: Box::new(build) }
    }

    pub fn build(&self, setting: &Setting) -> Result<Case> {
        (self.build)(setting)
    }
}

/// A kernel at a shape.
pub struct Case {
    /// The least that must be read and written.
    pub bytes: f64,
    pub flops: f64,
    /// The i-th launch; large operands rotate with i, so that caches hold none of them.
    pub launch: Box<dyn Fn(usize) -> Result<()>>,
    /// Panics unless launch 0, run once, gave what the oracle gives for a sample of the output.
    pub check: Box<dyn Fn() -> Result<()>>,
}

/// Microseconds a launch, over the samples.
pub struct Timing {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
    pub launches: usize,
    pub samples: usize,
}

/// Checks `case`, then times it.
pub fn time(device: &Device, case: &Case) -> Result<Timing> {
    (case.launch)(0)?;
    (case.check)()?;
    let once = span(device, || (case.launch)(1))?;
    // A sample should last a few milliseconds; on a GPU short kernels are repeated often enough to hide the replay itself.
    let (fewest, sample_us) = if device.is_host() { (1, 2e3) } else { (20, 4e3) };
    let launches = ((sample_us / once) as usize).clamp(fewest, 200);
    let graph = device.capture(|| (0..launches).try_for_each(|i| (case.launch)(i)))?;
    time_graph(device, &graph, launches)
}

/// The share of each of `launches` in a replay of `graph`. Replays follow each other without a pause, or each would begin with the time that its
/// launch takes to reach the device; those that warm up come first.
pub fn time_graph(device: &Device, graph: &Graph, launches: usize) -> Result<Timing> {
    let (warm_us, all_us) = if device.is_host() { (0.0, 6e4) } else { (5e4, 2e5) };
    // A graph is brought to the device by its first launch.
    graph.launch()?;
    let once_us = span(device, || graph.launch())?;
    let replays = |us: f64| (us / once_us) as usize;
    (0..replays(warm_us).min(500)).try_for_each(|_| graph.launch())?;
    let samples = replays(all_us).clamp(5, 50);
    let events = (0..=samples).map(|_| Event::new(device)).collect::<Result<Vec<Event>>>()?;
    events[0].record()?;
    for event in &events[1..] {
        graph.launch()?;
        event.record()?;
    }
    events[samples].wait()?;
    let share = |pair: &[Event]| {
        let us = pair[1].micros_since(&pair[0])?.expect("all events have happened").max(0.01);
        Ok(us / launches as f64)
    };
    Ok(Timing::of(events.windows(2).map(share).collect::<Result<_>>()?, launches))
}

impl Timing {
    /// Quantiles of `times`, of which each is the mean of `launches`.
    pub fn of(mut times: Vec<f64>, launches: usize) -> Self {
        times.sort_by(f64::total_cmp);
        let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
        Self { median: quantile(0.5), p10: quantile(0.1), p90: quantile(0.9), launches, samples: times.len() }
    }
}

/// Microseconds of `work` on the device's stream.
pub fn span(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    start.record()?;
    work()?;
    end.record()?;
    end.wait()?;
    Ok(end.micros_since(&start)?.expect("both events have happened").max(0.01))
}

/// Panics unless `got` is `want` within what 16-bit rounding and the order of additions allow.
#[track_caller]
pub fn near(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}");
    let scale = want.iter().fold(0f32, |scale, x| scale.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let limit = 0.01 * (want.abs() + scale);
        assert!((got - want).abs() <= limit, "{name}: element {i} is {got}, expected {want}");
    }
}
