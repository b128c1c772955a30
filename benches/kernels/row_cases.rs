//! The kernels between the linear layers, row by row. Their operands stay in cache, as they do in a pass.

use half::bf16;
use smart_run::Result;
use smart_run::device::{DType, PinnedBuffer, Tensor};
use smart_run::kernels::advance_rows::{AdvanceRowsArgs, advance_rows};
use smart_run::kernels::copy_rows::{CopyRowsArgs, copy_rows};
use smart_run::kernels::embedding::{EmbeddingArgs, embedding};
use smart_run::kernels::gather_norm::{GatherNormPart, RowCopy, gather_norm};
use smart_run::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use smart_run::kernels::host_words::{PostWordsArgs, fetch_words, post_words};
use smart_run::kernels::rmsnorm::{RmsNormArgs, rmsnorm};
use smart_run::kernels::rope::{HeadNorm, RopeArgs, rope_kv_write};
use smart_run::kernels::silu_residual::{SiluResidualArgs, silu_residual};
use smart_run::reference;

use super::measure::{Case, Entry, near};
use super::setting::{Model, Setting};

/// Row `row` of a bf16 matrix.
pub fn row(matrix: &Tensor, row: usize) -> Result<Vec<f32>> {
    Ok(matrix.rows(row..row + 1).to_vec::<bf16>()?.into_iter().map(bf16::to_f32).collect())
}

/// A kernel at a number of rows.
type Build = fn(&Setting, usize) -> Result<Case>;

/// First blocks of Medusa heads, side by side.
const HEADS: usize = 5;

/// What a pass tells of a row, about; what comes back of it is half as much.
const WORDS: usize = 20;

/// Every kernel at every width.
pub fn rows(model: &'static Model) -> Vec<Entry> {
    let m = model;
    let heads = format!("heads={}/{}", m.q_heads, m.kv_heads);
    let kernels: [(&str, String, Build); 11] = [
        ("embedding", format!("H={}", m.hidden), embedding_case),
        ("rmsnorm + residual", format!("H={}", m.hidden), rmsnorm_case),
        ("silu_residual", format!("G={HEADS} H={}", m.hidden), silu_residual_case),
        ("rope + K/V write", heads.clone(), rope_case),
        ("q/k norm + rope + K/V write", heads, rope_norm_case),
        ("gather_norm of embedding and feature", format!("H={}", m.hidden), gather_norm_case),
        ("gather_rows", format!("H={}", 3 * m.hidden), gather_case),
        ("copy_rows", format!("H={}", 3 * m.hidden), copy_case),
        ("advance_rows", "pages=1024".into(), advance_case),
        ("fetch_words", format!("{WORDS} a row"), |setting, rows| words_case(setting, rows, false)),
        ("post_words", format!("{WORDS} a row"), |setting, rows| words_case(setting, rows, true)),
    ];
    let mut entries = Vec::new();
    for (kernel, sizes, build) in kernels {
        for &rows in m.widths {
            let name = format!("{kernel} T={rows} {sizes}");
            let shape = serde_json::json!({ "family": "rows", "kernel": kernel, "rows": rows });
            entries.push(Entry::new(1, name, shape, move |setting| build(setting, rows)));
        }
    }
    entries
}

fn embedding_case(setting: &Setting, rows: usize) -> Result<Case> {
    let hidden = setting.model.hidden;
    let table = setting.random(0, &[setting.model.vocab, hidden]);
    let out = setting.uninit(DType::Bf16, &[rows, hidden])?;
    let last = 77 + 31 * (rows - 1);
    let tokens = setting.ints(&(0..rows as i32).map(|row| 77 + 31 * row).collect::<Vec<_>>())?;
    let (device, read, want) = (setting.device.clone(), out.clone(), setting.values(last * hidden, hidden));
    Ok(Case {
        bytes: (4 * rows * hidden) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            embedding(&device, EmbeddingArgs { tokens: &tokens, table: &table, out: &out })
        }),
        check: Box::new(move || {
            assert_eq!(row(&read, rows - 1)?, want);
            Ok(())
        }),
    })
}

fn gather_norm_case(setting: &Setting, rows: usize) -> Result<Case> {
    let hidden = setting.model.hidden;
    let (table, weight) = (setting.random(0, &[setting.model.vocab, hidden]), setting.random(0, &[hidden]));
    let (pair, stream) =
        (setting.uninit(DType::Bf16, &[rows, 2 * hidden])?, setting.uninit(DType::Bf16, &[rows, hidden])?);
    let last = 77 + 31 * (rows - 1);
    let index = setting.ints(&(0..rows as i32).map(|row| 77 + 31 * row).collect::<Vec<_>>())?;
    let [left, right] = [0..hidden, hidden..2 * hidden].map(|columns| pair.columns(columns));
    let (device, read) = (setting.device.clone(), stream.clone());
    let (want, gains) = (setting.values(last * hidden, hidden), setting.values(0, hidden));
    Ok(Case {
        bytes: (10 * rows * hidden) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let (src, index, weight) = (&table, Some(&index), Some(&weight));
            let copy = Some(RowCopy::Normed(&stream));
            let parts = [(&left, None), (&right, copy)].map(|(out, copy)| GatherNormPart {
                src,
                index,
                weight,
                out,
                copy,
            });
            gather_norm(&device, &parts, 1e-5)
        }),
        check: Box::new(move || {
            let want = reference::rmsnorm::rmsnorm(&mut want.clone(), None, &gains, 1e-5, |x| x);
            near("gather_norm", &row(&read, rows - 1)?, &want);
            Ok(())
        }),
    })
}

fn rmsnorm_case(setting: &Setting, rows: usize) -> Result<Case> {
    let hidden = setting.model.hidden;
    let (residual, out) =
        (setting.uninit(DType::Bf16, &[rows, hidden])?, setting.uninit(DType::Bf16, &[rows, hidden])?);
    let (delta, weight) = (setting.random(0, &[rows, hidden]), setting.random(0, &[hidden]));
    residual.copy_from(&delta)?;
    let (device, read) = (setting.device.clone(), out.clone());
    let (delta_row, gains) = (setting.values((rows - 1) * hidden, hidden), setting.values(0, hidden));
    Ok(Case {
        bytes: (8 * rows * hidden) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let (residual, out, weight) = (&residual, &out, &weight);
            rmsnorm(&device, RmsNormArgs { residual, delta: Some(&delta), weight, out, tap: None, eps: 1e-5 })
        }),
        check: Box::new(move || {
            let mut residual = delta_row.clone();
            let want = reference::rmsnorm::rmsnorm(&mut residual, Some(&delta_row), &gains, 1e-5, |x| x);
            near("rmsnorm", &row(&read, rows - 1)?, &want);
            Ok(())
        }),
    })
}

fn silu_residual_case(setting: &Setting, rows: usize) -> Result<Case> {
    let hidden = setting.model.hidden;
    let (x, y) = (setting.random(0, &[rows, hidden]), setting.random(1, &[rows, HEADS * hidden]));
    let out = setting.uninit(DType::Bf16, &[rows, HEADS * hidden])?;
    let (device, read) = (setting.device.clone(), out.clone());
    let last = (row(&x, rows - 1)?, row(&y, rows - 1)?);
    Ok(Case {
        bytes: (2 * (1 + 2 * HEADS) * rows * hidden) as f64,
        flops: 0.0,
        launch: Box::new(move |_| silu_residual(&device, SiluResidualArgs { x: &x, y: &y, out: &out })),
        check: Box::new(move || {
            let want = reference::silu_residual::silu_residual(&last.0, &last.1, hidden);
            near("silu_residual", &row(&read, rows - 1)?, &want);
            Ok(())
        }),
    })
}

fn rope_case(setting: &Setting, rows: usize) -> Result<Case> {
    rope_case_of(setting, rows, false)
}

/// With every head of q and k normalised, as in Qwen3.
fn rope_norm_case(setting: &Setting, rows: usize) -> Result<Case> {
    rope_case_of(setting, rows, true)
}

fn rope_case_of(setting: &Setting, rows: usize, normed: bool) -> Result<Case> {
    let m = setting.model;
    let (q_width, width) = (m.q_heads * m.head_dim, (m.q_heads + 2 * m.kv_heads) * m.head_dim);
    let qkv = setting.random(0, &[rows, width]);
    let q_out = setting.uninit(DType::Bf16, &[rows, q_width])?;
    let cache = [rows.div_ceil(16), m.kv_heads, 16, m.head_dim];
    let (k_cache, v_cache) = (setting.uninit(DType::Bf16, &cache)?, setting.uninit(DType::Bf16, &cache)?);
    let table = reference::rope::cos_sin_table(rows, m.head_dim, 500_000.0);
    let cos_sin = Tensor::from_slice(&setting.device, &table, &[rows, m.head_dim])?;
    let positions = setting.ints(&(0..rows as i32).collect::<Vec<_>>())?;
    let (weight, gains) = (setting.random(0, &[m.head_dim]), setting.values(0, m.head_dim));
    let what = if normed { "q/k norm + rope + K/V write" } else { "rope + K/V write" };
    const EPS: f32 = 1e-6;
    let (device, read) = (setting.device.clone(), q_out.clone());
    let (head, angles) =
        (setting.values((rows - 1) * width, m.head_dim), table[(rows - 1) * m.head_dim..].to_vec());
    Ok(Case {
        bytes: (4 * rows * width + 4 * table.len()) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let args = RopeArgs {
                qkv: &qkv,
                q_out: &q_out,
                k_cache: &k_cache,
                v_cache: &v_cache,
                cos_sin: &cos_sin,
                positions: &positions,
                sections: None,
                slots: &positions,
                num_q_heads: m.q_heads,
                num_kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                norm: normed.then_some(HeadNorm { q: &weight, k: &weight, eps: EPS }),
            };
            rope_kv_write(&device, args)
        }),
        check: Box::new(move || {
            let got = row(&read, rows - 1)?;
            let head = match normed {
                true => reference::rope::normalise(&head, &gains, EPS, |x| x),
                false => head.clone(),
            };
            near(what, &got[..m.head_dim], &reference::rope::rotate(&head, &angles));
            Ok(())
        }),
    })
}

/// Features of accepted nodes to their places in the backlog: three hidden sizes a row.
fn copy_case(setting: &Setting, rows: usize) -> Result<Case> {
    let width = 3 * setting.model.hidden;
    let (src, out) = (setting.random(0, &[256, width]), setting.uninit(DType::Bf16, &[512, width])?);
    let from = |row: usize| (row * 37 + 5) % 256;
    let moves: Vec<i32> = (0..rows).flat_map(|row| [from(row) as i32, 511 - row as i32]).collect();
    let moves = setting.ints(&moves)?.reshape(&[rows, 2]);
    let (device, read) = (setting.device.clone(), out.clone());
    let want = setting.values(from(rows - 1) * width, width);
    Ok(Case {
        bytes: (4 * rows * width) as f64,
        flops: 0.0,
        launch: Box::new(move |_| copy_rows(&device, CopyRowsArgs { src: &src, moves: &moves, out: &out })),
        check: Box::new(move || {
            assert_eq!(row(&read, 512 - rows)?, want);
            Ok(())
        }),
    })
}

/// Words over the bus, to the device or to the host.
fn words_case(setting: &Setting, rows: usize, to_host: bool) -> Result<Case> {
    let len = WORDS * rows;
    let want: Vec<i32> = (0..len as i32).map(|i| i * i - 7).collect();
    let (inside, flag) = (setting.ints(&want)?, PinnedBuffer::new(&setting.device, 1)?);
    let mut host = PinnedBuffer::new(&setting.device, len)?;
    if !to_host {
        host.as_mut_slice().copy_from_slice(&want);
    }
    let out = setting.uninit(DType::I32, &[len])?;
    let (device, mapped, mapped_flag, read) =
        (setting.device.clone(), host.mapped(), flag.mapped(), out.clone());
    Ok(Case {
        bytes: (8 * len) as f64,
        flops: 0.0,
        launch: Box::new(move |_| match to_host {
            true => {
                let args = PostWordsArgs { src: &inside, out: &mapped, flag: &mapped_flag, ticket: 1 };
                post_words(&device, args)
            }
            false => fetch_words(&device, &mapped, &out),
        }),
        check: Box::new(move || {
            let fetched = read.to_vec::<i32>()?;
            assert_eq!(if to_host { host.as_slice() } else { &fetched[..] }, &want[..]);
            assert_eq!(flag.load(0), i32::from(to_host));
            Ok(())
        }),
    })
}

/// Rows picked by index, as wide as features.
fn gather_case(setting: &Setting, rows: usize) -> Result<Case> {
    let width = 3 * setting.model.hidden;
    let (src, out) = (setting.random(0, &[256, width]), setting.uninit(DType::Bf16, &[rows, width])?);
    let index = setting.ints(&(0..rows as i32).map(|row| (row * 37 + 5) % 256).collect::<Vec<_>>())?;
    let last = ((rows - 1) * 37 + 5) % 256;
    let (device, read, want) = (setting.device.clone(), out.clone(), setting.values(last * width, width));
    Ok(Case {
        bytes: (4 * rows * width) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            gather_rows(&device, GatherRowsArgs { src: &src, index: &index, out: &out })
        }),
        check: Box::new(move || {
            assert_eq!(row(&read, rows - 1)?, want);
            Ok(())
        }),
    })
}

/// Rows of as many sequences, each one position on.
fn advance_case(setting: &Setting, rows: usize) -> Result<Case> {
    // A launch moves a row on by one: 16384 positions are more than are ever launched.
    const PAGES: usize = 1024;
    let count: Vec<i32> = (0..rows as i32).collect();
    let [drawn, row_sequence] = [setting.ints(&count)?, setting.ints(&count)?];
    let table: Vec<i32> = (0..(rows * PAGES) as i32).collect();
    let page_table = setting.ints(&table)?.reshape(&[rows, PAGES]);
    let [tokens, slots, draw_positions] = [(); 3].map(|()| setting.uninit(DType::I32, &[rows]));
    let (tokens, slots, draw_positions) = (tokens?, slots?, draw_positions?);
    let positions = setting.uninit(DType::I32, &[1, rows])?;
    let prefix_len = setting.ints(&vec![0; rows])?;
    let (device, length, slot) = (setting.device.clone(), prefix_len.clone(), slots.clone());
    Ok(Case {
        bytes: (11 * 4 * rows) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            advance_rows(
                &device,
                AdvanceRowsArgs {
                    drawn: &drawn,
                    row_sequence: &row_sequence,
                    page_table: &page_table,
                    page_size: 16,
                    tokens: &tokens,
                    positions: &positions,
                    slots: &slots,
                    draw_positions: &draw_positions,
                    prefix_len: &prefix_len,
                },
            )
        }),
        check: Box::new(move || {
            assert_eq!(length.to_vec::<i32>()?, vec![1; rows]);
            let first = |row: usize| (row * PAGES * 16 + 1) as i32;
            assert_eq!(slot.to_vec::<i32>()?, (0..rows).map(first).collect::<Vec<_>>());
            Ok(())
        }),
    })
}
