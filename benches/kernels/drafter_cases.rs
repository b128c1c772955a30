//! The drafter's own kernels: top-k of its logits, the next beam, the packing of its pass, the compaction of what was accepted. A
//! level's linear layers and attention are in those families, at its rows.

use half::bf16;
use smart_run::Result;
use smart_run::device::{DType, Device, PinnedBuffer, Tensor};
use smart_run::kernels::digest::{digest_buffer, draft_digest};
use smart_run::kernels::draft::{
    DraftBeamArgs, DraftFrontierArgs, DraftTopkArgs, HostWords, RunTables, draft_beam, draft_frontier,
    draft_topk,
};
use smart_run::kernels::draft_noise::{DraftNoiseArgs, draft_noise};
use smart_run::kernels::kv_compact::{KvCompactArgs, kv_compact};
use smart_run::kernels::linear::{LinearArgs, LinearWorkspace, head};
use smart_run::kernels::prefetch::prefetch;
use smart_run::kernels::sampler::SamplerParams;
use smart_run::reference;
use smart_run::sampling::{DIGEST_LEN, SamplingParams};

use super::attention_cases::PAGE;
use super::measure::{Case, Entry};
use super::row_cases::row;
use super::setting::{Model, Setting};

/// Children a node of the drafter.
const TOP_K: usize = 10;

/// A level at batch sizes 1 to 64, and compaction of 1 to 8 nodes.
pub fn drafter(model: &'static Model) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (vocabulary, &vocab) in model.draft_vocabularies.iter().enumerate() {
        let rank = if vocabulary == 0 { 0 } else { 2 };
        // A level of a batch of 64 over a target's whole vocabulary is no shape that anybody runs.
        let most = if vocabulary == 0 { 64 } else { 16 };
        for rows in [1, 4, 8, TOP_K, 16, 4 * TOP_K, 64, 16 * TOP_K, 64 * TOP_K] {
            if rows > most * TOP_K {
                continue;
            }
            for (what, kernel, build) in [
                (
                    "draft_digest + draft_topk",
                    "topk",
                    digested_case as fn(&Setting, usize, usize) -> Result<Case>,
                ),
                ("draft_topk", "topk of digests", topk_case),
                ("head + draft_topk", "head and topk", head_case),
                ("head + draft_noise + draft_topk", "head, noise and topk", noisy_head_case),
            ] {
                let name = format!("{what} R={rows} V={vocab} k={TOP_K}");
                let shape = serde_json::json!({
                    "family": "drafter", "kernel": kernel, "rows": rows, "vocab": vocab, "k": TOP_K,
                });
                entries.push(Entry::new(rank, name, shape, move |setting| build(setting, rows, vocab)));
            }
        }
    }
    for &sequences in model.batches {
        for (name, build) in [
            (
                format!("draft_beam B={sequences} width={TOP_K} of {}", TOP_K * TOP_K),
                beam_case as fn(&Setting, usize) -> Result<Case>,
            ),
            (format!("draft_frontier B={sequences} width={TOP_K}"), frontier_case),
        ] {
            let shape = serde_json::json!({ "family": "drafter", "kernel": "level", "sequences": sequences });
            entries.push(Entry::new(1, name, shape, move |setting| build(setting, sequences)));
        }
    }
    let bytes = (2 * model.vocab * model.hidden).min(24 << 20);
    let shape = serde_json::json!({ "family": "drafter", "kernel": "prefetch", "bytes": bytes });
    let name = format!("prefetch of {:.1} MiB", bytes as f64 / (1 << 20) as f64);
    entries.push(Entry::new(1, name, shape, move |setting| prefetch_case(setting, bytes)));
    for &sequences in model.batches {
        for accepted in [1, 5, 8] {
            let name = format!("kv_compact B={sequences} accepted={accepted} layers={}", model.layers);
            let shape = serde_json::json!({
                "family": "drafter", "kernel": "kv_compact", "sequences": sequences, "accepted": accepted,
            });
            let build = move |setting: &Setting| compact_case(setting, sequences, accepted);
            entries.push(Entry::new(1, name, shape, build));
        }
    }
    entries
}

/// Outputs of [`draft_topk`] for so many rows, with parents of one log-probability.
#[derive(Clone)]
struct Children {
    parent_logp: Tensor,
    tokens: Tensor,
    logp: Tensor,
    path_logp: Tensor,
}

const PARENT_LOGP: f32 = -0.5;

impl Children {
    fn new(setting: &Setting, rows: usize) -> Result<Self> {
        let outputs = |dtype| setting.uninit(dtype, &[rows, TOP_K]);
        Ok(Self {
            parent_logp: Tensor::from_slice(&setting.device, &vec![PARENT_LOGP; rows], &[rows])?,
            tokens: outputs(DType::I32)?,
            logp: outputs(DType::F32)?,
            path_logp: outputs(DType::F32)?,
        })
    }

    fn rank(&self, device: &Device, logits: &Tensor, digests: &Tensor) -> Result<()> {
        let Self { parent_logp, tokens, logp, path_logp } = self;
        let (k, d2t, post) = (TOP_K, None, None);
        draft_topk(
            device,
            DraftTopkArgs { logits, digests, d2t, parent_logp, k, tokens, logp, path_logp, post },
        )
    }

    /// Asserts that the children of the last row are those of its logits.
    fn check(&self, logits: &[f32]) -> Result<()> {
        let first = self.tokens.num_elements() - TOP_K;
        let (tokens, path_logp) = (self.tokens.to_vec::<i32>()?, self.path_logp.to_vec::<f32>()?);
        for (i, want) in reference::draft::topk(logits, None, PARENT_LOGP, TOP_K).into_iter().enumerate() {
            assert_eq!((tokens[first + i], path_logp[first + i]), (want.token, want.path_logp));
        }
        Ok(())
    }
}

/// Bytes of digests of a row, and of the slices that its children are in.
fn ranked_bytes(vocab: usize) -> usize {
    let slices = vocab.div_ceil(DIGEST_LEN);
    16 * slices + 4 * DIGEST_LEN * TOP_K.min(slices)
}

/// Children of logits that no head has left digests of.
fn digested_case(setting: &Setting, rows: usize, vocab: usize) -> Result<Case> {
    let (logits, values) = setting.random_f32(&[rows, vocab])?;
    let (children, digests) = (Children::new(setting, rows)?, digest_buffer(&setting.device, rows, vocab)?);
    let (device, made) = (setting.device.clone(), children.clone());
    let last = values[(rows - 1) * vocab..].to_vec();
    Ok(Case {
        bytes: (4 * rows * vocab) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            draft_digest(&device, &logits, &digests)?;
            children.rank(&device, &logits, &digests)
        }),
        check: Box::new(move || made.check(&last)),
    })
}

/// Children of logits with digests.
fn topk_case(setting: &Setting, rows: usize, vocab: usize) -> Result<Case> {
    let (logits, values) = setting.random_f32(&[rows, vocab])?;
    let (children, digests) = (Children::new(setting, rows)?, digest_buffer(&setting.device, rows, vocab)?);
    draft_digest(&setting.device, &logits, &digests)?;
    let (device, made) = (setting.device.clone(), children.clone());
    let last = values[(rows - 1) * vocab..].to_vec();
    Ok(Case {
        bytes: (rows * ranked_bytes(vocab)) as f64,
        flops: 0.0,
        launch: Box::new(move |_| children.rank(&device, &logits, &digests)),
        check: Box::new(move || made.check(&last)),
    })
}

/// The end of a level: a head that leaves digests, and its children. What the head alone takes is among the linear layers.
fn head_case(setting: &Setting, rows: usize, vocab: usize) -> Result<Case> {
    level_end_case(setting, rows, vocab, false)
}

/// The same of texts that are sampled with top-p. Logits are random, so nearly all of them get noise: more than in a real row.
fn noisy_head_case(setting: &Setting, rows: usize, vocab: usize) -> Result<Case> {
    level_end_case(setting, rows, vocab, true)
}

fn level_end_case(setting: &Setting, rows: usize, vocab: usize, is_noisy: bool) -> Result<Case> {
    let (device, k) = (setting.device.clone(), setting.model.hidden);
    let (logits, digests) =
        (setting.uninit(DType::F32, &[rows, vocab])?, digest_buffer(&device, rows, vocab)?);
    let (children, x) = (Children::new(setting, rows)?, setting.random(0, &[rows, k]));
    let workspace = LinearWorkspace::new(&device, rows, [(vocab, k)], 0)?;
    let weights: Vec<Tensor> = (0..64).map(|i| setting.random(i, &[vocab, k])).collect();
    let sampling = SamplingParams { temperature: 0.7, top_p: 0.9, seed: 1, ..SamplingParams::default() };
    let params = SamplerParams::upload(&device, &[SamplerParams::from(&sampling)])?;
    let (draws, noisy_digests) =
        (Tensor::zeros(&device, DType::I32, &[rows, 2])?, digest_buffer(&device, rows, vocab)?);
    let (made, last) = (children.clone(), logits.rows(rows - 1..rows));
    Ok(Case {
        bytes: (2 * vocab * k + 2 * rows * k + 4 * rows * vocab + rows * ranked_bytes(vocab)) as f64,
        flops: (2 * rows * vocab * k) as f64,
        launch: Box::new(move |i| {
            let weight = &weights[i % weights.len()];
            let args = LinearArgs { x: &x, weight, bias: None, out: &logits, workspace: &workspace };
            head(&device, args, &digests)?;
            if !is_noisy {
                return children.rank(&device, &logits, &digests);
            }
            draft_noise(
                &device,
                DraftNoiseArgs {
                    logits: &logits,
                    digests: &digests,
                    out_digests: &noisy_digests,
                    d2t: None,
                    draws: &draws,
                    params: &params,
                },
            )?;
            children.rank(&device, &logits, &noisy_digests)
        }),
        check: Box::new(move || made.check(&last.to_vec::<f32>()?)),
    })
}

/// Weights asked for one after the other: a launch waits for nothing, but memory is behind before long.
fn prefetch_case(setting: &Setting, bytes: usize) -> Result<Case> {
    let weights: Vec<Tensor> = (0..64).map(|i| setting.random(i, &[bytes / 2])).collect();
    let (device, first, values) = (setting.device.clone(), weights[0].rows(0..64), setting.values(0, 64));
    Ok(Case {
        bytes: bytes as f64,
        flops: 0.0,
        launch: Box::new(move |i| prefetch(&device, &weights[i % weights.len()], bytes)),
        check: Box::new(move || {
            let left: Vec<f32> = first.to_vec::<bf16>()?.into_iter().map(bf16::to_f32).collect();
            assert_eq!(left, values);
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
    // As the engine has it: what the host says of a level comes by the same launch.
    let entry = |row: usize| [row / TOP_K, row, usize::MAX, row % TOP_K].map(|value| value as i32);
    let ints = |value: fn(usize) -> i32, len: usize| setting.ints(&(0..len).map(value).collect::<Vec<_>>());
    let frontier: Vec<i32> = (0..rows).flat_map(entry).collect();
    let pool_tokens = ints(|i| i as i32, rows)?;
    let (pool_path_logp, _) = setting.random_f32(&[rows])?;
    let [first_position, prefix_len, root_row] = [200, 100, 3].map(|value| vec![value; sequences]);
    let moves: Vec<i32> = (0..2 * rows).map(|i| (i / 2 + i % 2 * 10) as i32).collect();
    let said = [frontier, moves, first_position, prefix_len, root_row];
    let mut host = PinnedBuffer::new(&setting.device, said.concat().len())?;
    host.as_mut_slice().copy_from_slice(&said.concat());
    let words = setting.uninit(DType::I32, &[host.as_slice().len()])?;
    let mut at = 0;
    let [frontier, moves, first_position, prefix_len, root_row] = said.map(|array| {
        at += array.len();
        words.rows(at - array.len()..at)
    });
    let (frontier, moves) = (frontier.reshape(&[rows, 4]), moves.reshape(&[rows, 2]));
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
        bytes: (rows * (16 + 8 + 8 + 5 * 4 + 32 + 4 + 36) + 8 * words.dim(0)) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let args = DraftFrontierArgs {
                words: Some(HostWords { src: &host.mapped(), out: &words }),
                frontier: &frontier,
                pool_tokens: &pool_tokens,
                pool_path_logp: &pool_path_logp,
                first_position: &first_position,
                prefix_len: &prefix_len,
                page_table: &page_table,
                page_size: PAGE,
                root_feature_row: &root_row,
                runs: RunTables { ancestors: &run_ancestors, feature_row: &run_rows },
                moves: &moves,
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
