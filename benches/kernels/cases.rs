//! Linear layers, and the kernels that work row by row.

use half::bf16;
use smart_run::Result;
use smart_run::device::{DType, Tensor};
use smart_run::kernels::embedding::{EmbeddingArgs, embedding};
use smart_run::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use smart_run::kernels::linear::{GATE_ROWS, LinearArgs, LinearWorkspace, linear as multiply, linear_swiglu};
use smart_run::kernels::rmsnorm::{RmsNormArgs, rmsnorm};
use smart_run::kernels::rope::{HeadNorm, RopeArgs, rope_kv_write};
use smart_run::kernels::silu_residual::{SiluResidualArgs, silu_residual};
use smart_run::reference;

use super::measure::{Case, near};
use super::setting::Setting;

/// Row `row` of a bf16 matrix.
pub fn row(matrix: &Tensor, row: usize) -> Result<Vec<f32>> {
    Ok(matrix.rows(row..row + 1).to_vec::<bf16>()?.into_iter().map(bf16::to_f32).collect())
}

/// Every weight of the target and of an EAGLE-3 drafter, at every width.
pub fn linear(setting: &Setting, filter: &str) -> Result<Vec<Case>> {
    let m = setting.model;
    let qkv = (m.q_heads + 2 * m.kv_heads) * m.head_dim;
    let layers = [
        ("qkv", qkv, m.hidden),
        ("o", m.hidden, m.q_heads * m.head_dim),
        ("gate_up", 2 * m.intermediate, m.hidden),
        ("down", m.hidden, m.intermediate),
        ("head", m.vocab, m.hidden),
        ("draft fc", m.hidden, 3 * m.hidden),
        ("draft qkv", qkv, 2 * m.hidden),
        ("draft head", m.draft_vocab, m.hidden),
    ];
    let mut cases = Vec::new();
    for (layer, n, k) in layers {
        for &rows in m.widths {
            let name = format!("linear {layer} T={rows} N={n} K={k}");
            if name.contains(filter) {
                cases.push(linear_case(setting, name, rows, n, k)?);
            }
        }
    }
    Ok(cases)
}

fn linear_case(setting: &Setting, name: String, rows: usize, n: usize, k: usize) -> Result<Case> {
    let (is_head, is_gated) = (name.contains("head"), name.contains("gate_up"));
    let columns = if is_gated { n / 2 } else { n };
    let out = setting.uninit(if is_head { DType::F32 } else { DType::Bf16 }, &[rows, columns])?;
    let x = setting.random(0, &[rows, k]);
    let workspace = LinearWorkspace::new(&setting.device, rows, [(n, k)], 0)?;
    let (device, read) = (setting.device.clone(), out.clone());
    let weights: Vec<Tensor> = (0..64).map(|i| setting.random(i, &[n, k])).collect();
    let checked_rows = if is_gated { 2 * GATE_ROWS } else { 8 };
    let (last_x, first_weights) = (setting.values((rows - 1) * k, k), setting.values(0, checked_rows * k));
    let checked = name.clone();
    Ok(Case {
        bytes: (2 * n * k + 2 * rows * k) as f64 + out.num_bytes() as f64,
        flops: (2 * rows * n * k) as f64,
        launch: Box::new(move |i| {
            let weight = &weights[i % weights.len()];
            let args = LinearArgs { x: &x, weight, bias: None, out: &out, workspace: &workspace };
            if is_gated { linear_swiglu(&device, args) } else { multiply(&device, args) }
        }),
        check: Box::new(move || {
            let got = match is_head {
                true => read.rows(rows - 1..rows).to_vec::<f32>()?,
                false => row(&read, rows - 1)?,
            };
            let mut want = reference::linear::linear(&last_x, &first_weights, None, k);
            if is_gated {
                want = reference::swiglu::swiglu(&want, GATE_ROWS);
            }
            near(&checked, &got[..8], &want);
            Ok(())
        }),
        name,
    })
}

/// The kernels between the linear layers, at every width. Their operands stay in cache, as they do in a pass.
pub fn rows(setting: &Setting, filter: &str) -> Result<Vec<Case>> {
    let builders = [embedding_case, rmsnorm_case, silu_residual_case, rope_case, rope_norm_case, gather_case];
    let all = builders.iter().flat_map(|build| setting.model.widths.iter().map(|&rows| build(setting, rows)));
    let mut cases = all.collect::<Result<Vec<Case>>>()?;
    cases.retain(|case| case.name.contains(filter));
    Ok(cases)
}

fn embedding_case(setting: &Setting, rows: usize) -> Result<Case> {
    let hidden = setting.model.hidden;
    let table = setting.random(0, &[setting.model.vocab, hidden]);
    let out = setting.uninit(DType::Bf16, &[rows, hidden])?;
    let last = 77 + 31 * (rows - 1);
    let tokens = setting.ints(&(0..rows as i32).map(|row| 77 + 31 * row).collect::<Vec<_>>())?;
    let (device, read, want) = (setting.device.clone(), out.clone(), setting.values(last * hidden, hidden));
    Ok(Case {
        name: format!("embedding T={rows} H={hidden}"),
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

fn rmsnorm_case(setting: &Setting, rows: usize) -> Result<Case> {
    let hidden = setting.model.hidden;
    let (residual, out) =
        (setting.uninit(DType::Bf16, &[rows, hidden])?, setting.uninit(DType::Bf16, &[rows, hidden])?);
    let (delta, weight) = (setting.random(0, &[rows, hidden]), setting.random(0, &[hidden]));
    residual.copy_from(&delta)?;
    let (device, read) = (setting.device.clone(), out.clone());
    let (delta_row, gains) = (setting.values((rows - 1) * hidden, hidden), setting.values(0, hidden));
    Ok(Case {
        name: format!("rmsnorm + residual T={rows} H={hidden}"),
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

/// The first blocks of five Medusa heads.
fn silu_residual_case(setting: &Setting, rows: usize) -> Result<Case> {
    const HEADS: usize = 5;
    let hidden = setting.model.hidden;
    let (x, y) = (setting.random(0, &[rows, hidden]), setting.random(1, &[rows, HEADS * hidden]));
    let out = setting.uninit(DType::Bf16, &[rows, HEADS * hidden])?;
    let (device, read) = (setting.device.clone(), out.clone());
    let last = (row(&x, rows - 1)?, row(&y, rows - 1)?);
    Ok(Case {
        name: format!("silu_residual T={rows} G={HEADS} H={hidden}"),
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
        name: format!("{what} T={rows} heads={}/{}", m.q_heads, m.kv_heads),
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

/// Features of accepted nodes: three hidden sizes a row.
fn gather_case(setting: &Setting, rows: usize) -> Result<Case> {
    let width = 3 * setting.model.hidden;
    let (src, out) = (setting.random(0, &[256, width]), setting.uninit(DType::Bf16, &[rows, width])?);
    let index = setting.ints(&(0..rows as i32).map(|row| (row * 37 + 5) % 256).collect::<Vec<_>>())?;
    let last = ((rows - 1) * 37 + 5) % 256;
    let (device, read, want) = (setting.device.clone(), out.clone(), setting.values(last * width, width));
    Ok(Case {
        name: format!("gather_rows T={rows} H={width}"),
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
