use smart_run::device::{Branch, ConditionalGraph, DType, Device, Tensor, TensorCoreFamily};
use smart_run::kernels::ceilings::{PIECE, ReadArgs, Reader, count_down, empty, read};
use smart_run::reference::ceilings::block_sums;

use crate::common::device::{device, has_all};
use crate::common::inputs::Rng;

fn words(device: &Device, seed: u64, count: usize) -> (Tensor, Vec<u32>) {
    let mut random = Rng::new(seed);
    let words: Vec<u32> = (0..count).map(|_| random.next() as u32).collect();
    let signed: Vec<i32> = words.iter().map(|&word| word as i32).collect();
    (Tensor::from_slice(device, &signed, &[count]).unwrap(), words)
}

/// The readers that the device has.
fn readers(device: &Device) -> Vec<Reader> {
    let mut readers = vec![Reader::Registers, Reader::Shared];
    match device.with_linear_family(TensorCoreFamily::Wgmma) {
        Ok(_) => readers.push(Reader::Bulk),
        Err(error) => {
            assert!(!has_all(device), "{error}");
            eprintln!("skipped: {} has no bulk copies", device.name());
        }
    }
    readers
}

fn sums(out: &Tensor) -> Vec<u32> {
    out.to_vec::<i32>().unwrap().into_iter().map(|word| word as u32).collect()
}

#[test]
fn every_word_is_read_so_often_as_asked() {
    let device = device();
    // Fewer pieces than blocks, more, and a shift that wraps around.
    for (pieces, blocks, passes, shift) in [(1, 3, 1, 0), (5, 2, 1, 0), (4, 3, 3, 2)] {
        let (x, host) = words(&device, pieces as u64, pieces * PIECE);
        let want = block_sums(&host, PIECE, blocks, passes, shift);
        for reader in readers(&device) {
            for mode in device.modes() {
                device.enter(mode);
                let out = Tensor::uninit(&device, DType::I32, &[blocks]).unwrap();
                read(&device, reader, &ReadArgs { x: &x, out: &out, passes, shift, overlaps: false })
                    .unwrap();
                assert_eq!(sums(&out), want, "{reader:?} {pieces} {blocks} {passes} {shift} {mode:?}");
            }
        }
    }
}

#[test]
fn reads_are_the_same_under_every_schedule() {
    let device = device();
    let (x, host) = words(&device, 9, 2 * PIECE);
    let want = block_sums(&host, PIECE, 2, 2, 1);
    for mode in device.schedules() {
        device.enter(mode);
        for reader in readers(&device) {
            let out = Tensor::uninit(&device, DType::I32, &[2]).unwrap();
            read(&device, reader, &ReadArgs { x: &x, out: &out, passes: 2, shift: 1, overlaps: false })
                .unwrap();
            assert_eq!(sums(&out), want, "{reader:?} {mode:?}");
        }
    }
}

/// Reads of different memory write to one place, and the last one's sum must stay.
#[test]
fn programmatic_chains_give_what_plain_ones_give() {
    let device = device();
    let links: Vec<(Tensor, Vec<u32>)> = (0..6).map(|seed| words(&device, seed, 2 * PIECE)).collect();
    let want = block_sums(&links[5].1, PIECE, 2, 1, 0);
    for mode in device.modes() {
        device.enter(mode);
        let out = Tensor::uninit(&device, DType::I32, &[2]).unwrap();
        let chain = || {
            links.iter().try_for_each(|(x, _)| {
                empty(&device, true)?;
                read(
                    &device,
                    Reader::Registers,
                    &ReadArgs { x, out: &out, passes: 1, shift: 0, overlaps: true },
                )
            })
        };
        let graph = device.capture(chain).unwrap();
        for _ in 0..3 {
            graph.launch().unwrap();
            assert_eq!(sums(&out), want, "{mode:?}");
        }
    }
}

/// What a branch runs is seen in what it has read.
#[test]
fn branches_run_the_body_that_their_condition_names() {
    let device = device();
    let (x, _) = words(&device, 3, 4 * PIECE);
    let parts: Vec<Tensor> = (0..4).map(|i| x.rows(i * PIECE..(i + 1) * PIECE)).collect();
    let of = |part: usize| {
        let words = parts[part].to_vec::<i32>().unwrap().into_iter().map(|word| word as u32);
        words.fold(0u32, u32::wrapping_add)
    };
    for mode in device.modes() {
        device.enter(mode);
        for (branch, at_launch, chosen) in [
            (Branch::If, 0, None),
            (Branch::If, 1, Some(0)),
            (Branch::Switch(4), 0, Some(0)),
            (Branch::Switch(4), 3, Some(3)),
            (Branch::Switch(4), 4, None),
            (Branch::While, 0, None),
        ] {
            let out = Tensor::from_slice(&device, &[7i32], &[1]).unwrap();
            let mut graph = ConditionalGraph::new(&device).unwrap();
            let body = |index: u32, _| {
                let args =
                    ReadArgs { x: &parts[index as usize], out: &out, passes: 1, shift: 0, overlaps: false };
                read(&device, Reader::Registers, &args)
            };
            graph.branch(branch, at_launch, body).unwrap();
            graph.finish().unwrap().launch().unwrap();
            assert_eq!(sums(&out), [chosen.map_or(7, of)], "{branch:?} {at_launch} {mode:?}");
        }
    }
}

#[test]
fn loops_go_on_until_a_kernel_ends_them() {
    let device = device();
    for mode in device.modes() {
        device.enter(mode);
        let counter = Tensor::uninit(&device, DType::I32, &[1]).unwrap();
        let mut graph = ConditionalGraph::new(&device).unwrap();
        count_down(&device, &mut graph, &counter).unwrap();
        let graph = graph.finish().unwrap();
        for rounds in [1, 7] {
            counter.copy_from(&Tensor::from_slice(&device, &[rounds], &[1]).unwrap()).unwrap();
            graph.launch().unwrap();
            assert_eq!(counter.to_vec::<i32>().unwrap(), [0], "{mode:?}: it would be below 0 after too many");
        }
    }
}

#[test]
fn reads_of_odd_sizes_are_refused() {
    let device = device();
    let x = Tensor::uninit(&device, DType::I32, &[PIECE + 4]).unwrap();
    let out = Tensor::uninit(&device, DType::I32, &[1]).unwrap();
    let args = ReadArgs { x: &x, out: &out, passes: 1, shift: 0, overlaps: false };
    assert!(read(&device, Reader::Registers, &args).unwrap_err().to_string().contains("multiple of 8192"));
}
