//! The kernels of vision towers, at the sizes of the towers that LLaVA-1.5 and Qwen2-VL have (CLIP ViT-L/14-336; 1280 wide, heads
//! of 80). On the host driver, where a picture takes seconds, at a sixteenth of the patches.

use smart_run::Result;
use smart_run::device::{DType, Tensor};
use smart_run::kernels::gelu::{Gelu, gelu};
use smart_run::kernels::layernorm::{LayerNormArgs, layernorm};
use smart_run::kernels::vision_attention::{VisionAttentionArgs, vision_attention};
use smart_run::kernels::vision_rope::{VisionRopeArgs, vision_rope};
use smart_run::reference;

use super::measure::{Case, Entry, near};
use super::row_cases::row;
use super::setting::{Model, Setting};

/// What one picture brings to a tower.
struct Tower {
    name: &'static str,
    rows: usize,
    num_heads: usize,
    head_dim: usize,
    intermediate: usize,
}

const TOWERS: [Tower; 2] = [
    Tower { name: "CLIP-L 336", rows: 577, num_heads: 16, head_dim: 64, intermediate: 4096 },
    // 896 x 896 pixels
    Tower { name: "Qwen2-VL 896", rows: 4096, num_heads: 16, head_dim: 80, intermediate: 5120 },
];

/// A kernel on what a picture brings.
type Build = fn(&Setting, &Tower) -> Result<Case>;

/// A row a kernel and tower.
pub fn vision(model: &'static Model) -> Vec<Entry> {
    let mut entries = Vec::new();
    for tower in &TOWERS {
        let rows = tower.rows / model.picture_divisor;
        let Tower { num_heads, head_dim, intermediate, .. } = *tower;
        let (of, hidden) = (tower.name, num_heads * head_dim);
        let kernels: [(&str, String, Build); 4] = [
            ("vision_attention", format!("heads={num_heads}x{head_dim}"), attention_case),
            ("vision_rope", format!("heads={num_heads}x{head_dim}"), rope_case),
            ("layernorm", format!("H={hidden}"), layernorm_case),
            ("gelu quick", format!("I={intermediate}"), gelu_case),
        ];
        for (kernel, sizes, build) in kernels {
            let name = format!("{kernel} {of} T={rows} {sizes}");
            let shape =
                serde_json::json!({ "family": "vision", "kernel": kernel, "tower": of, "rows": rows });
            entries
                .push(Entry::new(2, name, shape, move |setting| build(setting, &Tower { rows, ..*tower })));
        }
    }
    entries
}

fn attention_case(setting: &Setting, tower: &Tower) -> Result<Case> {
    let &Tower { rows, num_heads, head_dim, .. } = tower;
    let width = num_heads * head_dim;
    let (qkv, out) = (setting.random(0, &[rows, 3 * width]), setting.uninit(DType::Bf16, &[rows, width])?);
    let seq_start = setting.ints(&[0, rows as i32])?;
    let sm_scale = (head_dim as f32).sqrt().recip();
    let (device, read) = (setting.device.clone(), out.clone());
    // The last row's first head.
    let values = setting.values(0, rows * 3 * width);
    Ok(Case {
        bytes: (8 * rows * width) as f64,
        flops: (4 * rows * rows * width) as f64,
        launch: Box::new(move |_| {
            let args = VisionAttentionArgs {
                qkv: &qkv,
                seq_start: &seq_start,
                out: &out,
                max_rows: rows,
                num_heads,
                head_dim,
                sm_scale,
            };
            vision_attention(&device, args)
        }),
        check: Box::new(move || {
            let heads = (num_heads, head_dim);
            let want = reference::vision_attention::one_head(&values, 0..rows, rows - 1, heads, 0, sm_scale);
            near("vision_attention", &row(&read, rows - 1)?[..head_dim], &want);
            Ok(())
        }),
    })
}

fn rope_case(setting: &Setting, tower: &Tower) -> Result<Case> {
    let &Tower { rows, num_heads, head_dim, .. } = tower;
    let width = num_heads * head_dim;
    let (source, qkv) =
        (setting.random(0, &[rows, 3 * width]), setting.uninit(DType::Bf16, &[rows, 3 * width])?);
    qkv.copy_from(&source)?;
    let side = rows.isqrt() + 1;
    let table = reference::rope::cos_sin_table(side, head_dim / 2, 10_000.0);
    let cos_sin = Tensor::from_slice(&setting.device, &table, &[side, head_dim / 2])?;
    let axis = |of: fn(usize, usize) -> usize| (0..rows).map(move |i| of(i, side) as i32);
    let positions: Vec<i32> = axis(|i, side| i / side).chain(axis(|i, side| i % side)).collect();
    let positions = setting.ints(&positions)?.reshape(&[2, rows]);
    let (device, read) = (setting.device.clone(), qkv.clone());
    let head = setting.values(0, head_dim);
    Ok(Case {
        bytes: (8 * rows * width) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let args =
                VisionRopeArgs { qkv: &qkv, cos_sin: &cos_sin, positions: &positions, num_heads, head_dim };
            vision_rope(&device, args)
        }),
        check: Box::new(move || {
            // Row 0 stands at (0, 0), which turns nothing however often it is launched.
            near("vision_rope", &row(&read, 0)?[..head_dim], &head);
            Ok(())
        }),
    })
}

fn layernorm_case(setting: &Setting, tower: &Tower) -> Result<Case> {
    let (rows, hidden) = (tower.rows, tower.num_heads * tower.head_dim);
    let (residual, out) =
        (setting.uninit(DType::Bf16, &[rows, hidden])?, setting.uninit(DType::Bf16, &[rows, hidden])?);
    residual.copy_from(&setting.random(0, &[rows, hidden]))?;
    let (weight, bias) = (setting.random(0, &[hidden]), setting.random(1, &[hidden]));
    let first = setting.start(1, hidden);
    let (gains, shifts) = (setting.values(0, hidden), setting.values(first, hidden));
    let (device, read) = (setting.device.clone(), out.clone());
    let last = setting.values((rows - 1) * hidden, hidden);
    Ok(Case {
        bytes: (4 * rows * hidden) as f64,
        flops: 0.0,
        launch: Box::new(move |_| {
            let (residual, weight, bias, out) = (&residual, &weight, &bias, &out);
            layernorm(&device, LayerNormArgs { residual, delta: None, weight, bias, out, eps: 1e-6 })
        }),
        check: Box::new(move || {
            let mut last = last.clone();
            let want = reference::layernorm::layernorm(&mut last, None, &gains, &shifts, 1e-6, |x| x);
            near("layernorm", &row(&read, rows - 1)?, &want);
            Ok(())
        }),
    })
}

fn gelu_case(setting: &Setting, tower: &Tower) -> Result<Case> {
    let (rows, width) = (tower.rows, tower.intermediate);
    let (x, out) = (setting.random(0, &[rows, width]), setting.uninit(DType::Bf16, &[rows, width])?);
    let (device, read) = (setting.device.clone(), out.clone());
    let last = setting.values((rows - 1) * width, width);
    Ok(Case {
        bytes: (4 * rows * width) as f64,
        flops: 0.0,
        launch: Box::new(move |_| gelu(&device, Gelu::Quick, &x, &out)),
        check: Box::new(move || {
            let want: Vec<f32> = last.iter().map(|&x| reference::gelu::quick_gelu(x)).collect();
            near("gelu", &row(&read, rows - 1)?, &want);
            Ok(())
        }),
    })
}
