//! Thread block clusters: blocks of a launch that run at the same time and see each other's shared memory (Hopper).

use cudarc::driver::sys;

use super::launch::{Kernel, cluster_attribute, config};
use super::{Device, check};
use crate::error::Result;

/// Most blocks of a cluster.
pub const MAX_CLUSTER: usize = 16;
/// Most of a cluster that every GPU with clusters can run together; more are asked for kernel by kernel, and the GPU may have no room for them.
const PORTABLE_CLUSTER: u32 = 8;

/// A launch whose blocks could run in clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterLaunch {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Blocks of a cluster along each side of the grid.
    pub cluster: [u32; 3],
}

impl Device {
    /// Whether the launch is at least as soon through in clusters as without. The blocks of a cluster start together and on neighbouring
    /// multiprocessors, so that some of these may stay idle: clusters are for launches that take no more turns for it. False where the GPU has no
    /// clusters, the image is for one that has none, or `SMART_CLUSTERS=0`.
    ///
    /// # Errors
    /// The kernel is unknown, or the driver fails.
    pub(crate) fn runs_clusters(&self, kernel: &str, launch: ClusterLaunch) -> Result<bool> {
        if !self.families.clusters {
            return Ok(false);
        }
        self.bind()?;
        let found = self.kernel(kernel, launch.shared_bytes)?;
        let key = (found.function as usize, launch);
        let mut answers = self.inner.clusters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(&answer) = answers.get(&key) {
            return Ok(answer);
        }
        let answer = self.ask_clusters(&found, &launch)?;
        answers.insert(key, answer);
        Ok(answer)
    }

    fn ask_clusters(&self, kernel: &Kernel, launch: &ClusterLaunch) -> Result<bool> {
        let ClusterLaunch { grid, threads, shared_bytes, cluster } = *launch;
        let size = cluster.iter().product::<u32>();
        let whole = grid.iter().zip(cluster).all(|(blocks, along)| blocks.is_multiple_of(along));
        if !kernel.runs_on_hopper || !whole || size as usize > MAX_CLUSTER || !self.has_clusters()? {
            return Ok(false);
        }
        if size > PORTABLE_CLUSTER {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
            // SAFETY: the function handle is live; the attribute takes 0 or 1.
            let status = unsafe { sys::cuFuncSetAttribute(kernel.function, attribute, 1) };
            check("cuFuncSetAttribute", status)?;
        }
        let mut attributes = [cluster_attribute(cluster)];
        let config = config(grid, [threads, 1, 1], shared_bytes, self.stream(), &mut attributes);
        let (mut clusters, mut blocks) = (0, 0);
        // SAFETY: the function handle is live; `config` and the attribute it points to outlive the call, which fills `clusters`.
        let status = unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, kernel.function, &config) };
        // Some GPUs launch clusters, but none of this size.
        if status == sys::CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE {
            return Ok(false);
        }
        check("cuOccupancyMaxActiveClusters", status)?;
        let (threads, shared_bytes) = (threads as i32, shared_bytes as usize);
        // SAFETY: the function handle is live; `blocks` receives the number.
        let status = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                kernel.function,
                threads,
                shared_bytes,
            )
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", status)?;
        let multiprocessors =
            self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let at_once = [clusters, blocks * multiprocessors].map(|count| count.max(0) as u32);
        Ok(takes_no_more_turns(grid.iter().product(), size, at_once))
    }

    fn has_clusters(&self) -> Result<bool> {
        Ok(self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH)? != 0)
    }

    pub(super) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: the device handle is live; `value` receives the number.
        let status =
            unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.inner.context.cu_device()) };
        check("cuDeviceGetAttribute", status)?;
        Ok(value)
    }
}

/// Whether `blocks` of a launch that run in clusters of `size`, so many clusters at once, take no more turns than so many blocks at once do.
fn takes_no_more_turns(blocks: u32, size: u32, [clusters_at_once, blocks_at_once]: [u32; 2]) -> bool {
    clusters_at_once > 0
        && (blocks / size).div_ceil(clusters_at_once) <= blocks.div_ceil(blocks_at_once.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceChoice;

    #[test]
    fn clusters_are_for_launches_that_take_no_more_turns() {
        // 132 multiprocessors with a block each, in groups of 16 to 18: sixteen clusters of eight at once.
        assert!(takes_no_more_turns(128, 8, [16, 132]));
        assert!(!takes_no_more_turns(128, 8, [15, 132]), "the last cluster would wait for all others");
        assert!(takes_no_more_turns(256, 8, [16, 132]), "two turns either way");
        assert!(!takes_no_more_turns(8, 8, [0, 132]), "none fits");
    }

    #[test]
    fn only_whole_clusters_of_a_possible_size_run() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let runs = |device: &Device, cluster| {
            let launch = ClusterLaunch { grid: [1, 32, 16], threads: 128, shared_bytes: 96 << 10, cluster };
            device.runs_clusters("linear_bf16_t128", launch).unwrap()
        };
        assert!(runs(&device, [1, 1, 8]) && runs(&device, [1, 4, 2]));
        assert!(
            runs(&device, [1, 1, 16]) && runs(&device, [1, 2, 8]),
            "not every GPU has them, this one has"
        );
        assert!(!runs(&device, [1, 1, 3]), "the grid is not made of whole clusters");
        assert!(!runs(&device, [1, 2, 16]), "more than any GPU has");
        assert!(!runs(&device.with_clusters(false), [1, 1, 8]));
    }
}
