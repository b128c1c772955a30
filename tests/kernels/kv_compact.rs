//! Compaction: the cache equals the oracle's byte for byte, moved rows and all others.

use half::bf16;
use smart_run::device::{Device, Element, Tensor};
use smart_run::kernels::kv_compact::{KvCompactArgs, kv_compact};
use smart_run::reference::kv_compact::{self as reference, Cache};

use crate::common::device::device;
use crate::common::inputs::Rng;

const ACCEPTED_STRIDE: usize = 256;

struct Case {
    cache: Cache,
    page_table: Vec<Vec<i32>>,
    prefix_len: Vec<i32>,
    accepted: Vec<Vec<i32>>,
}

/// A sequence's prefix and the accepted nodes behind it.
type Accepted<'a> = (usize, &'a [i32]);

/// Sequences with the given prefixes and accepted nodes, on pages dealt out at random.
fn case(cache: Cache, sequences: &[Accepted], rng: &mut Rng) -> Case {
    let mut free: Vec<i32> = (0..cache.pages as i32).collect();
    let each = cache.pages / sequences.len();
    let mut deal = |_: usize| free.swap_remove(rng.below(free.len()));
    Case {
        cache,
        page_table: sequences.iter().map(|_| (0..each).map(&mut deal).collect()).collect(),
        prefix_len: sequences.iter().map(|&(prefix_len, _)| prefix_len as i32).collect(),
        accepted: sequences.iter().map(|(_, accepted)| accepted.to_vec()).collect(),
    }
}

/// Runs the kernel over a cache whose every element tells its place, and returns what it and the oracle leave.
fn run<T: Element>(device: &Device, case: &Case, element: impl Fn(usize) -> T) -> (Vec<T>, Vec<T>) {
    let Cache { planes, pages, num_kv_heads, page_size, head_dim } = case.cache;
    let shape = [planes / 2, 2, pages, num_kv_heads, page_size, head_dim];
    let mut want: Vec<T> = (0..shape.iter().product()).map(element).collect();
    let kv = Tensor::from_slice(device, &want, &shape).unwrap();
    let sequences = case.prefix_len.len();
    let mut accepted = vec![-1; sequences * ACCEPTED_STRIDE];
    for (row, nodes) in accepted.chunks_mut(ACCEPTED_STRIDE).zip(&case.accepted) {
        row[..nodes.len()].copy_from_slice(nodes);
    }
    let accepted_len: Vec<i32> = case.accepted.iter().map(|nodes| nodes.len() as i32).collect();
    let table = case.page_table.concat();
    kv_compact(
        device,
        KvCompactArgs {
            kv: &kv,
            page_table: &Tensor::from_slice(device, &table, &[sequences, table.len() / sequences]).unwrap(),
            prefix_len: &Tensor::from_slice(device, &case.prefix_len, &[sequences]).unwrap(),
            accepted: &Tensor::from_slice(device, &accepted, &[sequences, ACCEPTED_STRIDE]).unwrap(),
            accepted_len: &Tensor::from_slice(device, &accepted_len, &[sequences]).unwrap(),
            max_accepted: case.accepted.iter().map(Vec::len).max().unwrap(),
        },
    )
    .unwrap();
    for ((pages, &prefix_len), accepted) in case.page_table.iter().zip(&case.prefix_len).zip(&case.accepted) {
        reference::kv_compact(&mut want, case.cache, pages, prefix_len as usize, accepted);
    }
    (kv.to_vec().unwrap(), want)
}

fn small(head_dim: usize, num_kv_heads: usize, pages: usize) -> Cache {
    Cache { planes: 4, pages, num_kv_heads, page_size: 16, head_dim }
}

#[test]
fn moves_exactly_the_accepted_rows() {
    let device = device();
    let mut rng = Rng::new(1);
    let everything: Vec<i32> = (1..256).collect();
    let shifted: Vec<i32> = (2..200).collect();
    let cases: [(&str, Cache, &[Accepted]); 6] = [
        ("nothing accepted", small(32, 1, 4), &[(10, &[]), (3, &[])]),
        ("already in place", small(32, 1, 20), &[(5, &everything)]),
        ("all rows down by one", small(32, 2, 20), &[(7, &shifted)]),
        ("one far row", small(64, 1, 18), &[(0, &[255])]),
        ("across pages, ragged", small(128, 2, 12), &[(14, &[1, 4, 9, 12, 30]), (0, &[]), (31, &[2, 3, 20])]),
        ("more columns than threads", small(96, 12, 4), &[(1, &[3, 4, 11])]),
    ];
    for (name, cache, sequences) in cases {
        let case = case(cache, sequences, &mut rng);
        for mode in device.modes() {
            device.enter(mode);
            let (got, want) = run(&device, &case, |i| i as f32);
            assert!(got == want, "{name}, f32 {mode:?}");
            // 16-bit patterns that no two rows share
            let (got, want) = run(&device, &case, |i| bf16::from_bits((i * 7 + i / 65536) as u16 & 0x7f7f));
            assert!(got == want, "{name}, bf16 {mode:?}");
        }
    }
}

#[test]
fn random_paths_under_random_schedules() {
    let device = device();
    for (seed, mode) in device.schedules().into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64);
        let nodes: Vec<i32> = (1..120).filter(|_| rng.below(3) == 0).collect();
        let few: Vec<i32> = (1..20).filter(|_| rng.below(2) == 0).collect();
        let case = case(small(32, 2, 20), &[(rng.below(30), &nodes), (rng.below(30), &few)], &mut rng);
        device.enter(mode);
        let (got, want) = run(&device, &case, |i| i as f32);
        assert!(got == want, "{mode:?}");
    }
}
