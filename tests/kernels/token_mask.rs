use smart_run::device::{Device, Tensor};
use smart_run::kernels::token_mask::{TokenMaskArgs, mask_words, token_mask};
use smart_run::reference::token_mask as oracle;

use crate::common::compare::same_bits;
use crate::common::device::device;
use crate::common::inputs::Rng;

const ROWS: usize = 5;

fn run(
    device: &Device,
    logits: &[f32],
    masks: &[u32],
    rows: &[i32],
    (vocab_size, d2t): (usize, Option<&[i32]>),
) -> Vec<f32> {
    let words = masks.len() / rows.len();
    let masks: Vec<i32> = masks.iter().map(|&word| word as i32).collect();
    let logits = Tensor::from_slice(device, logits, &[ROWS, vocab_size]).unwrap();
    let d2t = d2t.map(|d2t| Tensor::from_slice(device, d2t, &[vocab_size]).unwrap());
    let args = TokenMaskArgs {
        logits: &logits,
        masks: &Tensor::from_slice(device, &masks, &[rows.len(), words]).unwrap(),
        mask_row: &Tensor::from_slice(device, rows, &[rows.len()]).unwrap(),
        d2t: d2t.as_ref(),
    };
    token_mask(device, args).unwrap();
    logits.to_vec::<f32>().unwrap()
}

const MASKED: [i32; 3] = [4, 0, 2];

/// Random masks with some words full and some empty.
fn masks(random: &mut Rng, words: usize) -> Vec<u32> {
    let word = |_| match random.below(4) {
        0 => 0,
        1 => u32::MAX,
        _ => (random.below(1 << 16) << 16 | random.below(1 << 16)) as u32,
    };
    (0..MASKED.len() * words).map(word).collect()
}

/// The masks over the rows, on the host.
fn wanted(logits: &[f32], masks: &[u32], (vocab_size, d2t): (usize, Option<&[i32]>)) -> Vec<f32> {
    let mut want = logits.to_vec();
    for (&row, mask) in MASKED.iter().zip(masks.chunks(masks.len() / MASKED.len())) {
        let own = row as usize * vocab_size..(row as usize + 1) * vocab_size;
        want[own.clone()].copy_from_slice(&oracle::token_mask(&logits[own], mask, d2t));
    }
    want
}

#[test]
fn masked_rows_agree_with_the_oracle_and_others_are_left_alone() {
    let device = device();
    for vocab_size in [1, 31, 32, 33, 130, 4096, 5001] {
        let mut random = Rng::new(vocab_size as u64);
        let logits = random.with_outliers(ROWS * vocab_size);
        let masks = masks(&mut random, mask_words(vocab_size));
        let want = wanted(&logits, &masks, (vocab_size, None));
        for mode in device.modes().into_iter().chain(device.schedules()) {
            device.enter(mode);
            let got = run(&device, &logits, &masks, &MASKED, (vocab_size, None));
            same_bits(&format!("V={vocab_size} {mode:?}"), &got, &want);
        }
    }
}

#[test]
fn drafted_ids_are_looked_up_by_the_tokens_that_they_stand_for() {
    let device = device();
    for (draft_size, vocab_size) in [(1, 1), (33, 40), (130, 5001), (4097, 9000)] {
        let mut random = Rng::new(draft_size as u64);
        let logits = random.with_outliers(ROWS * draft_size);
        let masks = masks(&mut random, mask_words(vocab_size));
        // Ascending, the last id that of the last token.
        let token = |id: usize| (id + 1) * vocab_size / draft_size - 1;
        let d2t: Vec<i32> = (0..draft_size).map(|id| (token(id) - id) as i32).collect();
        let want = wanted(&logits, &masks, (draft_size, Some(&d2t)));
        for mode in device.modes().into_iter().chain(device.schedules()) {
            device.enter(mode);
            let got = run(&device, &logits, &masks, &MASKED, (draft_size, Some(&d2t)));
            same_bits(&format!("Vd={draft_size} V={vocab_size} {mode:?}"), &got, &want);
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
        token_mask(&device, TokenMaskArgs { logits: &logits, masks: &zeros(1), mask_row: &row, d2t: None })
            .unwrap_err();
    assert!(error.to_string().contains("2 words for 40 tokens"), "{error}");
}
