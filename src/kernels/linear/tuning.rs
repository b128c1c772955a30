//! Which of several launches that give the same bits is the fastest on the GPU at hand: measured once, at start-up. Rules ([`Rules`],
//! [`Device::runs_clusters`]) say where nothing has been measured.

use std::collections::HashMap;
use std::time::Instant;

use super::tiles::{Grid, Rules, Tile, splits, tiles_of, tokens_for};
use super::{Epilogue, LinearArgs, LinearWorkspace, launch_as, linear, linear_swiglu};
use crate::device::{Device, Tensor, TensorCoreFamily, Timeline};
use crate::error::Result;

/// Weights of a shape that a measurement goes through: of a large model more than its GPU's caches hold, as in a pass.
const MAX_WEIGHTS: usize = 16;
/// Times that every way is measured, in turns, after one that warms up; the least counts.
const TURNS: usize = 3;
/// Bytes of weights that no GPU's caches hold. Where fewer are measured, larger ones of another kind come in between, if there are any.
const BEYOND_CACHES: usize = 200 << 20;
/// What another way must save to take the place of the usual one.
const LEAST_GAIN: f64 = 0.01;

/// Launches that run in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LaunchKind {
    family: TensorCoreFamily,
    n: usize,
    k: usize,
    gated: bool,
    /// Of their tiles.
    tokens: usize,
}

/// How a launch runs: the same bits, another time.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) tile: &'static Tile,
    /// Most tiles of weights that share their tokens in a cluster, where there can be clusters; 0: none.
    pub(super) most_sharing: u32,
}

/// What has been measured.
#[derive(Default)]
pub(super) struct Tuning {
    chosen: HashMap<LaunchKind, Way>,
    report: Vec<TunedLaunch>,
}

impl Tuning {
    /// How `rows` rows go through a weight `[n, k]`: as measured, else by rule.
    pub(super) fn way(&self, rules: &Rules, rows: usize, (n, k): (usize, usize), gated: bool) -> Way {
        let family = rules.family;
        let kind = LaunchKind { family, n, k, gated, tokens: tokens_for(family, rows) };
        let usual = || Way { tile: rules.tile(rows, n, splits(n, k)), most_sharing: u32::MAX };
        self.chosen.get(&kind).copied().unwrap_or_else(usual)
    }
}

/// Weights `[n, k]` of one shape, one or more, and room for what they are multiplied with and come to, `[rows, ...]`.
pub struct TunedLayer<'a> {
    /// As in the log.
    pub name: &'static str,
    /// Of one shape and dtype.
    pub weights: Vec<&'a Tensor>,
    /// Which of the layers here runs them.
    pub sums: TunedSums,
    /// Token rows; their values do not matter.
    pub x: Tensor,
    /// Gets overwritten.
    pub out: Tensor,
}

/// What becomes of the sums of a layer that is measured.
pub enum TunedSums {
    /// They are all: [`linear`].
    Plain,
    /// [`linear_swiglu`].
    Gated,
    /// [`head`](super::head), which leaves digests there, as [`digest_buffer`](crate::kernels::digest::digest_buffer) makes them, of as many rows as
    /// there are.
    Head(Tensor),
}

/// A launch that could run in several ways, and the one chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct TunedLaunch {
    /// Name of the layer.
    pub layer: &'static str,
    /// Rows of the launch that was measured: all that a tile takes.
    pub rows: usize,
    /// Weight rows of a tile.
    pub weights: usize,
    /// Whether Hopper's copy engine brings them.
    pub bulk: bool,
    /// Blocks of a cluster; 1: none.
    pub cluster: usize,
    /// Microseconds.
    pub us: f64,
    /// Microseconds of the way that rules would have chosen.
    pub usual_us: f64,
}

impl LinearWorkspace {
    /// Measures launches of `layers`, of which those with this workspace then run in the fastest way; of full tiles of every width up to the rows
    /// there are. None is begun after `deadline`. Waits for the device.
    ///
    /// # Errors
    /// Operands that do not fit, a failure of the driver.
    pub fn tune(&mut self, device: &Device, layers: &[TunedLayer], deadline: Instant) -> Result<()> {
        for layer in layers.iter().filter(|layer| layer.x.dtype().size_in_bytes() == 2) {
            let mut rows = 1;
            while rows <= layer.x.dim(0) {
                let tokens = tokens_for(device.linear_family(), rows);
                if tokens > layer.x.dim(0) || tokens < rows || Instant::now() >= deadline {
                    break;
                }
                let evictor = evictor(layer, layers);
                self.tune_launch(device, layer, evictor, tokens)?;
                rows = tokens + 1;
            }
        }
        Ok(())
    }

    /// What has been measured and chosen.
    pub fn tuned(&self) -> &[TunedLaunch] {
        &self.tuning.report
    }

    fn tune_launch(
        &mut self,
        device: &Device,
        layer: &TunedLayer,
        evictor: Option<&TunedLayer>,
        rows: usize,
    ) -> Result<()> {
        let Some(first) = layer.weights.first() else { return Ok(()) };
        let (n, k) = (first.dim(0), first.dim(1));
        let (family, splits) = (device.linear_family(), splits(n, k));
        let digests = match &layer.sums {
            TunedSums::Head(digests) if splits.count == 1 => Some(digests.rows(0..rows)),
            _ => None,
        };
        let epilogue = match (&layer.sums, &digests) {
            (TunedSums::Gated, _) => Epilogue::Swiglu,
            (_, Some(digests)) => Epilogue::Head(digests),
            _ => Epilogue::Plain,
        };
        let gated = epilogue.is_gated();
        let mut ways = Vec::new();
        let has_bulk_copies = device.has_bulk_copies()?;
        for tile in tiles_of(family, rows).filter(|tile| has_bulk_copies || !tile.bulk) {
            let kernel = tile.kernel(layer.x.dtype(), gated);
            let apart = Grid::apart(tile, rows, n, splits);
            let mut most_sharing = u32::MAX;
            while let Some(grid) = apart.in_clusters(device, kernel, tile, most_sharing)? {
                ways.push((Way { tile, most_sharing: grid.cluster[1] }, grid.cluster_size()));
                most_sharing = grid.cluster[1] / 2;
            }
            ways.push((Way { tile, most_sharing: 0 }, 1));
        }
        if ways.len() < 2 {
            return Ok(());
        }
        let tile = Rules::of(device).tile(rows, n, splits);
        let usual = ways.iter().position(|(way, _)| std::ptr::eq(way.tile, tile)).unwrap_or(0);
        let (x, out) = (layer.x.rows(0..rows), layer.out.rows(0..rows));
        let step = layer.weights.len().div_ceil(MAX_WEIGHTS);
        let mut least = vec![f64::INFINITY; ways.len()];
        for turn in 0..=TURNS {
            for (&(way, _), least) in ways.iter().zip(&mut least) {
                // Every other phase is what is measured.
                let mut timeline = Timeline::new(device);
                if evictor.is_none() {
                    // While it runs the host gets ahead of the device, which must not be seen waiting.
                    let weight = layer.weights[layer.weights.len() - 1];
                    let args = LinearArgs { x: &x, weight, bias: None, out: &out, workspace: self };
                    launch_as(device, &args, splits, epilogue, way)?;
                    timeline.mark()?;
                }
                for weight in layer.weights.iter().step_by(step) {
                    if let Some(evictor) = evictor {
                        self.run_once(device, evictor)?;
                        timeline.mark()?;
                    }
                    let args = LinearArgs { x: &x, weight, bias: None, out: &out, workspace: self };
                    launch_as(device, &args, splits, epilogue, way)?;
                    if evictor.is_some() {
                        timeline.mark()?;
                    }
                }
                if evictor.is_none() {
                    timeline.mark()?;
                }
                timeline.wait()?;
                let us = timeline.phases()?.map_or(f64::INFINITY, |phases| phases.iter().step_by(2).sum());
                if turn > 0 {
                    *least = least.min(us / layer.weights.len().div_ceil(step) as f64);
                }
            }
        }
        let best = fastest(&least, usual);
        let (way, cluster) = ways[best];
        self.tuning.chosen.insert(LaunchKind { family, n, k, gated, tokens: rows }, way);
        self.tuning.report.push(TunedLaunch {
            layer: layer.name,
            rows,
            weights: way.tile.weights,
            bulk: way.tile.bulk,
            cluster,
            us: least[best],
            usual_us: least[usual],
        });
        Ok(())
    }

    /// A row through the first of these weights.
    fn run_once(&self, device: &Device, layer: &TunedLayer) -> Result<()> {
        let (x, out) = (layer.x.rows(0..1), layer.out.rows(0..1));
        let args = LinearArgs { x: &x, weight: layer.weights[0], bias: None, out: &out, workspace: self };
        match layer.sums {
            TunedSums::Gated => linear_swiglu(device, args),
            TunedSums::Plain | TunedSums::Head(_) => linear(device, args),
        }
    }
}

/// What takes the place of `layer`'s weights in the caches before each is read, if they would stay there: the largest others.
fn evictor<'a, 'b>(layer: &TunedLayer, layers: &'a [TunedLayer<'b>]) -> Option<&'a TunedLayer<'b>> {
    let all: usize = layer.weights.iter().map(|weight| weight.num_bytes()).sum();
    let first = |layer: &TunedLayer| layer.weights.first().map_or(0, |weight| weight.num_bytes());
    let largest = layers.iter().max_by_key(|other| first(other)).filter(|other| first(other) > all);
    largest.filter(|_| all < BEYOND_CACHES)
}

/// The one with the least time, the usual one unless it is beaten by [`LEAST_GAIN`].
fn fastest(times: &[f64], usual: usize) -> usize {
    let best = (0..times.len()).min_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(usual);
    if times[best] < times[usual] * (1.0 - LEAST_GAIN) { best } else { usual }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DType, DeviceChoice};

    const MMA: Rules = Rules { family: TensorCoreFamily::Mma, wide_from_ctas: u32::MAX, bulk: false };

    /// A launch runs as was measured of its kind, and of no other.
    #[test]
    fn what_was_measured_is_what_runs() {
        let wide = tiles_of(MMA.family, 64).find(|tile| tile.bulk).unwrap();
        let kind = LaunchKind { family: MMA.family, n: 512, k: 256, gated: false, tokens: 64 };
        let chosen = HashMap::from([(kind, Way { tile: wide, most_sharing: 0 })]);
        let tuning = Tuning { chosen, report: Vec::new() };
        let runs = |rows, shape, gated| {
            let way = tuning.way(&MMA, rows, shape, gated);
            (way.tile.bulk, way.most_sharing > 0)
        };
        for rows in [33, 50, 64] {
            assert_eq!(runs(rows, (512, 256), false), (true, false), "{rows} rows");
        }
        for (rows, shape, gated) in [
            (32, (512, 256), false),
            (65, (512, 256), false),
            (64, (256, 512), false),
            (64, (512, 256), true),
        ] {
            assert_eq!(runs(rows, shape, gated), (false, true), "{rows} rows of {shape:?}");
        }
    }

    /// Weights that would stay in the caches make way for the largest others, and these for none.
    #[test]
    fn small_weights_are_driven_out_by_larger_ones() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let tensor = |rows| Tensor::uninit(&device, DType::Bf16, &[rows, 8]).unwrap();
        let (small, large) = (tensor(16), tensor(64));
        let layer = |name, weights| {
            let sums = TunedSums::Plain;
            TunedLayer { name, weights, sums, x: tensor(1), out: tensor(1) }
        };
        let layers = [layer("small", vec![&small; 3]), layer("large", vec![&large])];
        assert_eq!(evictor(&layers[0], &layers).map(|it| it.name), Some("large"));
        assert!(evictor(&layers[1], &layers).is_none(), "nothing is larger");
        let many = layer("many", vec![&small; 4]);
        assert!(evictor(&many, &layers).is_none(), "as large as what could drive them out");
    }

    #[test]
    fn the_usual_way_stays_unless_another_is_clearly_faster() {
        assert_eq!(fastest(&[10.0, 9.0, 12.0], 0), 1);
        assert_eq!(fastest(&[10.0, 9.95, 12.0], 0), 0);
        assert_eq!(fastest(&[10.0, 9.95, 12.0], 2), 1);
        assert_eq!(fastest(&[f64::INFINITY, f64::INFINITY], 1), 1, "nothing was measured");
    }
}
