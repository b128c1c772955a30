use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::verify::{VerifyWalkArgs, verify_walk};
use smart_run::reference::verify as oracle;

use crate::common::device::{Mode, device};
use crate::common::inputs::Rng;

/// One draft tree with what the target draws at each node.
#[derive(Clone)]
struct Tree {
    name: &'static str,
    tokens: Vec<i32>,
    parents: Vec<i32>,
    drawn: Vec<i32>,
}

impl Tree {
    fn new(name: &'static str, tokens: &[i32], parents: &[i32], drawn: &[i32]) -> Self {
        Self { name, tokens: tokens.to_vec(), parents: parents.to_vec(), drawn: drawn.to_vec() }
    }

    /// Few distinct tokens, so that siblings collide; most draws hit a child, so that paths are long.
    fn random(num_nodes: usize, seed: u64) -> Self {
        let mut random = Rng::new(seed);
        let mut parents = vec![-1];
        (1..num_nodes).for_each(|node| parents.push((node - 1 - random.below(node.min(5))) as i32));
        let tokens: Vec<i32> = (0..num_nodes).map(|_| random.below(4) as i32).collect();
        let mut drawn: Vec<i32> = (0..num_nodes).map(|_| random.below(4) as i32).collect();
        for node in 1..num_nodes {
            if random.below(10) > 0 {
                drawn[parents[node] as usize] = tokens[node];
            }
        }
        Self { name: "random", tokens, parents, drawn }
    }
}

fn chain(num_nodes: i32) -> (Vec<i32>, Vec<i32>) {
    ((0..num_nodes).collect(), (-1..num_nodes - 1).collect())
}

fn risky_trees() -> Vec<Tree> {
    let (chain_tokens, chain_parents) = chain(256);
    let all_drawn: Vec<i32> = (1..257).collect();
    let mut missed_at_40 = all_drawn.clone();
    missed_at_40[40] = 1000;
    let star_tokens: Vec<i32> = (0..256).collect();
    let mut star_parents = vec![0; 256];
    star_parents[0] = -1;
    let mut last_child = vec![9; 256];
    last_child[0] = 255;
    vec![
        Tree::new("root_only", &[5], &[-1], &[5]),
        Tree::new("nothing", &[], &[], &[]),
        Tree::new("first_child_rejected", &[5, 6], &[-1, 0], &[7, 8]),
        Tree::new("bonus_at_leaf", &[5, 6, 7], &[-1, 0, 1], &[6, 7, 8]),
        Tree::new("duplicate_siblings", &[5, 7, 7, 8, 9], &[-1, 0, 0, 1, 2], &[7, 9, 9, 6, 6]),
        Tree::new("token_in_another_branch", &[5, 6, 7, 8], &[-1, 0, 0, 2], &[6, 8, 8, 8]),
        Tree::new("impossible_draw", &[5, 6], &[-1, 0], &[-1, 3]),
        Tree {
            name: "full_chain",
            tokens: chain_tokens.clone(),
            parents: chain_parents.clone(),
            drawn: all_drawn,
        },
        Tree {
            name: "chain_breaks_behind_a_warp",
            tokens: chain_tokens,
            parents: chain_parents,
            drawn: missed_at_40,
        },
        Tree { name: "star_last_child", tokens: star_tokens, parents: star_parents, drawn: last_child },
        Tree::new("nothing_at_the_end", &[], &[], &[]),
    ]
}

/// With room for paths of `room` nodes.
fn check(device: &Device, mode: Mode, trees: &[Tree], room: usize) {
    let mut seq_start = vec![0];
    trees.iter().for_each(|tree| seq_start.push(seq_start[seq_start.len() - 1] + tree.tokens.len() as i32));
    let upload = |column: fn(&Tree) -> &Vec<i32>| {
        let rows: Vec<i32> = trees.iter().flat_map(|tree| column(tree).iter().copied()).collect();
        Tensor::from_slice(device, &rows, &[rows.len()]).unwrap()
    };
    let batch = trees.len();
    let accepted = Tensor::from_slice(device, &vec![-7; batch * room], &[batch, room]).unwrap();
    let accepted_len = Tensor::uninit(device, DType::I32, &[batch]).unwrap();
    let bonus = Tensor::uninit(device, DType::I32, &[batch]).unwrap();
    let args = VerifyWalkArgs {
        seq_start: &Tensor::from_slice(device, &seq_start, &[batch + 1]).unwrap(),
        tokens: &upload(|tree| &tree.tokens),
        parents: &upload(|tree| &tree.parents),
        drawn: &upload(|tree| &tree.drawn),
        accepted: &accepted,
        accepted_len: &accepted_len,
        bonus: &bonus,
    };
    verify_walk(device, args).unwrap();
    let (accepted, accepted_len, bonus) = (
        accepted.to_vec::<i32>().unwrap(),
        accepted_len.to_vec::<i32>().unwrap(),
        bonus.to_vec::<i32>().unwrap(),
    );
    for (i, tree) in trees.iter().enumerate() {
        let want = oracle::walk(&tree.tokens, &tree.parents, &tree.drawn);
        let len = want.accepted.len();
        let (path, rest) = accepted[i * room..(i + 1) * room].split_at(len.min(room));
        assert_eq!(path, &want.accepted[..path.len()], "{mode:?}, {}", tree.name);
        assert!(rest.iter().all(|&entry| entry == -7), "{mode:?}, {}: wrote behind the path", tree.name);
        assert_eq!((accepted_len[i], bonus[i]), (len as i32, want.bonus), "{mode:?}, {}", tree.name);
    }
}

#[test]
fn risky_trees_agree_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    for mode in held.modes().into_iter().chain(held.schedules()) {
        held.enter(mode);
        for room in [256, 3, 0] {
            check(device, mode, &risky_trees(), room);
            risky_trees().iter().for_each(|tree| check(device, mode, std::slice::from_ref(tree), room));
        }
    }
}

#[test]
fn random_trees_agree_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    let trees: Vec<Tree> = (0..24).map(|seed| Tree::random(1 + (seed as usize * 11) % 256, seed)).collect();
    assert!(
        trees.iter().any(|tree| oracle::walk(&tree.tokens, &tree.parents, &tree.drawn).accepted.len() > 8)
    );
    for mode in held.modes().into_iter().chain(held.schedules()) {
        held.enter(mode);
        check(device, mode, &trees, 255);
    }
}
