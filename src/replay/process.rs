//! Synthetic records whose acceptance is known: a text, a target and a drafter made of seeded numbers.
//!
//! After every position the target draws one of ten tokens, or another, with probabilities that an easy or a hard step gives; how
//! often steps are easy is the text's ease. The drafter lists those ten tokens in trees rooted at any earlier position. With depth
//! it loses the thread: at each further step it lists other tokens with a chance of 3 %, and its confidence says so. So its confidences
//! are the true probabilities, unless they are distorted, and trees of neighbouring positions agree on one text.
#![forbid(unsafe_code)]

use super::random::{Random, mix};
use super::record::{Record, RecordShape, RecordedSequence, RecordedTree};
use crate::error::Result;

/// Tokens that the target may draw and the drafter lists.
const WIDTH: usize = 10;
/// What a drafter keeps of its grip on the text from one depth to the next.
const GRIP: f64 = 0.97;
/// Tokens of a position: ten that are listed, one for any other.
const TOKENS_PER_POSITION: i32 = 16;
const OTHER: i32 = TOKENS_PER_POSITION - 1;
/// Tokens that are never drawn.
const NEVER: i32 = 1 << 28;

/// Names of the processes of the suite; see [`Process::named`].
pub const SUITE: [&str; 8] =
    ["accepts-2", "accepts-3", "accepts-4.5", "hopeless", "mixed", "changing", "collapsing", "distorted"];

/// How easy a text is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ease {
    /// The same share of easy steps everywhere.
    Uniform(f64),
    /// Texts of two kinds, in turn.
    Mixed(f64, f64),
    /// Drawn anew for every stretch of so many positions of each text.
    Stretches(usize),
}

/// How the drafter's lists fare: a factor on the true probability of everything it lists.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quality {
    /// The same at every position; 1 is what its confidence says.
    Constant(f64),
    /// 1, but this from the first to before the second position of every text.
    Drops(usize, usize, f64),
}

/// A synthetic text with its drafter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// Decides every number.
    pub seed: u64,
    /// How easy the texts are.
    pub ease: Ease,
    /// Share of the target's choices that the drafter's lists leave room for, as its confidences say themselves.
    pub coverage: f64,
    /// How the drafter fares.
    pub quality: Quality,
    /// Power on the drafter's probabilities: 1 is calibrated, below 1 too hopeful about unlikely tokens.
    pub distortion: f64,
}

impl Process {
    /// A drafter whose confidences are the true probabilities.
    pub fn calibrated(seed: u64, ease: Ease) -> Self {
        Self { seed, ease, coverage: 1.0, quality: Quality::Constant(1.0), distortion: 1.0 }
    }

    /// A process of the suite: `accepts-2`, `accepts-3` and `accepts-4.5` by the mean accepted length of `eagle2:10,5,60`; `hopeless`
    /// (0.05); `mixed`, texts very easy and hard in turn; `changing`, easy and hard stretches within each text; `collapsing`, from
    /// 4.5 to 0.05 in mid-text; `distorted`, a drafter far too hopeful about unlikely tokens.
    ///
    /// # Errors
    /// [`crate::Error::Input`] that lists the names.
    pub fn named(name: &str, seed: u64) -> Result<Self> {
        let uniform = |ease, coverage| Self { coverage, ..Self::calibrated(seed, Ease::Uniform(ease)) };
        Ok(match name {
            "accepts-2" => uniform(0.2, 0.83),
            "accepts-3" => uniform(0.4, 0.96),
            "accepts-4.5" => uniform(0.9, 1.0),
            "hopeless" => uniform(0.0, 0.05),
            "mixed" => Self::calibrated(seed, Ease::Mixed(0.95, 0.2)),
            "changing" => Self::calibrated(seed, Ease::Stretches(20)),
            "collapsing" => Self { quality: Quality::Drops(100, usize::MAX, 0.02), ..uniform(0.9, 1.0) },
            "distorted" => Self { distortion: 0.4, ..uniform(0.4, 0.96) },
            _ => {
                let names = SUITE.join(", ");
                return Err(crate::Error::Input(format!(
                    "there is no synthetic process {name:?}, but {names}"
                )));
            }
        })
    }

    /// The record of `sequences` texts of `positions` positions.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a shape that cannot be, more than ten children included, or for nothing to record.
    pub fn record(&self, shape: RecordShape, sequences: usize, positions: usize) -> Result<Record> {
        shape.validate()?;
        if shape.top_k > WIDTH {
            return Err(crate::Error::Input(format!(
                "a synthetic drafter lists {WIDTH} tokens, not {}",
                shape.top_k
            )));
        }
        let texts = (0..sequences).map(|sequence| {
            let trees =
                (0..positions).map(|position| self.tree(shape, sequence, position)).collect::<Result<_>>()?;
            Ok(RecordedSequence { prompt_len: 0, sampled: true, trees })
        });
        Record::new(shape, texts.collect::<Result<_>>()?)
    }

    /// What the target draws after `position`: the rank of a listed token, or [`OTHER`].
    fn drawn(&self, sequence: usize, position: usize) -> i32 {
        let quality = self.quality_at(position);
        let mut left = Random::keyed(self.seed, [sequence as u64, position as u64, 1]).unit();
        let rank = self.step(sequence, position, 0).iter().position(|&prob| {
            left -= prob * quality;
            left < 0.0
        });
        rank.map_or(OTHER, |rank| rank as i32)
    }

    fn tree(&self, shape: RecordShape, sequence: usize, position: usize) -> Result<RecordedTree> {
        let token = |position: usize, rank: i32| position as i32 * TOKENS_PER_POSITION + rank;
        let mut tree = Growing::default();
        tree.run_root();
        let mut newest = 0..1;
        for depth in 1..=shape.levels {
            let decay = GRIP.powi(depth as i32 - 1);
            let quality = self.quality_at(position + depth - 1);
            let first_child = tree.tokens.len();
            for row in newest.clone() {
                // Off the drawn text nothing is ever drawn, and steps are those of another text at the same place.
                let path = tree.rows[row].path;
                let probs = self.step(sequence, position + depth - 1, path.unwrap_or(0));
                let lost = Random::keyed(self.seed, [sequence as u64, position as u64, 2 + depth as u64])
                    .unit()
                    >= decay;
                let on_text = path.is_none() && !(lost && depth > 1);
                for (rank, prob) in probs.iter().enumerate().take(shape.top_k) {
                    let claimed = (prob * decay).powf(self.distortion);
                    tree.tokens.push(if on_text {
                        token(position + depth, rank as i32)
                    } else {
                        NEVER + rank as i32
                    });
                    tree.logps.push(claimed.ln() as f32);
                    tree.probs.push((prob * decay * quality) as f32);
                    let is_drawn = on_text && self.drawn(sequence, position + depth - 1) == rank as i32;
                    tree.paths.push(
                        (!is_drawn).then(|| mix(path.unwrap_or(position as u64) << 4 | rank as u64) | 1),
                    );
                }
            }
            if depth < shape.levels {
                newest = tree.run_best(first_child, shape);
            }
        }
        let before =
            |position: usize| position.checked_sub(1).map_or(0, |before| self.drawn(sequence, before));
        RecordedTree::new(
            token(position, before(position)),
            token(position + 1, self.drawn(sequence, position)),
            shape.top_k,
            tree.rows[1..].iter().map(|row| row.child as u32).collect(),
            tree.tokens,
            tree.logps,
            tree.probs,
        )
    }

    /// Probabilities of the ten tokens after `position` on the text (`path` 0) or on a path off it, descending.
    fn step(&self, sequence: usize, position: usize, path: u64) -> [f64; WIDTH] {
        let ease = match self.ease {
            Ease::Uniform(ease) => ease,
            Ease::Mixed(even, odd) => [even, odd][sequence % 2],
            Ease::Stretches(length) => {
                Random::keyed(self.seed, [sequence as u64, (position / length.max(1)) as u64, 0]).unit()
            }
        };
        let mut random = Random::keyed(self.seed, [sequence as u64, position as u64, path ^ 1 << 63]);
        let is_easy = random.unit() < ease;
        let top = if is_easy { beta(&mut random, 9.0, 1.2) } else { beta(&mut random, 2.0, 3.0) };
        let mut probs = [top; WIDTH];
        let mut rest = (1.0 - top) * 0.45;
        for prob in &mut probs[1..] {
            *prob = rest;
            rest *= 0.55;
        }
        probs.sort_by(|a, b| b.total_cmp(a));
        probs.map(|prob| prob * self.coverage)
    }

    fn quality_at(&self, position: usize) -> f64 {
        match self.quality {
            Quality::Constant(quality) => quality,
            Quality::Drops(from, to, quality) if (from..to).contains(&position) => quality,
            Quality::Drops(..) => 1.0,
        }
    }
}

/// A tree being recorded.
#[derive(Default)]
struct Growing {
    rows: Vec<GrowingRow>,
    tokens: Vec<i32>,
    logps: Vec<f32>,
    probs: Vec<f32>,
    /// For each child the name of its path; `None` on the drawn text.
    paths: Vec<Option<u64>>,
}

struct GrowingRow {
    child: usize,
    path: Option<u64>,
    path_logp: f32,
}

impl Growing {
    fn run_root(&mut self) {
        self.rows.push(GrowingRow { child: 0, path: None, path_logp: 0.0 });
    }

    /// Runs the best children from `first_child` on, by cumulative log-probability, ties to the older.
    fn run_best(&mut self, first_child: usize, shape: RecordShape) -> std::ops::Range<usize> {
        let path_logp = |child: usize| self.rows[child / shape.top_k].path_logp + self.logps[child];
        let mut order: Vec<(f32, usize)> =
            (first_child..self.tokens.len()).map(|child| (path_logp(child), child)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        order.truncate(shape.beam);
        let first = self.rows.len();
        self.rows.extend(order.iter().map(|&(path_logp, child)| GrowingRow {
            child,
            path: self.paths[child],
            path_logp,
        }));
        first..self.rows.len()
    }
}

fn beta(random: &mut Random, a: f64, b: f64) -> f64 {
    let (x, y) = (gamma(random, a), gamma(random, b));
    x / (x + y)
}

/// Gamma by Marsaglia and Tsang (2000); shapes above 1 only.
fn gamma(random: &mut Random, shape: f64) -> f64 {
    let d = shape - 1.0 / 3.0;
    loop {
        let (radius, angle) = (random.unit().max(1e-300), random.unit());
        let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        let v = (1.0 + normal / (9.0 * d).sqrt()).powi(3);
        if v > 0.0 && random.unit().max(1e-300).ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: RecordShape = RecordShape { top_k: 10, levels: 4, beam: 4 };

    /// Of the children with one true probability so many are drawn: what the oracle and the calibration are measured against.
    #[test]
    fn listed_probabilities_are_true() {
        let process =
            Process { quality: Quality::Constant(0.8), ..Process::calibrated(3, Ease::Uniform(0.6)) };
        let record = process.record(SHAPE, 4, 1500).unwrap();
        let mut by_depth = [(0.0, 0.0, 0.0); 3];
        for sequence in record.sequences() {
            for window in sequence.trees.windows(3) {
                let tree = &window[0];
                let mut row = 0;
                for (sums, at) in by_depth.iter_mut().zip(window) {
                    let children = row * 10..(row + 1) * 10;
                    let probs = &tree.probs().unwrap()[children.clone()];
                    let hit = children.clone().find(|&child| tree.tokens()[child] == at.drawn);
                    let expected: f64 = probs.iter().map(|&prob| f64::from(prob)).sum();
                    *sums = (sums.0 + expected, sums.1 + f64::from(u8::from(hit.is_some())), sums.2 + 1.0);
                    match hit.and_then(|child| tree.row_of(child)) {
                        Some(next) => row = next,
                        None => break,
                    }
                }
            }
        }
        for (depth, (expected, hits, trials)) in by_depth.iter().enumerate() {
            let spread = (expected / trials * (1.0 - expected / trials) / trials).sqrt();
            assert!(*trials > 500.0, "depth {depth}: {trials} trials say little");
            assert!(
                (hits / trials - expected / trials).abs() < 4.0 * spread,
                "depth {depth}: {hits} of {trials}, {expected:.1} expected"
            );
        }
    }

    #[test]
    fn a_seed_is_a_record() {
        let process = Process::calibrated(5, Ease::Stretches(20));
        assert_eq!(process.record(SHAPE, 2, 30).unwrap(), process.record(SHAPE, 2, 30).unwrap());
        let other = Process { seed: 6, ..process };
        assert_ne!(process.record(SHAPE, 2, 30).unwrap(), other.record(SHAPE, 2, 30).unwrap());
        assert!(process.record(RecordShape { top_k: 11, ..SHAPE }, 2, 30).is_err());
    }
}
