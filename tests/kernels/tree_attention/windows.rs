//! Tree attention under a sliding window: the oracle, and the bit contract, which a window must leave as it is.

use smart_run::device::DType;
use smart_run::kernels::tree_attention::tree_attention;

use super::{
    Pass, Sequence, Story, check_against_oracle, check_replay, check_replay_in, check_schedules, heads, run,
    ways,
};
use crate::common::compare::same_bits;
use crate::common::device::device;
use crate::common::inputs::{MODEL_DTYPES, Rng};

/// Windows around the cuts of the key axis (blocks of 16, tiles of 32 and 64, splits of 256), shorter and longer than trees.
const WINDOWS: [usize; 10] = [1, 2, 15, 16, 24, 33, 64, 65, 257, 290];

#[test]
fn a_window_agrees_with_the_oracle() {
    let device = device();
    let mut rng = Rng::new(51);
    for dtype in MODEL_DTYPES {
        for (case, (heads, prefix_len, rows)) in [
            (heads(4, 1, 64), 0, 1),
            (heads(2, 2, 32), 63, 40), // wide: rows whose windows begin in different tiles
            (heads(7, 1, 32), 255, 5), // narrow: windows begin left and right of a cut
            (heads(8, 1, 128), 150, 3), // three rows straddle two row tiles
            (heads(3, 3, 96), 290, 4),
        ]
        .into_iter()
        .enumerate()
        {
            for window in [WINDOWS[2 * case], WINDOWS[2 * case + 1]] {
                let story = Story::new(dtype, heads, 340, rng.next()).with_window(window);
                let tree = Sequence::tree(&mut rng, prefix_len, rows, true, story.len());
                check_against_oracle(&device, &story, &[Sequence::chunk(prefix_len, rows), tree], "window");
            }
        }
    }
}

#[test]
fn a_tree_node_under_a_window_has_the_bits_of_plain_decoding() {
    let device = device();
    let mut rng = Rng::new(52);
    for (case, window) in WINDOWS.into_iter().enumerate() {
        for dtype in MODEL_DTYPES {
            let (num_q_heads, head_dim) = ([1, 4, 7, 8][case % 4], [32, 64, 96, 128][(case / 4 + case) % 4]);
            // The window of the first row begins a little before a cut, that of the deepest behind it.
            let prefix_len = (window + [63, 255, 31][case % 3]).min(300);
            let heads = heads(num_q_heads, 1, head_dim);
            let story = Story::new(dtype, heads, prefix_len + 40, rng.next()).with_window(window);
            let nodes = 20 + rng.below(20);
            let tree = Sequence::tree(&mut rng, prefix_len, nodes, case % 2 == 0, story.len());
            check_replay(&device, &story, &tree, &[0, nodes / 2, nodes - 1]);
        }
    }
}

/// A pass whose keys all lie within the window runs the kernels without one: the bits must be the same.
#[test]
fn a_window_that_hides_nothing_does_not_show() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (heads, prefix_len, rows) in [(heads(4, 1, 64), 270, 30), (heads(1, 1, 128), 100, 2)] {
            let mut story = Story::new(dtype, heads, 340, 53);
            let tree = [Sequence::tree(&mut Rng::new(54), prefix_len, rows, false, story.len())];
            for way in ways(&device, dtype) {
                way.enter();
                story.window = None;
                let want = run(&way.device, &story, &tree, 1).concat().concat();
                story.window = Some(prefix_len + rows);
                let got = run(&way.device, &story, &tree, 1).concat().concat();
                same_bits(&format!("{dtype:?} {way:?}"), &got, &want);
            }
        }
    }
}

/// What lies before every window may be anything: it is not read, in whole tiles and units.
#[test]
fn keys_before_every_window_are_skipped() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (num_q_heads, window) in [(2, 70), (24, 70), (2, 600)] {
            let mut story = Story::new(dtype, heads(num_q_heads, 1, 32), 2900, 55).with_window(window);
            let first_tile = (2890 + 1 - window) / 64 * 64;
            story.k[..first_tile * 32].fill(f32::NAN);
            story.v[..first_tile * 32].fill(f32::NAN);
            let chunk = [Sequence::chunk(2890, 4)];
            let pass = Pass::new(&device, &story, &chunk, &mut Rng::new(5));
            for way in ways(&device, dtype) {
                way.enter();
                let want = pass.run_in_units(&way.device, &story, 1);
                assert!(want.concat().iter().all(|x| x.is_finite()), "{dtype:?} {way:?}");
                for splits_each in [8, 12] {
                    let got = pass.run_in_units(&way.device, &story, splits_each).concat();
                    same_bits(&format!("{splits_each} splits each {dtype:?} {way:?}"), &got, &want.concat());
                }
                let alone = run(&way.device, &story, &[Sequence::chunk(2893, 1)], 6).concat().concat();
                same_bits(&format!("a row alone {dtype:?} {way:?}"), &alone, &want[3]);
            }
        }
    }
}

/// Deep trees and chunks whose rows' windows lie behind the prefix, in one staging of the tail or several.
#[test]
fn windows_within_the_tree() {
    let device = device();
    for (heads, dtype) in
        [(heads(1, 1, 128), DType::Bf16), (heads(8, 1, 128), DType::F16), (heads(2, 1, 32), DType::F32)]
    {
        let story = Story::new(dtype, heads, 300, 56).with_window(24);
        let deep = Sequence::tree(&mut Rng::new(57), 40, 200, false, story.len());
        let chunk = Sequence::chunk(0, 150);
        for way in ways(&device, dtype) {
            check_replay_in(&way, &story, &deep, &[0, 63, 64, 130, 177, 199]);
            check_replay_in(&way, &story, &chunk, &[0, 23, 24, 64, 90, 149]);
        }
        check_against_oracle(&device, &story, &[deep, chunk], "deep");
    }
}

#[test]
fn schedules_do_not_matter_under_a_window() {
    let device = device();
    for dtype in [DType::Bf16, DType::F32] {
        for (heads, rows) in [(heads(2, 1, 32), 3), (heads(8, 1, 32), 5)] {
            let story = Story::new(dtype, heads, 200, 58).with_window(33);
            let tree = [Sequence::tree(&mut Rng::new(59), 158, rows, true, story.len())];
            check_schedules(&device, &story, &tree);
        }
    }
}

#[test]
fn a_window_of_no_keys_is_refused() {
    let device = device();
    let story = Story::new(DType::F32, heads(1, 1, 32), 4, 60).with_window(0);
    let pass = Pass::new(&device, &story, &[Sequence::chunk(3, 1)], &mut Rng::new(1));
    let error = tree_attention(&device, pass.args(&story)).unwrap_err().to_string();
    assert!(error.contains("window") && error.contains("1 to 2^31 - 1"), "{error}");
}
