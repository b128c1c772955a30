//! Conformance kernels of the device primitives, for tests. See `kernels/prims_check.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// A conformance kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Rounding to 16 bits and back, alone and in pairs.
    Conversions,
    /// `exp2_approx`.
    Exp2,
    /// `mma` of bf16.
    MmaBf16,
    /// `mma` of f16.
    MmaF16,
    /// `wgmma` of bf16, so wide: 8, 16, 32, 64, 128 or 256. On Hopper, and on the host driver.
    WgmmaBf16(usize),
    /// `wgmma` of f16.
    WgmmaF16(usize),
    /// `ldmatrix`, plain and transposed.
    Ldmatrix,
    /// Groups of asynchronous copies, some of them invalid.
    CpAsync,
    /// Barriers of some warps.
    NamedBarrier,
    /// Shuffles, votes, reductions and bit counts.
    Warp,
}

impl Check {
    /// Kernel, threads of its one block, words it reads, words it writes.
    fn launch(self) -> (String, u32, usize, usize) {
        let (name, threads, num_inputs, num_outputs) = match self {
            Check::Conversions => ("prims_conversions", 128, 128, 1280),
            Check::Exp2 => ("prims_exp2", 128, 128, 128),
            Check::MmaBf16 => ("prims_mma_bf16", 32, 320, 128),
            Check::MmaF16 => ("prims_mma_f16", 32, 320, 128),
            Check::WgmmaBf16(width) => {
                ("prims_wgmma_bf16_n", 128, (64 + width) * 32 + 64 * width, 64 * width)
            }
            Check::WgmmaF16(width) => ("prims_wgmma_f16_n", 128, (64 + width) * 32 + 64 * width, 64 * width),
            Check::Ldmatrix => ("prims_ldmatrix", 32, 128, 256),
            Check::CpAsync => ("prims_cp_async", 64, 768, 768),
            Check::NamedBarrier => ("prims_named_barrier", 128, 128, 128),
            Check::Warp => ("prims_warp", 32, 32, 512),
        };
        let width = self.wgmma_width().map_or(String::new(), |width| width.to_string());
        (format!("{name}{width}"), threads, num_inputs, num_outputs)
    }

    fn wgmma_width(self) -> Option<usize> {
        match self {
            Check::WgmmaBf16(width) | Check::WgmmaF16(width) => Some(width),
            _ => None,
        }
    }

    /// Words of its input.
    pub fn num_inputs(self) -> usize {
        self.launch().2
    }
}

/// What `check` gives for `input`, both as 32-bit words. Waits for it.
///
/// # Errors
/// [`crate::Error::Shape`] if the number of words is not [`Check::num_inputs`]; a failure of the launch.
pub fn prims_check(device: &Device, check: Check, input: &[u32]) -> Result<Vec<u32>> {
    let (kernel, threads, num_inputs, num_outputs) = check.launch();
    let input = Tensor::from_slice::<i32>(device, bytemuck::cast_slice(input), &[input.len()])?;
    let out = Tensor::uninit(device, DType::I32, &[num_outputs])?;
    Dims::new("prims_check").fix("words", num_inputs).dense("input", &input, DType::I32, &["words"])?;
    let args = LaunchArgs::new().ptr(&input).ptr(&out);
    // The tiles of `wgmma`: 64 rows of the left factor and one a column of the right, of 128 bytes.
    let shared_bytes = check.wgmma_width().map_or(0, |width| (64 + width) * 128);
    // SAFETY: arguments in the order of prims_check.cu; the kernel reads `num_inputs` and writes `num_outputs` words with
    // these threads, and both tensors have as many; tiles of `wgmma` fit the shared memory.
    unsafe { device.launch(&kernel, [1, 1, 1], [threads, 1, 1], shared_bytes as u32, &args)? };
    Ok(out.to_vec::<i32>()?.into_iter().map(|word| word as u32).collect())
}
