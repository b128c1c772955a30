//! Conformance kernels of the device primitives, for tests. See `kernels/prims_check.cu`.

use super::shape::Dims;
use crate::device::{ClusterLaunch, DType, Device, LaunchArgs, Tensor, TensorMap};
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
    /// `wgmma` of bf16 or f16. On Hopper, and on the host driver.
    Wgmma(WgmmaForm, DType, usize),
    /// Boxes of a matrix, [`BULK_ROWS`] rows of [`BULK_COLUMNS`] 16-bit elements [`BULK_STRIDE`] apart, by bulk copies through two slots. On
    /// Hopper, and on the host driver, as what follows.
    BulkLoad,
    /// A tile filled by boxes of four rows.
    BulkParts,
    /// Boxes that so many blocks of a cluster bring to each other: 2 or 4.
    BulkMulticast(usize),
    /// `wgmma` of 32 columns whose tiles bulk copies bring, of bf16 or f16; words as of [`Check::Wgmma`].
    BulkWgmma(DType),
    /// `ldmatrix`, plain and transposed.
    Ldmatrix,
    /// Groups of asynchronous copies, some of them invalid.
    CpAsync,
    /// Barriers of some warps.
    NamedBarrier,
    /// Shared memory of other blocks. Where the device has thread block clusters.
    Cluster,
    /// Shuffles, votes, reductions and bit counts.
    Warp,
}

/// Where the factors of a `wgmma` are, and how wide it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WgmmaForm {
    /// Both in tiles, with rows of 128 bytes; 8, 16, 32, 64, 128 or 256 columns.
    Tiles,
    /// Both in tiles, with rows of 64 bytes; 64 columns.
    NarrowTiles,
    /// A in registers, B in a tile with K along its rows; 32, 64, 96 or 128 columns.
    Along,
    /// A in registers, B in a tile with K across its rows; 32, 64, 96 or 128 columns.
    Across,
}

/// Rows of the matrix of [`Check::BulkLoad`]: boxes of 16 from row -4 on reach beyond it.
pub const BULK_ROWS: usize = 54;
/// Its columns: boxes of 64 from column -8 on reach beyond it.
pub const BULK_COLUMNS: usize = 147;
/// Elements from one of its rows to the next.
pub const BULK_STRIDE: usize = 160;

impl WgmmaForm {
    /// Every form with its widths.
    pub const ALL: [(Self, &[usize]); 4] = [
        (Self::Tiles, &[8, 16, 32, 64, 128, 256]),
        (Self::NarrowTiles, &[64]),
        (Self::Along, &[32, 64, 96, 128]),
        (Self::Across, &[32, 64, 96, 128]),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Tiles => "tiles",
            Self::NarrowTiles => "narrow_tiles",
            Self::Along => "along",
            Self::Across => "across",
        }
    }
}

impl Check {
    /// Kernel, threads of a block, words it reads, words it writes.
    fn launch(self) -> (String, u32, usize, usize) {
        let (name, threads, num_inputs, num_outputs) = match self {
            Check::Conversions => ("prims_conversions", 128, 128, 1280),
            Check::Exp2 => ("prims_exp2", 128, 128, 128),
            Check::MmaBf16 => ("prims_mma_bf16", 32, 320, 128),
            Check::MmaF16 => ("prims_mma_f16", 32, 320, 128),
            Check::Wgmma(form, dtype, width) => {
                let dtype = if dtype == DType::F16 { "f16" } else { "bf16" };
                let name = format!("prims_wgmma_{dtype}_{}_n{width}", form.name());
                return (name, 128, (64 + width) * 32 + 64 * width, 64 * width);
            }
            Check::BulkLoad => ("prims_bulk_load", 96, BULK_ROWS * BULK_STRIDE / 2, 64 * 192 / 2),
            Check::BulkParts => ("prims_bulk_parts", 32, 16 * 32, 16 * 32),
            Check::BulkMulticast(blocks) => ("prims_bulk_multicast", 64, 96 * 32, blocks * 96 * 32),
            Check::BulkWgmma(dtype) => {
                let (_, threads, num_inputs, num_outputs) =
                    Check::Wgmma(WgmmaForm::Tiles, dtype, 32).launch();
                return (format!("prims_bulk_wgmma_{}", dtype.name()), threads, num_inputs, num_outputs);
            }
            Check::Ldmatrix => ("prims_ldmatrix", 32, 128, 256),
            Check::CpAsync => ("prims_cp_async", 64, 768, 768),
            Check::NamedBarrier => ("prims_named_barrier", 128, 128, 128),
            Check::Cluster => ("prims_cluster", 64, 4 * 64 * 4, 4 * 64 * 8),
            Check::Warp => ("prims_warp", 32, 32, 512),
        };
        (name.into(), threads, num_inputs, num_outputs)
    }

    /// Blocks, all of one cluster.
    fn num_blocks(self) -> u32 {
        match self {
            Check::Cluster => 4,
            Check::BulkMulticast(blocks) => blocks as u32,
            _ => 1,
        }
    }

    /// Whether the device can run it.
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn runs_on(self, device: &Device) -> Result<bool> {
        let (kernel, threads, ..) = self.launch();
        let grid = [self.num_blocks(), 1, 1];
        let launch = ClusterLaunch { grid, threads, shared_bytes: 0, cluster: grid };
        Ok(device.has_kernel(&kernel)?
            && (self.num_blocks() == 1 || device.runs_clusters(&kernel, launch)?))
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
    let matrix = |dtype, begin: usize, rows: usize, stride: usize| {
        input.rows(begin..begin + rows * stride / 2).retype(dtype, &[rows, stride])
    };
    let grid = [check.num_blocks(), 1, 1];
    let args = LaunchArgs::new().in_clusters(grid);
    let args = match check {
        Check::BulkLoad => {
            let matrix = matrix(DType::Bf16, 0, BULK_ROWS, BULK_STRIDE).columns(0..BULK_COLUMNS);
            args.tensor_map(&TensorMap::new(&matrix, 16)?)
        }
        Check::BulkMulticast(blocks) => {
            args.tensor_map(&TensorMap::new(&matrix(DType::Bf16, 0, 96, 64), 16 / blocks)?)
        }
        Check::BulkParts => args.tensor_map(&TensorMap::of_weights(&matrix(DType::F16, 0, 16, 64), 4)?),
        Check::BulkWgmma(dtype) => {
            let (a, b) = (matrix(dtype, 0, 64, 64), matrix(dtype, 64 * 32, 32, 64));
            let args = args.tensor_map(&TensorMap::new(&a, 64)?).tensor_map(&TensorMap::new(&b, 32)?);
            args.ptr(&input.rows((64 + 32) * 32..num_inputs))
        }
        _ => args.ptr(&input),
    };
    // The tiles of `wgmma`: 64 rows of the left factor and one a column of the right, of 128 bytes in all. Two tiles of 16 rows; one.
    let shared_bytes = match check {
        Check::Wgmma(_, _, width) => (64 + width) * 128,
        Check::BulkWgmma(_) => (64 + 32) * 128,
        Check::BulkLoad | Check::BulkMulticast(_) => 2 * 16 * 128,
        Check::BulkParts => 16 * 128,
        _ => 0,
    };
    // SAFETY: arguments in the order of prims_check.cu; the kernel reads `num_inputs` and writes `num_outputs` words with
    // these threads, and both tensors have as many; tiles of `wgmma` fit the shared memory.
    unsafe { device.launch(&kernel, grid, [threads, 1, 1], shared_bytes as u32, &args.ptr(&out))? };
    Ok(out.to_vec::<i32>()?.into_iter().map(|word| word as u32).collect())
}
