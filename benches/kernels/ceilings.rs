//! What the machine allows at best, and what launching, waiting and deciding cost when nothing is computed.

use std::time::Instant;

use smart_run::Result;
use smart_run::device::{Branch, ConditionalGraph, DType, Device, Event, PinnedBuffer, Tensor};
use smart_run::kernels::ceilings::{PIECE, ReadArgs, Reader, count_down, empty, read};
use smart_run::kernels::host_words::fetch_words;
use smart_run::kernels::mailbox::Mailbox;

use super::measure::{Timing, span, time_graph};
use super::setting::Setting;

/// Launches of a graph whose kernels do nothing.
const EMPTY: usize = 200;
/// Conditional nodes of a graph.
const BRANCHES: usize = 20;
/// Reads of all words in a graph, on a GPU: what comes before the first is little beside them.
const READS: usize = 8;
/// Reads of a chain.
const LINKS: usize = 64;

/// One ceiling: what was done in `timing`, and how many bytes that moved (0 where none are meant).
pub struct Ceiling {
    pub name: String,
    pub timing: Timing,
    pub bytes: f64,
}

/// GB/s that other rows are related to.
pub struct Rates {
    /// The driver's own copy, bytes read and written.
    pub copy: f64,
    /// The fastest read.
    pub read: f64,
}

/// Sizes that a GPU needs to show its best, and the host driver to be done soon.
struct Sizes {
    grids: &'static [usize],
    /// Bytes that fit L2 with room to spare.
    l2_bytes: usize,
    l2_passes: usize,
    loops: usize,
}

const GPU: Sizes = Sizes { grids: &[264, 528, 1056, 2112], l2_bytes: 24 << 20, l2_passes: 40, loops: 1000 };
const HOST: Sizes = Sizes { grids: &[4], l2_bytes: 1 << 17, l2_passes: 2, loops: 10 };

/// Measures all of them; `report` gets each as it comes, or why there is none.
pub fn ceilings(
    setting: &Setting,
    report: &mut dyn FnMut(&str, Result<Ceiling>) -> Result<()>,
) -> Result<Rates> {
    let (device, sizes) = (&setting.device, if setting.device.is_host() { &HOST } else { &GPU });
    let rate = |ceiling: &Ceiling| ceiling.bytes / ceiling.timing.median / 1e3;
    let (timing, bytes) = setting.copy()?;
    let copy = Ceiling { name: "copy by the driver".into(), timing, bytes };
    let mut rates = Rates { copy: rate(&copy), read: 0.0 };
    report("copy", Ok(copy))?;

    let words = setting.words()?;
    let has_bulk_copies = device.with_bulk_tiles().is_ok();
    let mut readers = vec![(Reader::Registers, "registers"), (Reader::Shared, "cp.async")];
    readers.extend(has_bulk_copies.then_some((Reader::Bulk, "bulk copies")));
    for (reader, what) in readers {
        for &blocks in sizes.grids {
            let name = format!("read through {what}, {blocks} blocks");
            let bytes = words.num_bytes() as f64;
            let ceiling = whole_read(device, reader, &words, blocks, 1);
            let ceiling = ceiling.map(|timing| Ceiling { name, timing, bytes });
            rates.read = ceiling.as_ref().map_or(rates.read, |ceiling| rates.read.max(rate(ceiling)));
            report("read", ceiling)?;
        }
    }
    let small = words.rows(0..sizes.l2_bytes / 4);
    for &blocks in sizes.grids {
        let timing = whole_read(device, Reader::Registers, &small, blocks, sizes.l2_passes);
        let bytes = (small.num_bytes() * sizes.l2_passes) as f64;
        let name = format!("read of {} KiB from L2, {blocks} blocks", sizes.l2_bytes >> 10);
        report("L2 read", timing.map(|timing| Ceiling { name, timing, bytes }))?;
    }

    let mut overhead = |name: &str, timing: Result<Timing>| {
        let ceiling = timing.map(|timing| Ceiling { name: name.into(), timing, bytes: 0.0 });
        report(name, ceiling)
    };
    let empties = |overlaps| (0..EMPTY).try_for_each(|_| empty(device, overlaps));
    let plain = device.capture(|| empties(false)).and_then(|graph| time_graph(device, &graph, EMPTY));
    overhead("empty kernel of a graph", plain)?;
    let programmatic = device.capture(|| empties(true)).and_then(|graph| time_graph(device, &graph, EMPTY));
    overhead("empty kernel of a graph, programmatic edges", programmatic)?;
    overhead("replay of a graph of one empty kernel", {
        device.capture(|| empty(device, false)).and_then(|graph| time_graph(device, &graph, 1))
    })?;

    // A link reads what fits between two launches of a pass; all links together more than L2 holds.
    let link = words.shape()[0] / LINKS / PIECE * PIECE;
    let out = Tensor::uninit(device, DType::I32, &[sizes.grids[0]])?;
    let one = |x: &Tensor, overlaps| {
        read(device, Reader::Registers, &ReadArgs { x, out: &out, passes: 1, shift: 0, overlaps })
    };
    let chain = |overlaps| (0..LINKS).try_for_each(|i| one(&words.rows(i * link..(i + 1) * link), overlaps));
    let kib = link >> 8;
    let plain = device.capture(|| chain(false)).and_then(|graph| time_graph(device, &graph, LINKS));
    overhead(&format!("read of {kib} KiB in a chain"), plain)?;
    let programmatic = device.capture(|| chain(true)).and_then(|graph| time_graph(device, &graph, LINKS));
    overhead(&format!("read of {kib} KiB in a chain, programmatic edges"), programmatic)?;
    let whole = device.capture(|| one(&words.rows(0..LINKS * link), false));
    overhead(
        &format!("read of {kib} KiB as a share of one launch"),
        whole.and_then(|graph| time_graph(device, &graph, LINKS)),
    )?;

    overhead("two events, nothing between", repeat(|| span(device, || Ok(()))))?;
    overhead("event recorded and waited for, host's clock", round_trip(device))?;
    for (by_kernel, how) in [(false, "copied by the driver"), (true, "by a kernel")] {
        overhead(&format!("2 KiB to the host {how}, host's clock"), words_back(device, by_kernel))?;
        overhead(&format!("2 KiB to the device {how}, host's clock"), words_there(device, by_kernel))?;
    }

    for (name, branch, at_launch) in [
        ("if, taken, one empty kernel", Branch::If, 1),
        ("if, not taken", Branch::If, 0),
        ("switch of four, one empty kernel", Branch::Switch(4), 2),
        ("while, not entered", Branch::While, 0),
    ] {
        overhead(name, branches(device, branch, at_launch))?;
    }
    overhead("round of a while, one kernel", rounds(device, sizes.loops))?;
    Ok(rates)
}

fn whole_read(device: &Device, reader: Reader, x: &Tensor, blocks: usize, passes: usize) -> Result<Timing> {
    let out = Tensor::uninit(device, DType::I32, &[blocks])?;
    let reads = if device.is_host() { 1 } else { READS };
    // Any shift that shares no factor with the grids.
    let args = ReadArgs { x, out: &out, passes, shift: 37, overlaps: false };
    // Once before it is captured: an image that is not loaded yet would be then.
    read(device, reader, &args)?;
    let graph = device.capture(|| (0..reads).try_for_each(|_| read(device, reader, &args)))?;
    time_graph(device, &graph, reads)
}

/// The time of one node of many, the same body behind each.
fn branches(device: &Device, branch: Branch, at_launch: u32) -> Result<Timing> {
    let mut graph = ConditionalGraph::new(device)?;
    for _ in 0..BRANCHES {
        graph.branch(branch, at_launch, |_, _| empty(device, false))?;
    }
    time_graph(device, &graph.finish()?, BRANCHES)
}

/// A round of a loop, from many and few of them.
fn rounds(device: &Device, many: usize) -> Result<Timing> {
    let counter = Tensor::uninit(device, DType::I32, &[1])?;
    let start = Tensor::from_slice(device, &[many as i32], &[1])?;
    let mut graph = ConditionalGraph::new(device)?;
    count_down(device, &mut graph, &counter)?;
    let graph = graph.finish()?;
    repeat(|| {
        counter.copy_from(&start)?;
        Ok(span(device, || graph.launch())? / many as f64)
    })
}

fn round_trip(device: &Device) -> Result<Timing> {
    let event = Event::new(device)?;
    repeat(|| {
        let start = Instant::now();
        event.record()?;
        event.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    })
}

/// Words that cross the bus in one go: 2 KiB.
const WORDS: usize = 512;

/// An empty kernel, and words that come back behind it: by a copy that the driver waits for, or posted to a host that watches.
fn words_back(device: &Device, by_kernel: bool) -> Result<Timing> {
    let words = Tensor::zeros(device, DType::I32, &[WORDS])?;
    let (mut host, mut mailbox) = (PinnedBuffer::<i32>::new(device, WORDS)?, Mailbox::new(device, WORDS)?);
    repeat(|| {
        let start = Instant::now();
        empty(device, false)?;
        if by_kernel {
            mailbox.post(&words, WORDS)?;
            mailbox.wait()?;
        } else {
            host.read_from(&words, WORDS)?;
            device.synchronize()?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6)
    })
}

/// Words that go to the device, and the host hears that they are there.
fn words_there(device: &Device, by_kernel: bool) -> Result<Timing> {
    let words = Tensor::zeros(device, DType::I32, &[WORDS])?;
    let (host, mut mailbox) = (PinnedBuffer::<i32>::new(device, WORDS)?, Mailbox::new(device, 0)?);
    let mapped = host.mapped();
    repeat(|| {
        let start = Instant::now();
        match by_kernel {
            true => fetch_words(device, &mapped, &words)?,
            false => host.write_to(&words, WORDS)?,
        }
        mailbox.post(&words, 0)?;
        mailbox.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    })
}

fn repeat(mut once: impl FnMut() -> Result<f64>) -> Result<Timing> {
    once()?;
    let times = (0..50).map(|_| once()).collect::<Result<Vec<f64>>>()?;
    Ok(Timing::of(times, 1))
}
