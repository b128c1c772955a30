use smart_run::device::{Device, Tensor};
use smart_run::kernels::token_mask::{TokenMaskArgs, mask_words, token_mask};
use smart_run::reference::token_mask as oracle;

use crate::common::compare::same_bits;
use crate::common::device::device;
use crate::common::inputs::Rng;

const ROWS: usize = 5;

fn run(device: &Device, logits: &[f32], masks: &[u32], rows: &[i32], vocab_size: usize) -> Vec<f32> {
    let words = mask_words(vocab_size);
    let masks: Vec<i32> = masks.iter().map(|&word| word as i32).collect();
    let logits = Tensor::from_slice(device, logits, &[ROWS, vocab_size]).unwrap();
    let args = TokenMaskArgs {
        logits: &logits,
        masks: &Tensor::from_slice(device, &masks, &[rows.len(), words]).unwrap(),
        mask_row: &Tensor::from_slice(device, rows, &[rows.len()]).unwrap(),
    };
    token_mask(device, args).unwrap();
    logits.to_vec::<f32>().unwrap()
}

/// Logits, random masks with some words full and some empty, and the rows of the masks.
fn case(vocab_size: usize) -> (Vec<f32>, Vec<u32>, [i32; 3]) {
    let mut random = Rng::new(vocab_size as u64);
    let logits = random.with_outliers(ROWS * vocab_size);
    let word = |_| match random.below(4) {
        0 => 0,
        1 => u32::MAX,
        _ => (random.below(1 << 16) << 16 | random.below(1 << 16)) as u32,
    };
    (logits, (0..3 * mask_words(vocab_size)).map(word).collect(), [4, 0, 2])
}

#[test]
fn masked_rows_agree_with_the_oracle_and_others_are_left_alone() {
    let device = device();
    for vocab_size in [1, 31, 32, 33, 130, 4096, 5001] {
        let (logits, masks, rows) = case(vocab_size);
        let mut want = logits.clone();
        for (&row, mask) in rows.iter().zip(masks.chunks(mask_words(vocab_size))) {
            let own = row as usize * vocab_size..(row as usize + 1) * vocab_size;
            let masked = oracle::token_mask(&logits[own.clone()], mask);
            want[own].copy_from_slice(&masked);
        }
        for mode in device.modes().into_iter().chain(device.schedules()) {
            device.enter(mode);
            let got = run(&device, &logits, &masks, &rows, vocab_size);
            same_bits(&format!("V={vocab_size} {mode:?}"), &got, &want);
        }
    }
}

#[test]
fn masks_of_another_vocabulary_are_refused() {
    let device = device();
    let zeros = |count: usize| Tensor::from_slice(&device, &vec![0; count], &[1, count]).unwrap();
    let logits = Tensor::from_slice(&device, &[0.0f32; 40], &[1, 40]).unwrap();
    let row = Tensor::from_slice(&device, &[0], &[1]).unwrap();
    let error =
        token_mask(&device, TokenMaskArgs { logits: &logits, masks: &zeros(1), mask_row: &row }).unwrap_err();
    assert!(error.to_string().contains("2 words for 40 tokens"), "{error}");
}
