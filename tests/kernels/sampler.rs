mod parts;

use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::sampler::{SampleArgs, SamplerParams, sample, sample_workspace};
use smart_run::reference::sampler as oracle;
use smart_run::sampling::{SLICE_LEN, SamplingParams, gumbel};

use crate::common::device::device;
use crate::common::inputs::Rng;

fn normals(random: &mut Rng, len: usize, scale: f32) -> Vec<f32> {
    random.normals(len).into_iter().map(|value| value * scale).collect()
}

const HOT: SamplingParams = SamplingParams { temperature: 0.7, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 11 };

/// A batch: every row has its own parameters and position.
struct Batch {
    vocab_size: usize,
    logits: Vec<f32>,
    params: Vec<SamplingParams>,
    positions: Vec<i32>,
}

impl Batch {
    fn new(rows: &[Vec<f32>], params: &[SamplingParams]) -> Self {
        assert_eq!(rows.len(), params.len());
        let positions = (0..rows.len() as i32).map(|row| 100 + 7 * row).collect();
        Self { vocab_size: rows[0].len(), logits: rows.concat(), params: params.to_vec(), positions }
    }

    fn run(&self, device: &Device) -> Vec<i32> {
        let rows = self.params.len();
        // Parameters in reverse order, so that row_sequence is not the identity.
        let params: Vec<SamplerParams> = self.params.iter().rev().map(SamplerParams::from).collect();
        let row_sequence: Vec<i32> = (0..rows as i32).rev().collect();
        let out = Tensor::uninit(device, DType::I32, &[rows + 1]).unwrap();
        let logits = Tensor::from_slice(device, &self.logits, &[rows, self.vocab_size]).unwrap();
        let row_sequence = Tensor::from_slice(device, &row_sequence, &[rows]).unwrap();
        let params = SamplerParams::upload(device, &params).unwrap();
        let positions = Tensor::from_slice(device, &self.positions, &[rows]).unwrap();
        let workspace = sample_workspace(device, rows, self.vocab_size).unwrap();
        let launch = || {
            out.write(&vec![-7; rows + 1]).unwrap();
            let args = SampleArgs {
                logits: &logits,
                row_sequence: &row_sequence,
                params: &params,
                positions: &positions,
                out: &out.rows(0..rows),
                workspace: &workspace,
            };
            sample(device, args).unwrap();
            out.to_vec::<i32>().unwrap()
        };
        let mut tokens = launch();
        if self.vocab_size > SLICE_LEN {
            // The workspace is as it was, whoever came last.
            assert_eq!(tokens, launch(), "the second of two launches");
        }
        assert_eq!(tokens.pop(), Some(-7), "wrote behind the output");
        tokens
    }

    fn oracle(&self) -> Vec<i32> {
        let rows = self.logits.chunks(self.vocab_size).zip(&self.params).zip(&self.positions);
        rows.map(|((logits, params), &position)| oracle::sample(logits, params, position)).collect()
    }

    fn check(&self, device: &Device, name: &str) {
        assert_eq!(self.run(device), self.oracle(), "{name}");
    }
}

/// Rows of `vocab_size` named by what they could break.
fn risky_rows(vocab_size: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Rng::new(vocab_size as u64);
    let normal = normals(&mut random, vocab_size, 3.0);
    let last = vocab_size - 1;
    let changed = |places: &[(usize, f32)]| {
        let mut row = normal.clone();
        places.iter().for_each(|&(place, value)| row[place] = value);
        row
    };
    let mut only_last = vec![f32::NEG_INFINITY; vocab_size];
    only_last[last] = -3.0;
    let mut signed_zeros = vec![-1.0; vocab_size];
    (signed_zeros[last / 2], signed_zeros[last]) = (-0.0, 0.0);
    vec![
        ("normal", normal.clone()),
        ("all_equal", vec![0.25; vocab_size]),
        ("all_impossible_but_the_last", only_last),
        ("all_impossible", vec![f32::NEG_INFINITY; vocab_size]),
        ("all_nan", vec![f32::NAN; vocab_size]),
        ("nan_first", changed(&[(0, f32::NAN)])),
        ("greatest_is_last", changed(&[(last, 60.0)])),
        ("two_greatest", changed(&[(last / 3, 60.0), (last, 60.0)])),
        ("infinite_logit", changed(&[(last / 2, f32::INFINITY)])),
        ("signed_zeros_tie", signed_zeros),
        ("huge_logits", normal.iter().map(|x| x * 1e30).collect()),
        ("ascending", (0..vocab_size).map(|i| i as f32 * 0.01).collect()),
    ]
}

fn risky_params() -> Vec<(&'static str, SamplingParams)> {
    vec![
        ("greedy", SamplingParams::default()),
        (
            "greedy_ignores_filters",
            SamplingParams { top_p: 0.1, top_k: 2, min_p: 0.5, ..SamplingParams::default() },
        ),
        ("plain", HOT),
        ("large_seed", SamplingParams { seed: u64::MAX - 5, ..HOT }),
        ("tiny_temperature", SamplingParams { temperature: 1e-30, ..HOT }),
        ("huge_temperature", SamplingParams { temperature: 1e30, ..HOT }),
        ("top_k_1", SamplingParams { top_k: 1, ..HOT }),
        ("top_k_7", SamplingParams { top_k: 7, ..HOT }),
        ("top_k_beyond_the_vocabulary", SamplingParams { top_k: 1 << 30, ..HOT }),
        ("top_p_tiny", SamplingParams { top_p: 1e-30, ..HOT }),
        ("top_p_half", SamplingParams { top_p: 0.5, ..HOT }),
        ("top_p_just_below_1", SamplingParams { top_p: 0.999_999_94, ..HOT }),
        ("min_p_1", SamplingParams { min_p: 1.0, ..HOT }),
        ("min_p_small", SamplingParams { min_p: 0.02, ..HOT }),
        ("all_filters", SamplingParams { temperature: 1.3, top_p: 0.9, top_k: 20, min_p: 0.05, seed: 3 }),
    ]
}

#[test]
fn every_risky_row_under_every_risky_setting_agrees_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    // One token; less than a quad; not a multiple of four; a multiple of four but not of the block; several
    // quads a thread; two slices, the second of one token and nearly full.
    for vocab_size in [1, 3, 130, 1000, 1031, SLICE_LEN + 1, 2 * SLICE_LEN - 4] {
        for (name, row) in risky_rows(vocab_size) {
            // One batch a row, so that few rows have a block a slice.
            let settings: Vec<_> = risky_params().into_iter().map(|(_, setting)| setting).collect();
            let batch = Batch::new(&vec![row; settings.len()], &settings);
            let want = batch.oracle();
            for mode in held.modes() {
                held.enter(mode);
                for ((got, want), (setting, _)) in batch.run(device).iter().zip(&want).zip(risky_params()) {
                    assert_eq!(got, want, "{mode:?}, vocabulary {vocab_size}, {name}, {setting}");
                }
            }
        }
    }
}

/// Logits under which the tokens `chosen` all score nearly the same when `HOT` draws at `position`, so that rounding alone decides. The
/// last slice but one has a likelier token with little noise, to which the row's scores are relative; the others hardly count.
fn levelled(vocab_size: usize, position: i32, chosen: fn(usize) -> bool) -> Vec<f32> {
    let noise = |token: usize| gumbel(HOT.seed, position, token);
    let level = |score: f32, token| (score - noise(token)) * HOT.temperature;
    let mut row: Vec<f32> =
        (0..vocab_size).map(|token| if chosen(token) { level(3.0, token) } else { -30.0 }).collect();
    let quiet = (2 * SLICE_LEN..3 * SLICE_LEN).min_by(|&a, &b| noise(a).total_cmp(&noise(b))).unwrap();
    row[quiet] = level(2.9, quiet);
    row
}

/// The tokens of a slice compared relative to its own greatest logit may come in another order than in the row.
#[test]
fn slices_decide_near_ties_as_the_row_does() {
    let held = device();
    let device: &Device = &held;
    let vocab_size = 3 * SLICE_LEN + 5;
    let choices: [fn(usize) -> bool; 5] = [
        |_| true,
        // Of one thread, of one slice, of two slices, of every slice.
        |token| token == SLICE_LEN + 1 || token == SLICE_LEN + 2,
        |token| token / SLICE_LEN == 1 && token % 300 == 7,
        |token| token == SLICE_LEN - 1 || token == SLICE_LEN,
        |token| token % 64 == 7,
    ];
    let rows: Vec<Vec<f32>> =
        (0..60).map(|i| levelled(vocab_size, 100 + 7 * i as i32, choices[i % 5])).collect();
    let min_p = SamplingParams { min_p: 1e-4, ..HOT };
    let params: Vec<_> = (0..60).map(|i| if i < 30 { HOT } else { min_p }).collect();
    let batch = Batch::new(&rows, &params);
    for mode in held.modes() {
        held.enter(mode);
        batch.check(device, &format!("{mode:?}"));
    }
    // Slices behind the 32nd.
    let far = (0..16)
        .map(|i| levelled(34 * SLICE_LEN, 100 + 7 * i, |token| token / SLICE_LEN == 33 && token % 99 == 5));
    let far = Batch::new(&far.collect::<Vec<_>>(), &[HOT; 16]);
    for mode in held.modes() {
        held.enter(mode);
        far.check(device, &format!("{mode:?}, many slices"));
    }
    let few = Batch::new(&rows[..5], &params[..5]);
    for mode in held.schedules() {
        held.enter(mode);
        few.check(device, &format!("{mode:?}"));
    }
}

/// min-p goes by the row's greatest logit: what wins a slice may not count in the row, while others of the slice do.
#[test]
fn slices_keep_what_min_p_keeps_of_the_row() {
    let held = device();
    let device: &Device = &held;
    let vocab_size = 3 * SLICE_LEN;
    let mut random = Rng::new(71);
    let mut rows = Vec::new();
    let mut params = Vec::new();
    for seed in 0..24 {
        let mut row = normals(&mut random, vocab_size, 1.0);
        // Greatest logits of the slices a little apart.
        row[2 * SLICE_LEN..].iter_mut().for_each(|logit| *logit += 0.3);
        row[SLICE_LEN..2 * SLICE_LEN].iter_mut().for_each(|logit| *logit -= 0.3);
        rows.push(row);
        params.push(SamplingParams { min_p: [0.02, 0.1, 0.3, 0.7][seed as usize % 4], seed, ..HOT });
    }
    let batch = Batch::new(&rows, &params);
    for mode in held.modes() {
        held.enter(mode);
        batch.check(device, &format!("{mode:?}"));
    }
}

/// With a block a slice and with a block a row, with and without filters side by side.
#[test]
fn few_rows_and_many_draw_the_same_tokens() {
    let held = device();
    let device: &Device = &held;
    let mut random = Rng::new(44);
    let rows: Vec<Vec<f32>> = (0..66).map(|_| normals(&mut random, SLICE_LEN + 100, 3.0)).collect();
    let settings = [
        SamplingParams::default(),
        HOT,
        SamplingParams { top_k: 5, ..HOT },
        SamplingParams { top_p: 0.8, min_p: 0.1, ..HOT },
        SamplingParams { min_p: 0.1, ..HOT },
    ];
    let params: Vec<_> = (0..66).map(|i| SamplingParams { seed: i, ..settings[i as usize % 5] }).collect();
    let many = Batch::new(&rows, &params);
    let few = Batch::new(&rows[..10], &params[..10]);
    let want = many.oracle();
    for mode in held.modes() {
        held.enter(mode);
        assert_eq!(many.run(device), want, "{mode:?}, a block a row");
        assert_eq!(few.run(device), want[..10], "{mode:?}, a block a slice");
    }
}

#[test]
fn sampling_wants_a_workspace_for_its_slices() {
    let held = device();
    let device: &Device = &held;
    let ints = Tensor::zeros(device, DType::I32, &[2]).unwrap();
    let args = SampleArgs {
        logits: &Tensor::zeros(device, DType::F32, &[2, SLICE_LEN + 1]).unwrap(),
        row_sequence: &ints,
        params: &SamplerParams::upload(device, &[SamplerParams::from(&HOT)]).unwrap(),
        positions: &ints,
        out: &ints,
        workspace: &sample_workspace(device, 1, SLICE_LEN + 1).unwrap(),
    };
    let message = sample(device, args).unwrap_err().to_string();
    assert!(message.contains("sample: workspace"), "{message}");
}

#[test]
fn schedules_change_nothing() {
    let held = device();
    let device: &Device = &held;
    let mut random = Rng::new(5);
    let rows: Vec<Vec<f32>> = (0..4).map(|_| normals(&mut random, 517, 4.0)).collect();
    let filtered = SamplingParams { top_p: 0.9, top_k: 40, min_p: 0.01, ..HOT };
    let batch = Batch::new(
        &rows,
        &[SamplingParams::default(), HOT, filtered, SamplingParams { top_k: 0, ..filtered }],
    );
    for mode in held.modes().into_iter().chain(held.schedules()) {
        held.enter(mode);
        batch.check(device, &format!("{mode:?}"));
    }
}

#[test]
fn large_vocabularies_agree_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    for vocab_size in [128_256, 152_064] {
        let mut random = Rng::new(vocab_size as u64);
        let rows = vec![normals(&mut random, vocab_size, 2.5); 2];
        let settings = [HOT, SamplingParams { temperature: 1.0, top_p: 0.95, top_k: 50, ..HOT }];
        let batch = Batch::new(&rows, &settings);
        for mode in held.modes() {
            held.enter(mode);
            batch.check(device, &format!("{mode:?}"));
        }
    }
}

/// The twin leaves most noise uncomputed; the oracle computes all of it. Flat rows leave the most winners to
/// consider.
#[test]
fn pruned_draws_equal_exhaustive_ones() {
    let held = device();
    let device: &Device = &held;
    let mut random = Rng::new(9);
    for scale in [0.0, 0.1, 1.0, 5.0, 20.0] {
        let rows: Vec<Vec<f32>> = (0..64).map(|_| normals(&mut random, 4096, scale)).collect();
        let settings = [
            HOT,
            SamplingParams { top_k: 30, ..HOT },
            SamplingParams { top_p: 0.9, ..HOT },
            SamplingParams { min_p: 0.1, ..HOT },
        ];
        let params: Vec<_> =
            (0..64).map(|seed| SamplingParams { seed, ..settings[seed as usize % 4] }).collect();
        Batch::new(&rows, &params).check(device, &format!("scale {scale}"));
    }
}

/// Weights one unit in the last place apart: a bound that is off by one keeps one token too many or too few,
/// and enough draws meet it.
#[test]
fn top_k_is_exact_among_neighbouring_weights() {
    let held = device();
    let device: &Device = &held;
    let logits: Vec<f32> = (0..100).map(|i| i as f32 * -(0.5f32.powi(24))).collect();
    for top_k in [1, 2, 31, 32, 33, 64] {
        let setting = SamplingParams { temperature: 1.0, top_k, ..HOT };
        let batch = Batch::new(&vec![logits.clone(); 600], &[setting; 600]);
        let want = batch.oracle();
        assert_eq!(want.iter().max(), Some(&(top_k as i32 - 1)), "the draws never met the last token kept");
        for mode in held.modes() {
            held.enter(mode);
            assert_eq!(batch.run(device), want, "{mode:?}, top-k {top_k}");
        }
    }
}

#[test]
fn a_row_draws_the_same_token_in_any_company() {
    let held = device();
    let device: &Device = &held;
    let mut random = Rng::new(21);
    let rows: Vec<Vec<f32>> = (0..8).map(|_| normals(&mut random, 400, 2.0)).collect();
    let params: Vec<_> = (0..8).map(|seed| SamplingParams { seed, top_p: 0.8, ..HOT }).collect();
    for mode in held.modes() {
        held.enter(mode);
        let batch = Batch::new(&rows, &params);
        let together = batch.run(device);
        for row in 0..rows.len() {
            let mut alone = Batch::new(&rows[row..=row], &params[row..=row]);
            alone.positions = vec![batch.positions[row]];
            assert_eq!(alone.run(device), together[row..=row], "{mode:?}, row {row}");
        }
    }
}

/// The sampler alone against its law: many seeds and positions, one chi-square for each setting. The
/// exact-law side is f64; tokens expected less than five times are counted together.
#[test]
fn draws_follow_the_processed_distribution() {
    let held = device();
    let device: &Device = &held;
    let vocab_size = 40;
    let logits = normals(&mut Rng::new(77), vocab_size, 1.5);
    let (num_seeds, num_positions) = (250, 16);
    for (name, setting) in [
        ("temperature", SamplingParams { temperature: 1.0, ..HOT }),
        ("cool", SamplingParams { temperature: 0.4, ..HOT }),
        ("top_k", SamplingParams { temperature: 1.2, top_k: 9, ..HOT }),
        ("top_p", SamplingParams { temperature: 1.2, top_p: 0.8, ..HOT }),
        ("min_p", SamplingParams { temperature: 1.2, min_p: 0.15, ..HOT }),
        ("all", SamplingParams { temperature: 1.5, top_k: 25, top_p: 0.9, min_p: 0.1, ..HOT }),
    ] {
        let law = oracle::law(&logits, &setting);
        let mut counts = vec![0usize; vocab_size];
        for seed in 0..num_seeds {
            let params = vec![SamplingParams { seed, ..setting }; num_positions];
            let mut batch = Batch::new(&vec![logits.clone(); num_positions], &params);
            batch.positions = (0..num_positions as i32).collect();
            batch.run(device).iter().for_each(|&token| counts[token as usize] += 1);
        }
        let draws = (num_seeds as usize * num_positions) as f64;
        let (mut statistic, mut cells) = (0.0, 0usize);
        let (mut rare_expected, mut rare_seen) = (0.0, 0.0);
        for (token, &probability) in law.iter().enumerate() {
            let (expected, seen) = (probability * draws, counts[token] as f64);
            assert!(
                probability > 0.0 || counts[token] == 0,
                "{name}: token {token} was filtered out and drawn"
            );
            if expected < 5.0 {
                rare_expected += expected;
                rare_seen += seen;
            } else {
                statistic += (seen - expected).powi(2) / expected;
                cells += 1;
            }
        }
        if rare_expected >= 5.0 {
            statistic += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected;
            cells += 1;
        }
        // Wilson-Hilferty: (chi2 / d)^(1/3) is nearly normal. Noise is fixed, so a bound of 3.3 (p = 0.0005)
        // never flickers; a value far below would mean draws that are too even.
        let freedom = cells as f64 - 1.0;
        let spread = 2.0 / (9.0 * freedom);
        let deviation = ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt();
        assert!(
            deviation.abs() < 3.3,
            "{name}: chi-square {statistic:.1} of {freedom} is {deviation:.2} sigma off"
        );
    }
}

#[test]
fn shapes_are_checked() {
    let held = device();
    let device: &Device = &held;
    let ints = Tensor::zeros(device, DType::I32, &[2]).unwrap();
    let args = SampleArgs {
        logits: &Tensor::zeros(device, DType::F32, &[3, 8]).unwrap(),
        row_sequence: &ints,
        params: &SamplerParams::upload(device, &[SamplerParams::from(&HOT)]).unwrap(),
        positions: &ints,
        out: &ints,
        workspace: &sample_workspace(device, 3, 8).unwrap(),
    };
    let message = sample(device, args).unwrap_err().to_string();
    assert!(message.contains("sample: row_sequence") && message.contains("T=3"), "{message}");
}
