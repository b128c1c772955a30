//! Penalties, masks, sampling and the verification walk.

use smart_run::Result;
use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::penalties::{PenaliseArgs, PenaltyParams, penalise};
use smart_run::kernels::sampler::{SampleArgs, SamplerParams, sample, sample_workspace};
use smart_run::kernels::token_mask::{TokenMaskArgs, mask_words, token_mask};
use smart_run::kernels::verify::{VerifyWalkArgs, verify_walk};
use smart_run::reference;
use smart_run::sampling::{Penalties, SamplingParams};

use super::measure::{Case, Entry};
use super::setting::Setting;

/// Parent of each node of a tree whose nodes have two children: depth grows as the logarithm.
fn parents(nodes: usize) -> Vec<i32> {
    (0..nodes as i32).map(|node| if node == 0 { -1 } else { (node - 1) / 2 }).collect()
}

/// Everything between logits and accepted tokens, at the rows of trees of 1 to 60 nodes; draws under top-k and top-p also without clusters.
pub fn tokens(setting: &Setting) -> Vec<Entry> {
    let model = setting.model;
    let mut entries = Vec::new();
    let laws = [
        ("greedy", SamplingParams::default()),
        ("temperature 0.7", SamplingParams { temperature: 0.7, ..Default::default() }),
        ("temperature 1", SamplingParams { temperature: 1.0, ..Default::default() }),
        ("top-p 0.9", SamplingParams { temperature: 0.7, top_p: 0.9, ..Default::default() }),
        ("top-k 50", SamplingParams { temperature: 0.7, top_k: 50, ..Default::default() }),
    ];
    let usual = &setting.device;
    let apart = usual.with_clusters(false);
    for (vocabulary, &vocab) in model.vocabularies.iter().enumerate() {
        let rank = if vocabulary == 0 { 0 } else { 2 };
        for &rows in model.tree_rows {
            for (law, sampling) in laws {
                let is_filtered = sampling.top_p < 1.0 || sampling.top_k > 0;
                let without_clusters = is_filtered && vocabulary == 0 && [1, 16, 64].contains(&rows);
                let mut ways = vec![("", usual)];
                ways.extend(without_clusters.then_some((" no clusters", &apart)));
                for (way, device) in ways {
                    let name = format!("sample {law} T={rows} V={vocab}{way}");
                    let shape = serde_json::json!({
                        "family": "verify", "kernel": "sample", "rows": rows, "vocab": vocab,
                        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
                        "instructions": way,
                    });
                    let device = device.clone();
                    let build =
                        move |setting: &Setting| sample_case(setting, device.clone(), rows, vocab, &sampling);
                    entries.push(Entry::new(rank, name, shape, build));
                }
            }
        }
    }
    for &rows in model.tree_rows {
        for (kernel, build) in
            [("penalise", penalise_case as fn(&Setting, usize) -> Result<Case>), ("token_mask", mask_case)]
        {
            let name = format!("{kernel} T={rows} V={}", model.vocab);
            let shape = serde_json::json!({ "family": "verify", "kernel": kernel, "rows": rows });
            entries.push(Entry::new(1, name, shape, move |setting| build(setting, rows)));
        }
    }
    for (sequences, nodes) in [(1, 4), (1, 60), (16, 60), (64, 8), (1, 256)] {
        let name = format!("verify_walk B={sequences} nodes={nodes}");
        let shape = serde_json::json!({ "family": "verify", "kernel": "walk", "sequences": sequences, "nodes": nodes });
        entries.push(Entry::new(0, name, shape, move |setting| walk_case(setting, sequences, nodes)));
    }
    entries
}

fn sample_case(
    setting: &Setting,
    device: Device,
    rows: usize,
    vocab: usize,
    sampling: &SamplingParams,
) -> Result<Case> {
    let sampling = *sampling;
    let (logits, values) = setting.random_f32(&[rows, vocab])?;
    let params = SamplerParams::upload(&setting.device, &[SamplerParams::from(&sampling)])?;
    let (row_sequence, positions) = (setting.ints(&vec![0; rows])?, setting.ints(&vec![100; rows])?);
    let out = setting.uninit(DType::I32, &[rows])?;
    let read = out.clone();
    let last = values[(rows - 1) * vocab..].to_vec();
    let workspace = sample_workspace(&setting.device, rows, vocab)?;
    Ok(Case {
        bytes: (4 * rows * vocab) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let args = SampleArgs {
                logits: &logits,
                row_sequence: &row_sequence,
                params: &params,
                positions: &positions,
                out: &out,
                workspace: &workspace,
            };
            sample(&device, args)
        }),
        check: Box::new(move || {
            let want = reference::sampler::sample(&last, &sampling, 100);
            assert_eq!(read.to_vec::<i32>()?[rows - 1], want);
            Ok(())
        }),
    })
}

/// A chain of nodes behind a text with 500 different tokens. In place, so with penalties that change nothing, but for a ban.
fn penalise_case(setting: &Setting, rows: usize) -> Result<Case> {
    const COUNTED: usize = 500;
    let vocab = setting.model.vocab;
    let (logits, mut want) = setting.random_f32(&[rows, vocab])?;
    want.drain(..(rows - 1) * vocab);
    want[7] = f32::NEG_INFINITY;
    let params = PenaltyParams::upload(&setting.device, &[PenaltyParams::new(&Penalties::default(), 1)])?;
    let counts = (0..vocab).map(|token| if token % (vocab / COUNTED) == 0 { 5 } else { 0 });
    let counts = setting.ints(&counts.collect::<Vec<_>>())?.reshape(&[1, vocab]);
    let bias_tokens = setting.ints(&[7])?.reshape(&[1, 1]);
    let bias_values = Tensor::from_slice(&setting.device, &[f32::NEG_INFINITY], &[1, 1])?;
    let (row_sequence, seq_start) = (setting.ints(&vec![0; rows])?, setting.ints(&[0, rows as i32])?);
    let tokens = setting.ints(&(0..rows as i32).collect::<Vec<_>>())?;
    let parents = setting.ints(&(-1..rows as i32 - 1).collect::<Vec<_>>())?;
    let (device, read) = (setting.device.clone(), logits.clone());
    Ok(Case {
        bytes: (4 * rows * vocab) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            penalise(
                &device,
                PenaliseArgs {
                    logits: &logits,
                    row_sequence: &row_sequence,
                    params: &params,
                    counts: &counts,
                    bias_tokens: &bias_tokens,
                    bias_values: &bias_values,
                    seq_start: &seq_start,
                    tokens: &tokens,
                    parents: &parents,
                },
            )
        }),
        check: Box::new(move || {
            assert_eq!(read.rows(rows - 1..rows).to_vec::<f32>()?, want);
            Ok(())
        }),
    })
}

/// As a JSON string allows: nearly all tokens.
fn mask_case(setting: &Setting, rows: usize) -> Result<Case> {
    let (vocab, words) = (setting.model.vocab, mask_words(setting.model.vocab));
    let (logits, values) = setting.random_f32(&[rows, vocab])?;
    let mask: Vec<u32> =
        (0..words as u32).map(|word| if word % 8 == 0 { !(1 << (word % 32)) } else { u32::MAX }).collect();
    let want = reference::token_mask::token_mask(&values[(rows - 1) * vocab..], &mask, None);
    let bits: Vec<i32> = mask.iter().map(|&word| word as i32).collect();
    let masks = setting.ints(&bits.repeat(rows))?.reshape(&[rows, words]);
    let mask_row = setting.ints(&(0..rows as i32).collect::<Vec<_>>())?;
    let (device, read) = (setting.device.clone(), logits.clone());
    Ok(Case {
        bytes: (4 * rows * words) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            token_mask(
                &device,
                TokenMaskArgs { logits: &logits, masks: &masks, mask_row: &mask_row, d2t: None },
            )
        }),
        check: Box::new(move || {
            assert_eq!(read.rows(rows - 1..rows).to_vec::<f32>()?, want);
            Ok(())
        }),
    })
}

/// Every draw is the second child's token, so the walk goes down to a leaf.
fn walk_case(setting: &Setting, sequences: usize, nodes: usize) -> Result<Case> {
    let (tokens, parents): (Vec<i32>, Vec<i32>) = ((0..nodes as i32).collect(), parents(nodes));
    let drawn: Vec<i32> = (0..nodes as i32).map(|node| 2 * node + 2).collect();
    let want = reference::verify::walk(&tokens, &parents, &drawn);
    let repeated = |values: &[i32]| setting.ints(&values.repeat(sequences));
    let (tokens, parents, drawn) = (repeated(&tokens)?, repeated(&parents)?, repeated(&drawn)?);
    let seq_start = setting.ints(&(0..=sequences).map(|b| (b * nodes) as i32).collect::<Vec<_>>())?;
    let accepted = setting.uninit(DType::I32, &[sequences, 256])?;
    let (accepted_len, bonus) =
        (setting.uninit(DType::I32, &[sequences])?, setting.uninit(DType::I32, &[sequences])?);
    let (device, read, read_bonus) = (setting.device.clone(), accepted.clone(), bonus.clone());
    Ok(Case {
        bytes: (12 * sequences * nodes) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let args = VerifyWalkArgs {
                seq_start: &seq_start,
                tokens: &tokens,
                parents: &parents,
                drawn: &drawn,
                accepted: &accepted,
                accepted_len: &accepted_len,
                bonus: &bonus,
            };
            verify_walk(&device, args)
        }),
        check: Box::new(move || {
            assert_eq!(read.to_vec::<i32>()?[..want.accepted.len()], want.accepted);
            assert_eq!(read_bonus.to_vec::<i32>()?, vec![want.bonus; sequences]);
            Ok(())
        }),
    })
}
