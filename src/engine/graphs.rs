//! [`PassGraphs`]: passes of one shape become one graph, which costs the host a single launch and the GPU shorter gaps between
//! kernels. Everything that differs between passes of one shape is read from device memory.

use std::collections::HashMap;
use std::hash::Hash;

use crate::device::{Device, Graph};
use crate::engine::breakdown::{self, Parts};
use crate::error::Result;
use crate::model::PassShape;
use crate::switch::switch;

/// Shapes that are remembered, each a graph once it has come twice. The least recently used make room.
const MAX_SHAPES: usize = 96;

/// Graphs by shape of pass and by what else its launches depend on, `Kind`: of a target whether a drafter's features are tapped, of a drafter whether
/// tokens are committed and how many children are wanted. Passes come to an `Output`.
pub(super) struct PassGraphs<Kind, Output> {
    device: Device,
    shapes: HashMap<(PassShape, Kind), Known<Output>>,
    /// Passes so far.
    passes: u64,
    /// Whether the next pass is taken apart, and what that found.
    breaks_down: bool,
    parts: Option<Parts>,
}

/// A shape that has come before.
struct Known<Output> {
    last_used: u64,
    /// The pass, and what it comes to: memory that every replay writes.
    recorded: Option<(Graph, Output)>,
}

impl<Kind: Copy + Eq + Hash, Output: Clone> PassGraphs<Kind, Output> {
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), shapes: HashMap::new(), passes: 0, breaks_down: false, parts: None }
    }

    /// Issues `pass`, which launches the same for every pass of `shape`, if it has one; what it comes to, and whether its graph was made for it: then
    /// the device waited for the host. The first time a pass is just run: kernels are loaded then, which a recording must not do.
    ///
    /// # Errors
    /// Those of `pass`; the driver's, if it does not record or replay.
    pub fn run(
        &mut self,
        shape: Option<(PassShape, Kind)>,
        pass: impl Fn() -> Result<Output>,
    ) -> Result<(Output, bool)> {
        if std::mem::take(&mut self.breaks_down) {
            pass()?;
            self.parts = Some(breakdown::measure(&self.device, || pass().map(drop))?);
        }
        let Some(shape) = shape else { return Ok((pass()?, false)) };
        self.passes += 1;
        let Some(known) = self.shapes.get_mut(&shape) else {
            self.make_room();
            self.shapes.insert(shape, Known { last_used: self.passes, recorded: None });
            return Ok((pass()?, false));
        };
        known.last_used = self.passes;
        if let Some((graph, output)) = &known.recorded {
            graph.launch()?;
            return Ok((output.clone(), false));
        }
        let mut output = None;
        let graph = self.device.capture(|| {
            output = Some(pass()?);
            Ok(())
        })?;
        graph.launch()?;
        let (_, output) = known.recorded.insert((graph, output.expect("the recording went well")));
        Ok((output.clone(), true))
    }

    /// Has the next pass taken apart before it is run.
    pub fn break_down_next(&mut self) {
        self.breaks_down = true;
    }

    /// What the pass that was taken apart came to.
    pub fn take_parts(&mut self) -> Option<Parts> {
        self.parts.take()
    }

    /// Graphs that are kept.
    pub fn num_graphs(&self) -> usize {
        self.shapes.values().filter(|known| known.recorded.is_some()).count()
    }

    fn make_room(&mut self) {
        if self.shapes.len() < MAX_SHAPES {
            return;
        }
        let oldest = self.shapes.iter().min_by_key(|(_, known)| known.last_used).map(|(&shape, _)| shape);
        if let Some(oldest) = oldest {
            self.shapes.remove(&oldest);
        }
    }
}

/// Rows to which passes are filled up, so that few shapes come again and again, as graphs: what a GPU's kernels compute in one go. The
/// CPU pays for every row, and only one that is `SMART_GRAPHS` = 1 has it so. 0 goes without, for comparison.
///
/// # Errors
/// The variable says something else.
pub(super) fn pass_tread(device: &Device) -> Result<usize> {
    let wanted = switch("SMART_GRAPHS")?.unwrap_or(!device.is_host());
    Ok(if wanted { 8 } else { 1 })
}
