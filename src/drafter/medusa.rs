//! Medusa heads (Cai et al., *Medusa*, arXiv 2401.10774, and their published checkpoints): heads on the target's last hidden state, each of
//! which guesses the token some places further on.
//!
//! The state is that of the position before the root, behind the final norm: the target's own head drew the root from it, and head i
//! scores the token i + 1 places behind the root. A head is residual blocks `x + SiLU(W x + b)`, then a linear layer without bias. What was
//! drafted before does not enter: all nodes of a level have the same children, and a path's probability is the product over its levels.
//! So one pass a round knows every level, and a tree is never deeper than there are heads.
//!
//! The authors' *typical acceptance* keeps tokens that the target did not draw. It changes the text's distribution, so it is not here: heads
//! are verified as every drafter is.

use crate::config::{MedusaConfig, ModelConfig};
use crate::device::{DType, Device, Tensor};
use crate::drafter::{HotTokens, Scores};
use crate::error::Result;
use crate::kernels::linear::{LinearArgs, LinearWorkspace, head, linear};
use crate::kernels::silu_residual::{SiluResidualArgs, silu_residual};
use crate::model::WeightLoader;

/// Medusa heads on a device.
pub struct Medusa {
    device: Device,
    dtype: DType,
    config: MedusaConfig,
    /// The one tapped stream: the target's final norm.
    tap_layers: [usize; 1],
    /// First blocks of all heads: `[heads * hidden, hidden]` and `[heads * hidden]`.
    first: (Tensor, Tensor),
    /// Later blocks, by block and head.
    later: Vec<Vec<(Tensor, Tensor)>>,
    /// `[draft vocab, hidden]` each.
    last: Vec<Tensor>,
    /// Offset from draft id to target id, i32 `[draft vocab]`; `None` when both vocabularies are one.
    d2t: Option<Tensor>,
    buffers: Option<Buffers>,
}

/// Activations of a pass of `rows` rows.
struct Buffers {
    /// `[rows, heads * hidden]`, head by head in columns.
    states: Tensor,
    linears: Tensor,
    /// `[heads * rows, ..]`, head by head in rows.
    scores: Scores,
    workspace: LinearWorkspace,
}

impl Medusa {
    /// Loads heads for `target`.
    pub fn load(
        loader: &mut WeightLoader,
        config: MedusaConfig,
        target: &ModelConfig,
        hot: Option<&HotTokens>,
    ) -> Result<Self> {
        let MedusaConfig { prefix, num_heads, num_blocks, hidden_size, vocab_size } = config;
        let (device, checkpoint) = (loader.device, loader.checkpoint);
        let name = |head: usize, block: usize, part: &str| format!("{prefix}{head}.{block}.{part}");
        let mut blocks = |heads: std::ops::Range<usize>, block: usize| -> Result<(Tensor, Tensor)> {
            let sizes = vec![hidden_size; heads.len()];
            let names = |part| heads.clone().map(|head| name(head, block, part)).collect::<Vec<_>>();
            let (weights, biases) = (names("linear.weight"), names("linear.bias"));
            let [weights, biases] =
                [&weights, &biases].map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
            Ok((loader.stacked(&weights, &sizes, hidden_size)?, loader.vector(&biases, &sizes)?))
        };
        let first = blocks(0..num_heads, 0)?;
        let later = (1..num_blocks)
            .map(|block| (0..num_heads).map(|head| blocks(head..head + 1, block)).collect())
            .collect::<Result<_>>()?;
        let last = (0..num_heads)
            .map(|head| {
                let all = loader.matrix(&name(head, num_blocks, "weight"), vocab_size, hidden_size)?;
                hot.map_or(Ok(all.clone()), |tokens| tokens.cut(device, &all, checkpoint))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            d2t: hot.map(|tokens| tokens.d2t(device)).transpose()?,
            device: device.clone(),
            dtype: loader.float_type.into(),
            tap_layers: [target.geometry.num_layers],
            first,
            later,
            last,
            buffers: None,
            config,
        })
    }

    /// Sizes the activations for passes of at most `max_rows` rows.
    pub fn prepare(&mut self, max_rows: usize) -> Result<()> {
        let MedusaConfig { num_heads, hidden_size, .. } = self.config;
        let vocab_size = self.draft_vocab_size();
        let width = num_heads * hidden_size;
        let shapes = [(width, hidden_size), (hidden_size, hidden_size), (vocab_size, hidden_size)];
        let buffer = |dtype, shape: &[usize]| Tensor::uninit(&self.device, dtype, shape);
        self.buffers = Some(Buffers {
            states: buffer(self.dtype, &[max_rows, width])?,
            linears: buffer(self.dtype, &[max_rows, width])?,
            scores: Scores::new(&self.device, num_heads * max_rows, vocab_size)?,
            workspace: LinearWorkspace::new(&self.device, max_rows, shapes, 0)?,
        });
        Ok(())
    }

    /// The scores `[heads * rows, ..]` of the first `heads` heads after the states `features[rows, hidden]`, head by head.
    pub fn forward(&self, features: &Tensor, heads: usize) -> Result<Scores> {
        let buffers = self.buffers.as_ref().expect("prepare comes before passes");
        let (rows, hidden) = (features.dim(0), self.config.hidden_size);
        let (device, workspace) = (&self.device, &buffers.workspace);
        let [states, linears] =
            [&buffers.states, &buffers.linears].map(|all| all.rows(0..rows).columns(0..heads * hidden));
        let (weight, bias) = (self.first.0.rows(0..heads * hidden), self.first.1.rows(0..heads * hidden));
        linear(
            device,
            LinearArgs { x: features, weight: &weight, bias: Some(&bias), out: &linears, workspace },
        )?;
        silu_residual(device, SiluResidualArgs { x: features, y: &linears, out: &states })?;
        let columns = |head: usize| head * hidden..(head + 1) * hidden;
        for block in &self.later {
            for (head, (weight, bias)) in block.iter().enumerate().take(heads) {
                let [state, out] = [&states, &linears].map(|all| all.columns(columns(head)));
                linear(device, LinearArgs { x: &state, weight, bias: Some(bias), out: &out, workspace })?;
                silu_residual(device, SiluResidualArgs { x: &state, y: &out, out: &state })?;
            }
        }
        for (index, weight) in self.last.iter().enumerate().take(heads) {
            let Scores { logits: out, digests, .. } = &buffers.scores.rows(index * rows..(index + 1) * rows);
            let x = &states.columns(columns(index));
            head(device, LinearArgs { x, weight, bias: None, out, workspace }, digests)?;
        }
        Ok(buffers.scores.rows(0..heads * rows))
    }

    /// The weight that a pass reads first.
    pub fn first_weight(&self) -> &Tensor {
        &self.first.0
    }

    /// Heads, and levels of the deepest tree.
    pub fn num_heads(&self) -> usize {
        self.config.num_heads
    }

    /// The target's streams that it reads, as [`Taps`](crate::model::Taps) names them.
    pub fn tap_layers(&self) -> &[usize] {
        &self.tap_layers
    }

    /// Columns of a row of taps.
    pub fn tap_width(&self) -> usize {
        self.config.hidden_size
    }

    /// Offsets from draft ids to target ids, i32 `[draft vocab]`; `None` when both vocabularies are one.
    pub fn d2t(&self) -> Option<&Tensor> {
        self.d2t.as_ref()
    }

    /// Logits of a row.
    pub fn draft_vocab_size(&self) -> usize {
        self.last[0].dim(0)
    }

    /// Type of weights and states.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;
    use crate::config::{FloatType, ModelSource};
    use crate::device::DeviceChoice;
    use crate::weights::Checkpoint;

    fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
        let bytes = tensors.tensor(name).expect("the golden has it").data().to_vec();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// All prompts' states in one pass, against PyTorch: one block in either kind of file, two blocks with a shared last layer.
    #[test]
    fn logits_of_every_head_are_those_of_pytorch() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let device = Device::open(DeviceChoice::Auto).expect("the host driver at least");
        let demo = golden.join("../../assets/demo/target");
        for (case, folder, target, heads) in [
            ("medusa_random", "drafter", golden.join("llama31_gqa"), 4),
            ("medusa_random", "drafter_safetensors", golden.join("llama31_gqa"), 4),
            ("medusa_demo", "drafter", demo, 3),
        ] {
            let source = ModelSource::from(golden.join(case).join(folder));
            let target = ModelConfig::from_hf(&ModelSource::from(target)).expect("a target");
            let checkpoint = Checkpoint::open(&source).expect("weights");
            let tensors = checkpoint.tensors().map(|tensor| (tensor.name, tensor.shape));
            let config = MedusaConfig::from_hf(&source, tensors, &target).expect("a config");
            let (hidden, vocab) = (config.hidden_size, config.vocab_size);
            let progress = &mut |_, _| ();
            let mut loader = WeightLoader::new(&device, &checkpoint, FloatType::F32, progress);
            let mut medusa = Medusa::load(&mut loader, config, &target, None).expect("heads");
            medusa.prepare(4).expect("memory");
            assert_eq!(medusa.num_heads(), heads, "{case}");
            let expected = std::fs::read(golden.join(case).join("expected.safetensors")).expect("a file");
            let expected = SafeTensors::deserialize(&expected).expect("safetensors");
            let features: Vec<f32> =
                (0..3).flat_map(|prompt| floats(&expected, &format!("features.{prompt}"))).collect();
            let features = Tensor::from_slice(&device, &features, &[3, hidden]).expect("memory");
            for asked in [heads, 1] {
                let scores = medusa.forward(&features, asked).expect("a pass");
                let logits = scores.logits.to_vec::<f32>().expect("a pass");
                for prompt in 0..3 {
                    let want = floats(&expected, &format!("head_logits.{prompt}"));
                    let scale = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                    for head in 0..asked {
                        let got = &logits[(head * 3 + prompt) * vocab..][..vocab];
                        let want = &want[head * vocab..][..vocab];
                        let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                        assert!(
                            worst <= 1e-4 * scale,
                            "{case}/{folder}, prompt {prompt}, head {head}: {worst}"
                        );
                    }
                }
            }
        }
    }
}
