//! Units of a row that are a thread block cluster: the same bits, by a launch less.

use smart_run::device::DType;
use smart_run::kernels::tree_attention::tree_attention_in_units;

use super::{Pass, Sequence, Story, heads, ways_in};
use crate::common::compare::same_bits;
use crate::common::device::{device, has_all};
use crate::common::inputs::Rng;

/// Two units, as many as a cluster has CTAs, fewer, and more than there can be; beside a sequence whose rows have one unit, and one without rows.
#[test]
fn clusters_do_not_show() {
    let device = device();
    let modes: Vec<_> =
        device.modes().into_iter().take(1).chain(device.schedules().into_iter().take(3)).collect();
    for (head_dim, dtype, prefix_len, nodes, window, cluster) in [
        (128, DType::Bf16, 250, 9, None, 2),
        (64, DType::F16, 700, 1, None, 4),
        (96, DType::Bf16, 1030, 40, None, 8),
        (32, DType::Bf16, 1900, 20, Some(300), 8),
        (128, DType::F16, 1500, 3, Some(1100), 8),
        (32, DType::F16, 2600, 3, None, 16),
        (32, DType::Bf16, 4200, 2, None, 1),
    ] {
        let mut story = Story::new(dtype, heads(3, 1, head_dim), prefix_len + nodes + 1, 81);
        story.window = window;
        let tree = Sequence::tree(&mut Rng::new(82), prefix_len, nodes, true, story.len());
        let sequences = [Sequence::chunk(20, 2), tree, Sequence { prefix_len: 40, ..Sequence::default() }];
        let pass = Pass::new(&device, &story, &sequences, &mut Rng::new(83));
        for way in ways_in(&device, dtype, &modes) {
            way.enter();
            let apart = way.device.with_clusters(false);
            let [got, want] =
                [&way.device, &apart].map(|device| pass.run_in_units(device, &story, 1).concat());
            same_bits(&format!("{way:?} head_dim {head_dim} behind {prefix_len}"), &got, &want);
            if !has_all(&device) {
                continue; // A GPU without clusters, or without room for these, combines.
            }
            let launches = |device| {
                let args = pass.args(&story);
                let issue = || tree_attention_in_units(device, args, 1);
                let (_, launches) = way.device.capture_first(usize::MAX, issue).unwrap();
                launches.into_iter().map(|launch| launch.cluster).collect::<Vec<_>>()
            };
            let two = vec![[1; 3]; 2];
            assert_eq!(launches(&apart), two);
            assert_eq!(launches(&way.device), if cluster > 1 { vec![[1, cluster, 1]] } else { two });
        }
    }
}

/// What waits for its turn keeps its place: more CTAs than run at once are not put into clusters.
#[test]
fn many_ctas_are_not_clustered() {
    let device = device();
    let story = Story::new(DType::Bf16, heads(64, 64, 32), 600, 84);
    for (sequences, launches) in [(1, 1), (2, 2)] {
        let pass = Pass::new(&device, &story, &vec![Sequence::chunk(590, 1); sequences], &mut Rng::new(85));
        let args = pass.args(&story);
        let issue = || tree_attention_in_units(&device, args, 1);
        let (_, issued) = device.capture_first(usize::MAX, issue).unwrap();
        assert!(issued.len() == launches || !has_all(&device), "{sequences} sequences: {issued:?}");
    }
}

/// Spans end where they did: sums that were put together otherwise would differ in some of so many outputs.
#[test]
fn many_rows_over_two_spans_have_the_same_bits() {
    let device = device();
    device.enter(device.modes()[0]);
    let story = Story::new(DType::F16, heads(8, 1, 128), 2700, 86);
    let pass = Pass::new(&device, &story, &[Sequence::chunk(2600, 60)], &mut Rng::new(87));
    let apart = device.with_clusters(false);
    let [got, want] = [&*device, &apart].map(|device| pass.run_in_units(device, &story, 1).concat());
    same_bits("60 rows behind 2600", &got, &want);
}
