//! Rows under top-k and top-p whose parts are the blocks of a cluster: the tokens of a block a row, and of the oracle. Two parts from the second
//! slice on, four from the fourth, eight from the eighth; of 17 to 32 rows four at most, of 33 to 64 two, of more one. The race detector has no
//! room for eight parts of 1024 threads, but for those of the schedules here that are smaller.

use smart_run::device::Device;
use smart_run::sampling::{SLICE_LEN, SamplingParams};

use super::{Batch, HOT, normals};
use crate::common::device::{Mode, TestDevice, device};
use crate::common::inputs::Rng;

const EIGHT_PARTS: usize = 8 * SLICE_LEN;

/// The device as usual, then without clusters: a block a row.
fn ways(held: &TestDevice) -> [(&'static str, Device); 2] {
    [("in parts", held.with_clusters(true)), ("a block a row", held.with_clusters(false))]
}

fn check_in(held: &TestDevice, modes: &[Mode], batch: &Batch, name: &str) {
    let want = batch.oracle();
    for &mode in modes {
        held.enter(mode);
        // A twin knows no blocks, and schedules are for what parts do to each other.
        let num_ways = if matches!(mode, Mode::Twin | Mode::Shuffled(_)) { 1 } else { 2 };
        for (way, device) in ways(held).into_iter().take(num_ways) {
            assert_eq!(batch.run(&device), want, "{name}, {way}, {mode:?}");
        }
    }
}

fn part_len(vocab_size: usize, parts: usize) -> usize {
    4 * vocab_size.div_ceil(4).div_ceil(parts)
}

/// Place of the i-th likeliest token of [`neighbours`].
fn place(i: usize, vocab_size: usize, parts: usize) -> usize {
    i % parts * part_len(vocab_size, parts) + i / parts * 3
}

/// 64 tokens of weights a unit in the last place apart, of which neighbours are in different parts; the others hardly count.
fn neighbours(vocab_size: usize, parts: usize) -> Vec<f32> {
    let mut row = vec![-40.0; vocab_size];
    (0..64).for_each(|i| row[place(i, vocab_size, parts)] = i as f32 * -(0.5f32.powi(24)));
    row
}

/// Rows of `vocab_size` named by what they could break where `parts` parts share them.
fn rows_in_parts(vocab_size: usize, parts: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Rng::new(vocab_size as u64);
    let normal = normals(&mut random, vocab_size, 3.0);
    let part_len = part_len(vocab_size, parts);
    // `of(part, logit)` in the place of every logit.
    let by_part = |of: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
        normal.iter().enumerate().map(|(token, &logit)| of(token / part_len, logit)).collect()
    };
    // The same few values in all parts, so that those at any bound are many.
    let ties = normal.iter().map(|logit| (logit / 2.0).round()).collect();
    let mut edges = vec![-8.0; vocab_size];
    for part in 0..parts {
        edges[part * part_len] = 1.0;
        edges[(part * part_len + part_len).min(vocab_size) - 1] = 1.0;
    }
    vec![
        ("normal", normal.clone()),
        ("ties", ties),
        ("neighbouring weights", neighbours(vocab_size, parts)),
        ("first and last of a part", edges),
        ("all equal", vec![0.25; vocab_size]),
        ("one part is NaN, one impossible", {
            by_part(&|part, logit| [f32::NAN, logit, f32::NEG_INFINITY][part % 3])
        }),
        ("numbers in the last part alone", {
            by_part(&|part, logit| if part + 1 == parts { logit } else { f32::NEG_INFINITY })
        }),
        ("weights in the first part alone", by_part(&|part, logit| logit - 200.0 * part as f32)),
        ("parts less and less likely", by_part(&|part, logit| logit - 4.0 * part as f32)),
        ("all impossible", vec![f32::NAN; vocab_size]),
    ]
}

/// Filters for rows whose parts have some 4096 tokens, blocks of 256 and 1024 threads; and rows that have none, for company.
fn filters() -> Vec<SamplingParams> {
    let p = |top_p| SamplingParams { top_p, ..HOT };
    let k = |top_k| SamplingParams { top_k, ..HOT };
    vec![
        p(0.9),
        p(1e-30),
        p(0.999_999_94),
        HOT,
        k(40),
        SamplingParams::default(),
        k(1024),
        k(5000),
        SamplingParams { min_p: 0.05, ..HOT },
        SamplingParams { top_p: 0.9, ..k(50) },
        SamplingParams { top_p: 0.7, min_p: 0.2, ..k(2000) },
    ]
}

#[test]
fn parts_draw_what_a_block_draws() {
    let held = device();
    let filters = filters();
    // Edges of slices and parts: a token in the second slice; a block behind the slices; less than a quad over; eight parts.
    for (vocab_size, parts) in
        [(SLICE_LEN + 1, 2), (3 * SLICE_LEN, 2), (3 * SLICE_LEN + 5, 4), (EIGHT_PARTS - SLICE_LEN + 4, 8)]
    {
        for (name, row) in rows_in_parts(vocab_size, parts) {
            // 16 rows at most, so that there are as many parts.
            let batch = Batch::new(&vec![row; filters.len()], &filters);
            check_in(&held, &held.modes(), &batch, &format!("vocabulary {vocab_size}, {name}"));
        }
    }
}

/// Parts of fewer threads than others have quads, and ones that keep not all of their weights.
#[test]
fn parts_of_any_length_draw_what_a_block_draws() {
    let held = device();
    let mut random = Rng::new(77);
    let settings = [SamplingParams { top_p: 0.95, ..HOT }, SamplingParams { top_k: 50, top_p: 0.9, ..HOT }];
    for vocab_size in [32_000, 50_257, (1 << 18) - 1] {
        let rows = vec![normals(&mut random, vocab_size, 2.0); 2];
        check_in(&held, &held.modes(), &Batch::new(&rows, &settings), &format!("vocabulary {vocab_size}"));
    }
}

/// A bound that is off by one keeps one token too many or too few, and enough draws meet it, in whatever part it is.
#[test]
fn the_bound_is_exact_across_parts() {
    let held = device();
    for (vocab_size, num_rows, parts) in [(EIGHT_PARTS, 16, 8), (EIGHT_PARTS, 32, 4), (SLICE_LEN + 1, 64, 2)]
    {
        for top_k in [8, 9] {
            let setting = SamplingParams { temperature: 1.0, top_k, ..HOT };
            let rows = vec![neighbours(vocab_size, parts); num_rows];
            let last_kept = place(top_k as usize - 1, vocab_size, parts) as i32;
            let mut draws_of_last_kept = 0;
            for turn in 0..2 {
                let mut batch = Batch::new(&rows, &vec![setting; num_rows]);
                batch.positions.iter_mut().for_each(|position| *position += 1000 * turn);
                draws_of_last_kept += batch.oracle().iter().filter(|&&token| token == last_kept).count();
                check_in(
                    &held,
                    &held.modes(),
                    &batch,
                    &format!("{parts} parts of {vocab_size}, top-k {top_k}"),
                );
            }
            assert!(draws_of_last_kept > 0, "the draws never met the last token kept");
        }
    }
}

/// The number of rows decides how many parts each has.
#[test]
fn rows_draw_the_same_in_as_many_parts_as_there_are() {
    let held = device();
    let mut random = Rng::new(8);
    let filters = filters();
    let rows: Vec<_> = (0..66).map(|_| normals(&mut random, EIGHT_PARTS, 2.0)).collect();
    let params: Vec<_> =
        (0..66).map(|i| SamplingParams { seed: i as u64, ..filters[i % filters.len()] }).collect();
    for num_rows in [1, 16, 17, 33, 66] {
        // The last rows, so that their places differ.
        let batch = Batch::new(&rows[66 - num_rows..], &params[66 - num_rows..]);
        check_in(&held, &held.modes(), &batch, &format!("{num_rows} rows"));
    }
}

#[test]
fn schedules_change_nothing_in_parts() {
    let held = device();
    let mut random = Rng::new(15);
    for vocab_size in [SLICE_LEN + 4, 3 * SLICE_LEN + 5, EIGHT_PARTS - 5] {
        let rows: Vec<_> = (0..3).map(|_| normals(&mut random, vocab_size, 2.0)).collect();
        let params = [
            SamplingParams { top_p: 0.9, top_k: 40, min_p: 0.01, ..HOT },
            HOT,
            SamplingParams { top_p: 0.8, ..HOT },
        ];
        check_in(&held, &held.schedules(), &Batch::new(&rows, &params), &format!("vocabulary {vocab_size}"));
    }
}
