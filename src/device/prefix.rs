//! Beginnings of a piece of work: its first launches recorded and the rest left out, so that what each adds can be timed where it stands.

use std::cell::RefCell;

use super::{Device, Graph};
use crate::error::Result;

/// A kernel and how it was launched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelLaunch {
    /// Its name in the images.
    pub kernel: String,
    /// Blocks along each side of the grid.
    pub grid: [u32; 3],
    /// Threads along each side of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster along each side of the grid; ones without clusters.
    pub cluster: [u32; 3],
}

/// The launches of a recording that is cut short.
struct Counted {
    limit: usize,
    launches: Vec<KernelLaunch>,
}

thread_local! {
    /// Of the recording under way on this thread, if it is one of these.
    static COUNTED: RefCell<Option<Counted>> = const { RefCell::new(None) };
}

/// Ends the count also where what is recorded panics.
struct Counting;

impl Drop for Counting {
    fn drop(&mut self) {
        COUNTED.take();
    }
}

impl Device {
    /// As [`Device::capture`], but only the first `limit` launches of kernels are recorded, whatever else `work` issues. Also gives all launches, those
    /// that were left out, too, in order.
    ///
    /// # Errors
    /// As [`Device::capture`].
    pub fn capture_first(
        &self,
        limit: usize,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<(Graph, Vec<KernelLaunch>)> {
        COUNTED.set(Some(Counted { limit, launches: Vec::new() }));
        let _counting = Counting;
        let graph = self.capture(work)?;
        let launches = COUNTED.take().map(|counted| counted.launches).unwrap_or_default();
        Ok((graph, launches))
    }
}

/// Whether this launch is behind the last that is wanted; it is counted, if launches are.
#[inline]
pub(super) fn leaves_out(kernel: &str, [grid, block, cluster]: [[u32; 3]; 3]) -> bool {
    COUNTED.with_borrow_mut(|counted| {
        let Some(Counted { limit, launches }) = counted else { return false };
        launches.push(KernelLaunch { kernel: kernel.to_owned(), grid, block, cluster });
        launches.len() > *limit
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use crate::device::{Device, DeviceChoice, Tensor};
    use crate::kernels::host_words::fetch_words;

    #[test]
    fn the_first_launches_are_recorded_and_all_are_told() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let ints = |values: &[i32]| Tensor::from_slice(&device, values, &[values.len()]).unwrap();
        let (src, outs) = (ints(&[1, 2, 3]), [(); 3].map(|()| ints(&[0, 0, 0])));
        let copies = || outs.iter().try_for_each(|out| fetch_words(&device, &src, out));
        copies().unwrap();
        for limit in [0, 1, 3, 9] {
            outs.iter().for_each(|out| out.write(&[0, 0, 0]).unwrap());
            let (graph, launches) = device.capture_first(limit, copies).unwrap();
            graph.launch().unwrap();
            device.synchronize().unwrap();
            assert!(launches.len() == 3 && launches.iter().all(|launch| launch.kernel == "fetch_words"));
            for (index, out) in outs.iter().enumerate() {
                let there = if index < limit { [1, 2, 3] } else { [0, 0, 0] };
                assert_eq!(out.to_vec::<i32>().unwrap(), there, "copy {index}, limit {limit}");
            }
        }
        // Behind a recording that fails in any way all launches are made again.
        let fails = || device.capture_first(0, || panic!("on purpose")).map(drop);
        assert!(catch_unwind(AssertUnwindSafe(fails)).is_err());
        fetch_words(&device, &ints(&[4, 5, 6]), &outs[0]).unwrap();
        assert_eq!(outs[0].to_vec::<i32>().unwrap(), [4, 5, 6]);
    }
}
