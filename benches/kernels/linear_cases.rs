//! Linear layers: every weight at every number of rows, by each family of kernels that the device has.

use std::ops::RangeInclusive;

use smart_run::Result;
use smart_run::device::{DType, Device, Tensor, TensorCoreFamily};
use smart_run::kernels::linear::{GATE_ROWS, LinearArgs, LinearWorkspace, linear as multiply, linear_swiglu};
use smart_run::reference;

use super::measure::{Case, Entry, near};
use super::row_cases::row;
use super::setting::Setting;
use super::shapes::LinearShape;

/// A family of kernels, and for which rows it is measured.
type Family = (&'static str, Device, RangeInclusive<usize>);

/// The families of the device, and each again without its wide tiles, where it has some, and without clusters; `mma` also with tiles by the copy
/// engine, where that has some.
fn families(device: &Device) -> Vec<Family> {
    let names = |family| match family {
        TensorCoreFamily::Mma => ("mma, narrow tiles", 17..=64, "mma, no clusters"),
        TensorCoreFamily::Wgmma => ("wgmma, narrow tiles", 17..=128, "wgmma, no clusters"),
    };
    let there = |family: TensorCoreFamily| {
        let usual = device.with_linear_family(family).ok()?;
        let (narrow, narrow_rows, apart) = names(family);
        let (without_wide, without_clusters) =
            (usual.with_wide_tiles_from(u32::MAX), usual.with_clusters(false));
        let bulk = usual.with_bulk_tiles().ok().filter(|_| family == TensorCoreFamily::Mma);
        let mut all = vec![
            (family.name(), usual, 1..=usize::MAX),
            (narrow, without_wide, narrow_rows),
            (apart, without_clusters, 1..=256),
        ];
        all.extend(bulk.map(|bulk| ("mma, bulk copies", bulk, 1..=128)));
        Some(all)
    };
    TensorCoreFamily::ALL.into_iter().filter_map(there).flatten().collect()
}

/// The weights of the model's list, those that matter most at the usual numbers of rows first; families of one shape are neighbours.
pub fn linear(setting: &Setting) -> Vec<Entry> {
    let families = families(&setting.device);
    let (model, mut entries) = (setting.model, Vec::new());
    for shape in model.linears {
        for &rows in model.steps {
            for (family, device, _) in families.iter().filter(|(.., measured)| measured.contains(&rows)) {
                let LinearShape { model: of, layer, n, k, rank, .. } = *shape;
                let usual = model.widths.contains(&rows);
                let json = serde_json::json!({
                    "family": "linear", "model": of, "layer": layer, "rows": rows, "n": n, "k": k,
                    "out": if shape.f32_out { "f32" } else { "bf16" }, "gated": is_gated(shape),
                    "instructions": family,
                });
                let name = format!("linear {of} {layer} T={rows} N={n} K={k} {family}");
                let rank = if usual { rank } else { rank + 2 };
                let device = device.clone();
                let build = move |setting: &Setting| linear_case(setting, device.clone(), shape, rows);
                entries.push(Entry::new(rank, name, json, build));
            }
        }
    }
    entries
}

fn linear_case(setting: &Setting, device: Device, shape: &LinearShape, rows: usize) -> Result<Case> {
    let &LinearShape { n, k, f32_out, .. } = shape;
    let (gated, dtype) = (is_gated(shape), if f32_out { DType::F32 } else { DType::Bf16 });
    let out = setting.uninit(dtype, &[rows, if gated { n / 2 } else { n }])?;
    let x = setting.random(0, &[rows, k]);
    let workspace = LinearWorkspace::new(&setting.device, rows, [(n, k)], 0)?;
    let read = out.clone();
    let weights: Vec<Tensor> = (0..64).map(|i| setting.random(i, &[n, k])).collect();
    let checked_rows = if gated { 2 * GATE_ROWS } else { 8 };
    let (last_x, first_weights) = (setting.values((rows - 1) * k, k), setting.values(0, checked_rows * k));
    Ok(Case {
        bytes: (2 * n * k + 2 * rows * k) as f64 + out.num_bytes() as f64,
        flops: (2 * rows * n * k) as f64,
        launch: Box::new(move |i| {
            let weight = &weights[i % weights.len()];
            let args = LinearArgs { x: &x, weight, bias: None, out: &out, workspace: &workspace };
            if gated { linear_swiglu(&device, args) } else { multiply(&device, args) }
        }),
        check: Box::new(move || {
            let got = match f32_out {
                true => read.rows(rows - 1..rows).to_vec::<f32>()?,
                false => row(&read, rows - 1)?,
            };
            let mut want = reference::linear::linear(&last_x, &first_weights, None, k);
            if gated {
                want = reference::swiglu::swiglu(&want, GATE_ROWS);
            }
            near("linear", &got[..8], &want);
            Ok(())
        }),
    })
}

/// Whether SwiGLU sits behind the weight.
fn is_gated(shape: &LinearShape) -> bool {
    shape.layer == "gate_up"
}
