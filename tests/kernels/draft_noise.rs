use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::digest::{digest_buffer, draft_digest};
use smart_run::kernels::draft_noise::{DraftNoiseArgs, draft_noise};
use smart_run::kernels::sampler::SamplerParams;
use smart_run::reference::draft as digest_oracle;
use smart_run::reference::draft_noise as oracle;
use smart_run::sampling::{DIGEST_LEN, SamplingParams};

use crate::common::device::device;
use crate::common::inputs::Rng;

/// Sequences that sample in every way, among them greedy ones.
fn sequences() -> Vec<SamplingParams> {
    let params =
        |temperature, top_p, top_k, min_p, seed| SamplingParams { temperature, top_p, top_k, min_p, seed };
    vec![
        params(1.0, 1.0, 0, 0.0, 7),
        params(0.0, 0.5, 3, 0.1, 7),
        params(0.6, 0.9, 0, 0.0, u64::MAX - 4),
        params(0.8, 1.0, 2, 0.0, 1 << 40),
        params(1.3, 0.7, 3, 0.0, 0),
        params(0.01, 1.0, 0, 0.2, 3),
        params(2.5, 0.95, 100_000, 1e-38, 12),
        params(1.0, 1e-6, 1, 1.0, 13),
    ]
}

/// Rows with ties, without a possible token in some slices or all, with infinities, flat ones and steep ones.
fn risky_rows(vocab_size: usize) -> Vec<Vec<f32>> {
    let mut random = Rng::new(vocab_size as u64 + 3);
    let mut normals =
        |scale: f32| -> Vec<f32> { random.normals(vocab_size).into_iter().map(|x| scale * x).collect() };
    let normal = normals(3.0);
    let mut some_nan = normal.clone();
    some_nan.iter_mut().step_by(3).for_each(|x| *x = f32::NAN);
    let mut first_slice_impossible = normal.clone();
    first_slice_impossible[..vocab_size.min(DIGEST_LEN)].fill(f32::NEG_INFINITY);
    let mut infinite = normal.clone();
    infinite.iter_mut().skip(1).step_by(40).for_each(|x| *x = f32::INFINITY);
    vec![
        normal.iter().map(|x| x.round()).collect(),
        normals(0.3),
        normals(9.0),
        normal,
        some_nan,
        first_slice_impossible,
        infinite,
        vec![f32::NAN; vocab_size],
        vec![f32::NEG_INFINITY; vocab_size],
        vec![1.5; vocab_size],
        (0..vocab_size).map(|i| i as f32 * -0.01).collect(),
        (0..vocab_size).map(|i| i as f32 * -100.0).collect(),
    ]
}

/// Ascending ids with gaps, as frequent tokens of a large vocabulary have them.
fn offsets(vocab_size: usize) -> Vec<i32> {
    (0..vocab_size as i32).map(|id| id / 3 + id / 50 * 7).collect()
}

/// Every row under some sequences, and as nobody's.
fn check(device: &Device, name: &str, vocab_size: usize, has_offsets: bool) {
    check_rows(device, name, &risky_rows(vocab_size), has_offsets);
}

fn check_rows(device: &Device, name: &str, rows: &[Vec<f32>], has_offsets: bool) {
    let (sequences, vocab_size) = (sequences(), rows[0].len());
    // Three sequences a row, others for other lengths; a lone row has them all.
    let num_sequences = sequences.len();
    let turns = if rows.len() > 1 { 3 } else { num_sequences };
    let of_row = |row| {
        (0..turns)
            .map(move |turn| (row, Some((row + vocab_size + 3 * turn) % num_sequences)))
            .chain([(row, None)])
    };
    let cases: Vec<(usize, Option<usize>)> = (0..rows.len()).flat_map(of_row).collect();
    let num_rows = cases.len();
    let d2t = offsets(vocab_size);
    let position = |case: usize| 1000 + 13 * case as i32;
    let d2t_device = Tensor::from_slice(device, &d2t, &[vocab_size]).unwrap();
    let draws: Vec<i32> = cases
        .iter()
        .enumerate()
        .flat_map(|(case, of)| [of.1.map_or(-1, |sequence| sequence as i32), position(case)])
        .collect();
    let draws = Tensor::from_slice(device, &draws, &[num_rows, 2]).unwrap();
    let params: Vec<SamplerParams> = sequences.iter().map(SamplerParams::from).collect();
    let params = SamplerParams::upload(device, &params).unwrap();
    let input: Vec<f32> = cases.iter().flat_map(|case| rows[case.0].clone()).collect();
    // A row more, which must stay as it is.
    let logits = Tensor::uninit(device, DType::F32, &[num_rows + 1, vocab_size]).unwrap();
    logits.fill_bytes(0xff).unwrap();
    let logits_of_rows = logits.rows(0..num_rows);
    logits_of_rows.write(&input).unwrap();
    let before = digest_buffer(device, num_rows, vocab_size).unwrap();
    draft_digest(device, &logits_of_rows, &before).unwrap();
    let after = digest_buffer(device, num_rows + 1, vocab_size).unwrap();
    after.fill_bytes(0xff).unwrap();
    let args = DraftNoiseArgs {
        logits: &logits_of_rows,
        digests: &before,
        out_digests: &after.rows(0..num_rows),
        d2t: has_offsets.then_some(&d2t_device),
        draws: &draws,
        params: &params,
    };
    draft_noise(device, args).unwrap();
    let (logits, digests) = (logits.to_vec::<f32>().unwrap(), after.to_vec::<u64>().unwrap());
    let digest_words = 2 * vocab_size.div_ceil(DIGEST_LEN);
    for (case, &(row, sequence)) in cases.iter().enumerate() {
        let name = format!("{name}, {vocab_size}, row {row}, {sequence:?}");
        let of_ids = has_offsets.then_some(&d2t[..]);
        let wanted = match sequence {
            Some(it) => oracle::noisy_row(&rows[row], of_ids, &sequences[it], position(case)),
            None => rows[row].clone(),
        };
        let got = &logits[case * vocab_size..][..vocab_size];
        let differs = (0..vocab_size).find(|&id| {
            wanted[id].to_bits() != got[id].to_bits() && !(wanted[id].is_nan() && got[id].is_nan())
        });
        assert_eq!(differs.map(|id| (id, wanted[id], got[id])), None, "{name}");
        let slices = wanted.chunks(DIGEST_LEN).enumerate();
        let wanted: Vec<u64> =
            slices.flat_map(|(i, slice)| digest_oracle::digest(slice, i * DIGEST_LEN)).collect();
        assert_eq!(wanted, digests[case * digest_words..][..digest_words], "{name}: digests");
    }
    assert!(
        logits[num_rows * vocab_size..].iter().all(|x| x.to_bits() == u32::MAX),
        "{name}: behind the rows"
    );
    assert!(digests[num_rows * digest_words..].iter().all(|&word| word == u64::MAX), "{name}: behind them");
}

#[test]
fn noisy_rows_agree_with_the_oracle() {
    let device = device();
    for vocab_size in [1, 3, 63, 64, 65, 130, 257, 1028] {
        for mode in device.modes() {
            device.enter(mode);
            check(&device, &format!("{mode:?}"), vocab_size, vocab_size % 2 == 0);
        }
    }
}

/// So many slices that a block has several turns, and that top-k and top-p end among them.
#[test]
fn long_rows_agree_with_the_oracle() {
    let device = device();
    let row: Vec<f32> = Rng::new(4).normals(33_000).into_iter().map(|x| 3.0 * x).collect();
    for mode in device.modes() {
        device.enter(mode);
        check_rows(&device, &format!("{mode:?}"), std::slice::from_ref(&row), true);
    }
}

#[test]
fn schedules_do_not_change_noise() {
    let device = device();
    for mode in device.schedules() {
        device.enter(mode);
        check(&device, &format!("{mode:?}"), 201, true);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let device = device();
    device.enter(device.modes()[0]);
    let logits = Tensor::zeros(&device, DType::F32, &[2, 70]).unwrap();
    let [digests, out_digests] = [(); 2].map(|()| digest_buffer(&device, 2, 70).unwrap());
    let ints = |shape: &[usize]| Tensor::zeros(&device, DType::I32, shape).unwrap();
    let (two, draws, more_draws) = (ints(&[2]), ints(&[2, 2]), ints(&[3, 2]));
    let params = SamplerParams::upload(&device, &[SamplerParams::from(&SamplingParams::default())]).unwrap();
    let fitting = || DraftNoiseArgs {
        logits: &logits,
        digests: &digests,
        out_digests: &out_digests,
        d2t: None,
        draws: &draws,
        params: &params,
    };
    assert!(draft_noise(&device, fitting()).is_ok());
    let refusal = |args| draft_noise(&device, args).unwrap_err().to_string();
    assert!(refusal(DraftNoiseArgs { out_digests: &digests, ..fitting() }).contains("other memory"));
    assert!(refusal(DraftNoiseArgs { draws: &more_draws, ..fitting() }).contains("draws"));
    assert!(refusal(DraftNoiseArgs { d2t: Some(&two), ..fitting() }).contains("d2t"));
}
