//! What Hopper has: products of warpgroups, bulk copies and their mbarriers, clusters.

use super::{expect, observe_with};

#[test]
fn wgmma_reads_a_slot_that_is_filled_too_early() {
    expect("wgmma_early_refill", &["in order: wrong"]);
}

#[test]
fn sums_that_are_read_before_their_wait_are_poison() {
    expect("wgmma_early_read", &["sums: wrong"]);
}

#[test]
fn misuse_of_wgmma_is_named() {
    expect(
        "wgmma_misuse",
        &[
            "launch: 719 ... has not called fence_async_proxy ... kernel bug_wgmma_no_proxy_fence",
            "launch: 719 ... without a wgmma_fence ... kernel bug_wgmma_no_register_fence",
            "launch: 719 ... without wgmma_wait for all of its wgmma ... kernel bug_wgmma_no_wait",
            "launch: 719 ... does not start on eight rows (1024 bytes, or 512) ... kernel bug_wgmma_crooked_tile",
            "launch: 719 ... warps of one warpgroup give different descriptors ... kernel bug_wgmma_split_warpgroup",
            "launch: 719 ... without a wgmma_fence ... kernel bug_wgmma_fence_once",
            "launch: 719 ... registers of A were written ... kernel bug_wgmma_early_registers",
            "launch: 719 ... has not called fence_async_proxy ... kernel bug_wgmma_unfenced_fill",
        ],
    );
}

#[test]
fn boxes_that_are_read_before_their_wait_are_poison() {
    expect("bulk_early_read", &["in order: wrong"]);
}

#[test]
fn misuse_of_bulk_copies_and_mbarriers_is_named() {
    expect(
        "bulk_misuse",
        &[
            "launch: 719 ... no mbarrier_init of the mbarrier at byte 0 of shared variable `full` (kernel bug_bulk_no_init, block (0,0,0), thread 32)",
            "launch: 719 ... was initialised without mbarrier_init_fence ... kernel bug_bulk_no_init_fence",
            "launch: 719 ... the mbarrier at byte 8 of shared variable `empty` was overwritten ... kernel bug_bulk_overwritten",
            "launch: 719 ... the mbarrier's address is no multiple of 8 bytes ... kernel bug_bulk_crooked_barrier",
            "launch: 719 ... the tile's address is no multiple of 128 bytes ... kernel bug_bulk_crooked_tile",
            "launch: 719 ... a box of 1024 bytes at byte 1152 of dynamic shared memory is not inside of one shared variable ... kernel bug_bulk_outside",
            "launch: 719 ... another copy is still filling ... kernel bug_bulk_two_fills",
            "launch: 719 ... `full` has had all 1 arrivals of its phase ... 1024 bytes are expected, 0 were brought ... kernel bug_bulk_extra_arrival, block (0,0,0), thread 0",
            "launch: 719 ... t0 in mbarrier_wait, t1..31 exited, t32..63 in mbarrier_wait ... `empty` in its phase 0: 1 of 1 arrivals are missing ... kernel bug_bulk_missing_arrival",
            "launch: 719 ... `full` in its phase 0: 0 of 1 arrivals are missing, 512 bytes are expected, 1024 were brought ... kernel bug_bulk_few_bytes",
            "launch: 719 ... `full` in its phase 0: 0 of 1 arrivals are missing, 2048 bytes are expected, 1024 were brought ... kernel bug_bulk_many_bytes",
            "launch: 719 ... ends a phase that expects 0 bytes, but its copies bring 1024 (kernel bug_bulk_no_bytes",
            "launch: 719 ... the block ended while a bulk copy to byte 1024 of dynamic shared memory was under way (kernel bug_bulk_early_end, block (0,0,0), thread 0)",
            "launch: 719 ... a tile is still being filled by a bulk copy (kernel bug_bulk_wgmma",
        ],
    );
    expect(
        "bulk_memory",
        &[
            "longer: 719 ... the tensor map has 5248 bytes, but its allocation ends after 5120 (kernel healthy_bulk, block (0,0,0), thread 0)",
            "no map: 719 ... was not made by cuTensorMapEncodeTiled (kernel healthy_bulk",
            "freed: 700 ... argument 0 (field at byte 0) points into freed device memory ... (kernel healthy_bulk)",
        ],
    );
}

#[test]
fn early_refills_and_missing_barriers_are_found_by_random_schedules() {
    for case in ["bulk_schedules", "multicast_schedules"] {
        let Some(text) = observe_with(case, &[]) else { return };
        let caught = |line: &str| -> usize {
            line.rsplit_once(": ").unwrap().1.strip_suffix(" of 40").unwrap().parse().unwrap()
        };
        assert!(text.lines().count() > 0 && text.lines().all(|line| caught(line) >= 10), "{text}");
    }
}

#[test]
fn blocks_of_a_cluster_bring_each_other_boxes_under_every_schedule() {
    for threads in ["1", "4"] {
        let Some(text) = observe_with("multicast", &[("SIMT_THREADS", threads)]) else { return };
        assert_eq!(text.lines().filter(|line| line.ends_with(": right")).count(), 63, "{text}");
    }
}

#[test]
fn misuse_of_what_other_blocks_have_is_named() {
    expect(
        "multicast_misuse",
        &[
            "launch: 719 ... was initialised without mbarrier_init_fence (kernel bug_multicast_no_fence, block (1,0,0), thread 0)",
            "launch: 719 ... before the first cluster_sync: it may not have started (kernel bug_multicast_before_meeting, block (0,0,0), thread 0)",
            "launch: 719 ... a block of the cluster is named that does not exist (kernel bug_multicast_wrong_rank",
            "launch: 719 ... a block ended while its bulk copies to others of the cluster were under way (kernel bug_multicast_early_exit",
            "launch: 719 ... arrivals of others at its mbarriers may have been under way: their phase was not waited for (kernel bug_multicast_late_arrivals",
        ],
    );
}

#[test]
fn tensor_maps_that_a_gpu_refuses_are_refused() {
    expect(
        "tensor_maps",
        &[
            "good: 0",
            "strided: 0",
            "f32: 801 ... 16 bits",
            "rank: 801 ... no matrix",
            "address: 1 ... no multiple of 16 bytes",
            "no rows: 1 ... dimension 1 is 0",
            "stride: 1 ... 136 bytes, no multiple of 16",
            "overlap: 1 ... rows that overlap",
            "box: 1 ... 257 elements, not 1 to 256",
            "wide box: 1 ... 144 bytes, but its swizzle 128",
            "odd box: 1 ... no multiple of 16 bytes",
            "element stride: 801",
            "interleave: 801",
            "fill: 801",
            "swizzle: 801",
            "map: 1 ... not aligned to 64 bytes",
        ],
    );
}

#[test]
fn clusters_are_right_under_every_schedule() {
    for threads in ["1", "4"] {
        let Some(text) = observe_with("cluster", &[("SIMT_THREADS", threads)]) else { return };
        assert_eq!(text.lines().filter(|line| line.ends_with(": right")).count(), 105, "{text}");
    }
}

#[test]
fn misuse_of_clusters_is_named() {
    expect(
        "cluster_misuse",
        &[
            "launch: 719 ... before the first cluster_sync: it may not have started (kernel bug_cluster_no_first_sync, block (0,0,0), thread 0)",
            "launch: 719 ... of a block of the cluster that has ended (kernel bug_cluster_no_last_sync, block (",
            "launch: 719 ... a block of the cluster is named that does not exist (kernel bug_cluster_wrong_rank",
            "launch: 719 ... not inside of one variable that it has, too (kernel bug_cluster_wrong_place",
            "launch: 719 ... block 0 of the cluster: t0..31 in cluster_sync, t32..63 in __syncthreads; block 1 of the cluster: t0..31 in cluster_sync, t32..63 exited (kernel bug_cluster_half_syncs",
            "grid: 1 ... the grid is not made of whole clusters (kernel healthy_cluster)",
            "cluster: 912 ... a cluster of 16 blocks; at most 8 run everywhere: set NON_PORTABLE_CLUSTER_SIZE_ALLOWED on the function",
            "large cluster: 1 ... a cluster of 32 blocks; at most 16 can be",
            "nothing: 1 ... the cluster has no blocks",
            "afterwards: right",
        ],
    );
    expect("cluster_no_sync", &["in order: wrong"]);
}
