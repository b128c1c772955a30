//! Families of tensor-core kernels against each other, and what is special to `wgmma`.

use smart_run::device::{DType, TensorCoreFamily};

use super::{Pass, Sequence, Story, check_replay, check_schedules, heads, ways_in};
use crate::common::compare::same_bits;
use crate::common::device::{device, has_all};
use crate::common::inputs::Rng;

/// On the host driver products are summed in order, whatever the instruction: the families differ in nothing. (On a GPU they may.)
#[test]
fn families_have_the_same_bits_on_the_host_driver() {
    let device = device();
    if !has_all(&device) {
        return;
    }
    let mut rng = Rng::new(71);
    for (case, head_dim) in [128, 96, 64, 32].into_iter().enumerate() {
        for (dtype, window) in [(DType::Bf16, None), (DType::F16, Some(70))] {
            let heads = heads([4, 3, 7, 8][case], 1, head_dim);
            let mut story = Story::new(dtype, heads, 600, rng.next());
            story.window = window;
            let sequences = [
                Sequence::chunk(520, 5),
                Sequence::tree(&mut rng, 150, 20, true, story.len()),
                Sequence::chunk(0, 1),
                Sequence::tree(&mut rng, 63, 70, false, story.len()),
            ];
            let pass = Pass::new(&device, &story, &sequences, &mut Rng::new(72));
            let outputs = ways_in(&device, dtype, &device.modes()[..1]).into_iter().map(|way| {
                way.enter();
                (way.device.attention_family(), pass.run(&way.device, &story).concat())
            });
            let outputs: Vec<(TensorCoreFamily, Vec<f32>)> = outputs.collect();
            assert_eq!(outputs.len(), TensorCoreFamily::ALL.len());
            for (family, output) in &outputs[1..] {
                let name = format!("{} {dtype:?} head_dim {head_dim} window {window:?}", family.name());
                same_bits(&name, output, &outputs[0].1);
            }
        }
    }
}

/// Paths of one tree that stand in order in the ring and others that have to be gathered, in tiles that are gathered in part, and batches of a tail
/// that is larger than the ring: under random schedules, in which products are late or early.
#[test]
fn gathered_paths_survive_random_schedules() {
    let device = device();
    for (head_dim, prefix_len, nodes, branchy) in
        [(32, 50, 24, true), (96, 130, 12, true), (128, 20, 150, false)]
    {
        let story = Story::new(DType::Bf16, heads(2, 1, head_dim), 300, 73);
        let tree = Sequence::tree(&mut Rng::new(74), prefix_len, nodes, branchy, story.len());
        check_schedules(&device, &story, std::slice::from_ref(&tree));
        check_replay(&device, &story, &tree, &[0, nodes / 2, nodes - 1]);
    }
}

/// Two long branches whose nodes take turns, so that neither stands in order in the ring, in a tail that is staged tile by tile: what a path stage
/// holds of one staging is nothing to the next.
#[test]
fn branches_that_take_turns_are_gathered_in_every_staging() {
    let device = device();
    let (prefix_len, nodes) = (40, 200usize);
    for (heads, dtype) in [(heads(8, 1, 128), DType::Bf16), (heads(4, 1, 64), DType::F16)] {
        let story = Story::new(dtype, heads, 300, 75);
        let mut tree = Sequence { prefix_len, content: (0..prefix_len).collect(), ..Sequence::default() };
        let mut branches = [[0; 4]; 2];
        for node in 0..nodes {
            // The branch of the last node is that of the first: it is taken first in every staging, and its first row is the stage's.
            let (branch, depth) = (node.div_ceil(2) % 2, node / 2);
            branches[branch][node / 64] |= 1 << (node % 64);
            let position = if branch == 0 { prefix_len + depth } else { story.len() - 1 - depth };
            tree.content.push(position);
            tree.queries.push(position);
            tree.ancestors.push(branches[branch]);
        }
        check_replay(&device, &story, &tree, &[0, 1, 90, 91, 198, 199]);
    }
}
