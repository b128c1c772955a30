//! Attention over trees, K/V compaction, sampling, verification and the drafter's own kernels.

use smart_run::Result;
use smart_run::device::{DType, Tensor};
use smart_run::kernels::draft::{
    DraftBeamArgs, DraftFrontierArgs, DraftTopkArgs, RunTables, draft_beam, draft_frontier, draft_topk,
};
use smart_run::kernels::kv_compact::{KvCompactArgs, kv_compact};
use smart_run::kernels::penalties::{PenaliseArgs, PenaltyParams, penalise};
use smart_run::kernels::sampler::{SampleArgs, SamplerParams, sample};
use smart_run::kernels::token_mask::{TokenMaskArgs, mask_words, token_mask};
use smart_run::kernels::tree_attention::{TreeAttentionArgs, tree_attention, workspace_len};
use smart_run::kernels::verify::{VerifyWalkArgs, verify_walk};
use smart_run::reference;
use smart_run::sampling::{Penalties, SamplingParams};

use super::cases::row;
use super::measure::{Case, near};
use super::setting::Setting;

const PAGE: usize = 16;
/// Children a node of the drafter.
const TOP_K: usize = 10;

/// Parent of each node of a tree whose nodes have two children: depth grows as the logarithm.
fn parents(nodes: usize) -> Vec<i32> {
    (0..nodes as i32).map(|node| if node == 0 { -1 } else { (node - 1) / 2 }).collect()
}

fn ancestor_words(nodes: usize) -> Vec<[u64; 4]> {
    let mut words: Vec<[u64; 4]> = Vec::new();
    for (node, &parent) in parents(nodes).iter().enumerate() {
        let mut own = usize::try_from(parent).map_or([0; 4], |parent| words[parent]);
        own[node / 64] |= 1 << (node % 64);
        words.push(own);
    }
    words
}

pub fn attention(setting: &Setting, filter: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &[sequences, context, nodes] in setting.model.attention {
        cases.push(attention_case(setting, sequences, context, nodes, None)?);
        // Mistral's share of context to window at 16k: 4 to 1.
        cases.push(attention_case(setting, sequences, context, nodes, Some(context / 4))?);
    }
    for sequences in [1, 16] {
        cases.push(compact_case(setting, sequences, 5)?);
    }
    cases.retain(|case| case.name.contains(filter));
    Ok(cases)
}

fn attention_case(
    setting: &Setting,
    sequences: usize,
    context: usize,
    nodes: usize,
    window: Option<usize>,
) -> Result<Case> {
    let m = setting.model;
    let (rows, q_width) = (sequences * nodes, m.q_heads * m.head_dim);
    let kv_len = context + nodes;
    let pages = kv_len.div_ceil(PAGE);
    let cache = [sequences * pages, m.kv_heads, PAGE, m.head_dim];
    // Each launch reads another layer's K and V, as far as the pool goes.
    let caches: Vec<Tensor> = (0..64).map(|i| setting.random(i, &cache)).collect();
    // A sequence's pages lie backwards, so that neighbours in the table are not neighbours in memory.
    let table: Vec<i32> =
        (0..sequences).flat_map(|b| (0..pages).rev().map(move |page| (b * pages + page) as i32)).collect();
    let words = ancestor_words(nodes);
    let ancestors: Vec<u64> = (0..sequences).flat_map(|_| words.iter().flatten().copied()).collect();
    let (device, ints) = (setting.device.clone(), |values: Vec<i32>| setting.ints(&values));
    let q = setting.random(0, &[rows, q_width]);
    let page_table = ints(table.clone())?.reshape(&[sequences, pages]);
    let seq_start = ints((0..=sequences).map(|b| (b * nodes) as i32).collect())?;
    let prefix_len = ints(vec![context as i32; sequences])?;
    let ancestors = Tensor::from_slice(&device, &ancestors, &[rows, 4])?;
    let out = setting.uninit(DType::Bf16, &[rows, q_width])?;
    let workspace = setting.uninit(DType::F32, &[workspace_len(rows, m.q_heads, m.head_dim, kv_len)])?;
    let sm_scale = (m.head_dim as f32).powf(-0.5);

    let heads = reference::tree_attention::Heads {
        num_q_heads: m.q_heads,
        num_kv_heads: m.kv_heads,
        head_dim: m.head_dim,
        page_size: PAGE,
    };
    let first_cache = setting.values(0, pages * m.kv_heads * PAGE * m.head_dim);
    let last_q = setting.values((nodes - 1) * q_width, q_width);
    let (read, last_words) = (out.clone(), words[nodes - 1]);
    let depth: u32 = words.iter().map(|words| words.iter().map(|word| word.count_ones()).sum::<u32>()).sum();
    // A row sees its path, or the last `window` keys of it.
    let hidden = window.map_or(0, |window| (context + 1).saturating_sub(window));
    let seen = sequences * (nodes * (context - hidden.min(context)) + depth as usize);
    let of_window = window.map_or(String::new(), |window| format!(" window={window}"));
    Ok(Case {
        name: format!("tree_attention B={sequences} context={context} nodes={nodes}{of_window}"),
        bytes: (4 * sequences * (kv_len - hidden) * m.kv_heads * m.head_dim + 4 * rows * q_width) as f64,
        flops: (4 * seen * q_width) as f64,
        launch: Box::new(move |i| {
            let args = TreeAttentionArgs {
                q: &q,
                k_cache: &caches[2 * i % 64],
                v_cache: &caches[(2 * i + 1) % 64],
                page_table: &page_table,
                seq_start: &seq_start,
                prefix_len: &prefix_len,
                ancestors: &ancestors,
                out: &out,
                workspace: &workspace,
                window,
                sm_scale,
                num_q_heads: m.q_heads,
                num_kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                max_kv_len: kv_len,
                max_rows: nodes,
            };
            tree_attention(&device, args)
        }),
        check: Box::new({
            let v_start = setting.start(1, cache.iter().product());
            let second_cache = setting.values(v_start, first_cache.len());
            move || {
                let sequence = reference::tree_attention::Sequence {
                    prefix_len: context,
                    pages: &table[..pages],
                    window,
                };
                let want = reference::tree_attention::row(
                    &last_q,
                    &first_cache,
                    &second_cache,
                    &sequence,
                    &last_words,
                    sm_scale,
                    heads,
                );
                near("tree_attention", &row(&read, nodes - 1)?, &want);
                Ok(())
            }
        }),
    })
}

/// A path of `accepted` nodes, every second node of the tree, moves together in all layers.
fn compact_case(setting: &Setting, sequences: usize, accepted: usize) -> Result<Case> {
    let m = setting.model;
    let shape = [m.layers, 2, sequences * 4, m.kv_heads, PAGE, m.head_dim];
    let kv = setting.uninit(DType::Bf16, &shape)?;
    kv.copy_from(&setting.random(0, &shape))?;
    let table: Vec<i32> = (0..(sequences * 4) as i32).collect();
    let page_table = setting.ints(&table)?.reshape(&[sequences, 4]);
    let nodes: Vec<i32> = (0..accepted as i32).map(|i| 2 * i + 2).collect();
    let prefix_len = setting.ints(&vec![13; sequences])?;
    let accepted_nodes = setting.ints(&nodes.repeat(sequences))?.reshape(&[sequences, accepted]);
    let accepted_len = setting.ints(&vec![accepted as i32; sequences])?;
    let plane = shape[2..].iter().product::<usize>();
    let (device, read, before) = (setting.device.clone(), kv.clone(), setting.values(0, plane));
    Ok(Case {
        name: format!("kv_compact B={sequences} accepted={accepted} layers={}", m.layers),
        bytes: (8 * sequences * accepted * m.layers * m.kv_heads * m.head_dim) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let args = KvCompactArgs {
                kv: &kv,
                page_table: &page_table,
                prefix_len: &prefix_len,
                accepted: &accepted_nodes,
                accepted_len: &accepted_len,
                max_accepted: accepted,
            };
            kv_compact(&device, args)
        }),
        check: Box::new(move || {
            let cache = reference::kv_compact::Cache {
                planes: 1,
                pages: sequences * 4,
                num_kv_heads: m.kv_heads,
                page_size: PAGE,
                head_dim: m.head_dim,
            };
            let mut want = before.clone();
            for pages in table.chunks(4) {
                reference::kv_compact::kv_compact(&mut want, cache, pages, 13, &nodes);
            }
            let first_plane = read.index(0).index(0).reshape(&[1, plane]);
            assert_eq!(row(&first_plane, 0)?, want);
            Ok(())
        }),
    })
}

/// Penalties, masks, sampling and the verification walk.
pub fn tokens(setting: &Setting, filter: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &rows in setting.model.widths.iter().filter(|&&rows| rows <= 64) {
        for (law, sampling) in [
            ("greedy", SamplingParams::default()),
            ("temperature 0.7", SamplingParams { temperature: 0.7, ..Default::default() }),
            ("top-p 0.9", SamplingParams { temperature: 0.7, top_p: 0.9, ..Default::default() }),
        ] {
            cases.push(sample_case(setting, rows, law, sampling)?);
        }
        cases.push(penalise_case(setting, rows)?);
        cases.push(mask_case(setting, rows)?);
    }
    for (sequences, nodes) in [(1, 60), (16, 60), (1, 256)] {
        cases.push(walk_case(setting, sequences, nodes)?);
    }
    cases.retain(|case| case.name.contains(filter));
    Ok(cases)
}

fn sample_case(setting: &Setting, rows: usize, law: &str, sampling: SamplingParams) -> Result<Case> {
    let vocab = setting.model.vocab;
    let (logits, values) = setting.random_f32(&[rows, vocab])?;
    let params = SamplerParams::upload(&setting.device, &[SamplerParams::from(&sampling)])?;
    let (row_sequence, positions) = (setting.ints(&vec![0; rows])?, setting.ints(&vec![100; rows])?);
    let out = setting.uninit(DType::I32, &[rows])?;
    let (device, read) = (setting.device.clone(), out.clone());
    let last = values[(rows - 1) * vocab..].to_vec();
    Ok(Case {
        name: format!("sample {law} T={rows} V={vocab}"),
        bytes: (4 * rows * vocab) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let (row_sequence, positions) = (&row_sequence, &positions);
            sample(
                &device,
                SampleArgs { logits: &logits, row_sequence, params: &params, positions, out: &out },
            )
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
        name: format!("penalise T={rows} V={vocab} of {COUNTED} tokens"),
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
        name: format!("token_mask T={rows} V={vocab}"),
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
        name: format!("verify_walk B={sequences} nodes={nodes}"),
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

/// Top-k of the drafter's logits, the next beam, and the packing of its pass.
pub fn drafter(setting: &Setting, filter: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for rows in [1, TOP_K, 16 * TOP_K] {
        cases.push(topk_case(setting, rows)?);
    }
    for sequences in [1, 16] {
        cases.push(beam_case(setting, sequences)?);
        cases.push(frontier_case(setting, sequences)?);
    }
    cases.retain(|case| case.name.contains(filter));
    Ok(cases)
}

fn topk_case(setting: &Setting, rows: usize) -> Result<Case> {
    let vocab = setting.model.draft_vocab;
    let (logits, values) = setting.random_f32(&[rows, vocab])?;
    let parent_logp = Tensor::from_slice(&setting.device, &vec![-0.5f32; rows], &[rows])?;
    let outputs = |dtype| setting.uninit(dtype, &[rows, TOP_K]);
    let (tokens, logp, path_logp) = (outputs(DType::I32)?, outputs(DType::F32)?, outputs(DType::F32)?);
    let (device, read, read_path) = (setting.device.clone(), tokens.clone(), path_logp.clone());
    let last = values[(rows - 1) * vocab..].to_vec();
    Ok(Case {
        name: format!("draft_topk R={rows} V={vocab} k={TOP_K}"),
        bytes: (4 * rows * vocab) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let (parent_logp, tokens, logp, path_logp) = (&parent_logp, &tokens, &logp, &path_logp);
            let args =
                DraftTopkArgs { logits: &logits, d2t: None, parent_logp, k: TOP_K, tokens, logp, path_logp };
            draft_topk(&device, args)
        }),
        check: Box::new(move || {
            let first = (rows - 1) * TOP_K;
            let (tokens, path_logp) = (read.to_vec::<i32>()?, read_path.to_vec::<f32>()?);
            for (i, want) in reference::draft::topk(&last, None, -0.5, TOP_K).into_iter().enumerate() {
                assert_eq!((tokens[first + i], path_logp[first + i]), (want.token, want.path_logp));
            }
            Ok(())
        }),
    })
}

fn beam_case(setting: &Setting, sequences: usize) -> Result<Case> {
    let rows = sequences * TOP_K;
    let (path_logp, values) = setting.random_f32(&[rows, TOP_K])?;
    let (row_run, runs_used) = (setting.ints(&vec![-1; rows])?, setting.ints(&vec![0; sequences])?);
    let frontier = setting.uninit(DType::I32, &[rows, 4])?;
    let (device, read) = (setting.device.clone(), frontier.clone());
    Ok(Case {
        name: format!("draft_beam B={sequences} width={TOP_K} of {}", TOP_K * TOP_K),
        bytes: (rows * (4 * TOP_K + 20)) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let (path_logp, row_run, runs_used, frontier) = (&path_logp, &row_run, &runs_used, &frontier);
            draft_beam(&device, DraftBeamArgs { path_logp, row_run, runs_used, frontier, width: TOP_K })
        }),
        check: Box::new(move || {
            let best = reference::draft::descending(&values[..TOP_K * TOP_K]);
            let chosen: Vec<i32> = read.to_vec::<i32>()?.chunks(4).map(|entry| entry[1]).collect();
            assert!(chosen.iter().zip(&best[..TOP_K]).all(|(&got, &want)| got == want as i32));
            Ok(())
        }),
    })
}

fn frontier_case(setting: &Setting, sequences: usize) -> Result<Case> {
    let rows = sequences * TOP_K;
    let entry = |row: usize| [row / TOP_K, row, usize::MAX, row % TOP_K].map(|value| value as i32);
    let ints = |value: fn(usize) -> i32, len: usize| setting.ints(&(0..len).map(value).collect::<Vec<_>>());
    let frontier = setting.ints(&(0..rows).flat_map(entry).collect::<Vec<_>>())?.reshape(&[rows, 4]);
    let pool_tokens = ints(|i| i as i32, rows)?;
    let (pool_path_logp, _) = setting.random_f32(&[rows])?;
    let [first_position, prefix_len, root_row] = [200, 100, 3].map(|value| vec![value; sequences]);
    let (first_position, prefix_len, root_row) =
        (setting.ints(&first_position)?, setting.ints(&prefix_len)?, setting.ints(&root_row)?);
    let page_table = ints(|i| i as i32, sequences * 32)?.reshape(&[sequences, 32]);
    let run_ancestors = setting.uninit(DType::U64, &[sequences, 256, 4])?;
    let run_rows = setting.uninit(DType::I32, &[sequences, 256])?;
    let [tokens, positions, slots, feature_row, row_run] =
        [(); 5].map(|()| setting.uninit(DType::I32, &[rows]));
    let (tokens, positions, slots, feature_row, row_run) =
        (tokens?, positions?, slots?, feature_row?, row_run?);
    let ancestors = setting.uninit(DType::U64, &[rows, 4])?;
    let parent_logp = setting.uninit(DType::F32, &[rows])?;
    let (device, read_slots, read_ancestors) = (setting.device.clone(), slots.clone(), ancestors.clone());
    Ok(Case {
        name: format!("draft_frontier B={sequences} width={TOP_K}"),
        bytes: (rows * (16 + 8 + 5 * 4 + 32 + 4 + 36)) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let args = DraftFrontierArgs {
                frontier: &frontier,
                pool_tokens: &pool_tokens,
                pool_path_logp: &pool_path_logp,
                first_position: &first_position,
                prefix_len: &prefix_len,
                page_table: &page_table,
                page_size: PAGE,
                root_feature_row: &root_row,
                runs: RunTables { ancestors: &run_ancestors, feature_row: &run_rows },
                output_row: 10,
                tokens: &tokens,
                positions: &positions,
                slots: &slots,
                ancestors: &ancestors,
                parent_logp: &parent_logp,
                feature_row: &feature_row,
                row_run: &row_run,
            };
            draft_frontier(&device, args)
        }),
        check: Box::new(move || {
            let pages: Vec<i32> = (0..32).collect();
            let want = reference::draft::place([0; 4], TOP_K - 1, 200, 100, &pages, PAGE);
            assert_eq!(read_slots.to_vec::<i32>()?[TOP_K - 1], want.slot);
            assert_eq!(read_ancestors.to_vec::<u64>()?[4 * (TOP_K - 1)..4 * TOP_K], want.ancestors);
            Ok(())
        }),
    })
}
