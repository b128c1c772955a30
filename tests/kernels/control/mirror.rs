//! [`Mirror`]: a round executed on the device beside the one in Rust, compared after every step.

use smart_run::control::{DraftRound, FrontierRow, NONE, SelectedTree};
use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::control::{
    ControlLevel, ControlLimits, ControlNode, ControlRound, RoundState, SequenceState,
};

use crate::common::inputs::Rng;

/// The children of a row: tokens and log-probabilities, likeliest first or not.
pub type Drafter = fn(&mut Rng, usize) -> Vec<(i32, f32)>;

pub fn words<T: bytemuck::Pod>(tensor: &Tensor) -> Vec<T> {
    let bytes = match tensor.dtype() {
        DType::U8 => tensor.to_vec::<u8>().unwrap(),
        DType::I32 => bytemuck::cast_slice(&tensor.to_vec::<i32>().unwrap()).to_vec(),
        _ => bytemuck::cast_slice(&tensor.to_vec::<u64>().unwrap()).to_vec(),
    };
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

fn signed(index: u32) -> i32 {
    if index == NONE { -1 } else { index as i32 }
}

/// The device's round and the candidates that the drafter has brought.
pub struct Mirror<'a> {
    pub name: &'a str,
    pub control: ControlRound,
    pub tokens: Tensor,
    pub logp: Tensor,
}

impl<'a> Mirror<'a> {
    pub fn new(device: &Device, name: &'a str, limits: ControlLimits) -> Self {
        let candidates = ControlRound::max_candidates(&limits);
        Self {
            name,
            control: ControlRound::new(device, limits).unwrap(),
            tokens: Tensor::uninit(device, DType::I32, &[candidates]).unwrap(),
            logp: Tensor::uninit(device, DType::F32, &[candidates]).unwrap(),
        }
    }

    pub fn state(&self) -> RoundState {
        words(&self.control.state)[0]
    }

    pub fn bring(&self, first_candidate: usize, tokens: &[i32], logps: &[f32]) {
        self.tokens.write_bytes(4 * first_candidate, bytemuck::cast_slice(tokens)).unwrap();
        self.logp.write_bytes(4 * first_candidate, bytemuck::cast_slice(logps)).unwrap();
    }

    #[track_caller]
    pub fn compare_selection(&self, round: &DraftRound) {
        let (got, want) = (self.state(), round.selection());
        let levels: u64 = round.levels().iter().map(|level| level.ns).sum();
        assert_eq!(got.sunk_ns, round.costs().overhead_ns + levels, "{}", self.name);
        let got = got.selection;
        assert_eq!(
            (got.prefix as usize, got.expected, got.tokens as usize, got.ns, got.price.to_bits()),
            (want.prefix, want.expected, want.tokens, want.ns, want.price.to_bits()),
            "{}: {got:?} instead of {want:?}",
            self.name
        );
    }

    #[track_caller]
    pub fn compare_kept(&self, round: &DraftRound) {
        let want: Vec<u64> = round
            .candidates()
            .iter()
            .map(|candidate| {
                let order = u64::from(u32::MAX - candidate.value().to_bits());
                order << 32 | (candidate.sequence() as u64) << 16 | candidate.node() as u64
            })
            .collect();
        let count = self.state().num_kept as usize;
        assert_eq!(self.control.kept.to_vec::<u64>().unwrap()[..count], want, "{}", self.name);
    }

    #[track_caller]
    pub fn compare_pools(&self, round: &DraftRound) {
        let states: Vec<SequenceState> = words(&self.control.sequence_state);
        for (sequence, state) in states[..round.batch()].iter().enumerate() {
            let pool = round.pool(sequence);
            let nodes: Vec<ControlNode> = words(&self.control.pool.index(sequence));
            let want = pool.newest();
            assert_eq!(
                state.newest.max(1)..state.num_nodes,
                want.start as i32..want.end as i32,
                "{}",
                self.name
            );
            assert_eq!(state.num_slots as usize, pool.num_slots(), "{}", self.name);
            for (i, (got, want)) in nodes.iter().zip(pool.nodes()).enumerate() {
                let name = format!("{}: node {i} of sequence {sequence}", self.name);
                let ints = [got.parent, got.depth, got.token, got.candidate, got.row, got.slot];
                let want_ints = [
                    signed(want.parent),
                    i32::from(want.depth),
                    want.token,
                    signed(want.candidate),
                    signed(want.row),
                    signed(want.slot),
                ];
                assert_eq!(ints, want_ints, "{name}");
                let floats = [got.logp, got.path_logp, got.q, got.path_prob].map(f32::to_bits);
                let want_floats = [want.logp, want.path_logp, want.q, want.path_prob].map(f32::to_bits);
                assert_eq!(floats, want_floats, "{name}: {got:?} instead of {want:?}");
                let children = got.first_child as usize..(got.first_child + got.num_children) as usize;
                assert_eq!(children, pool.children(i), "{name}");
                assert_eq!(got.verified == 1, want.verified, "{name}");
            }
        }
    }

    #[track_caller]
    pub fn compare_frontier(&self, round: &DraftRound, rows: &[FrontierRow]) {
        let state = self.state();
        assert_eq!(state.frontier_len as usize, rows.len(), "{}", self.name);
        let frontier: Vec<[i32; 4]> = words(&self.control.frontier);
        let nodes: Vec<i32> = words(&self.control.frontier_node);
        for (i, row) in rows.iter().enumerate() {
            let want =
                [row.sequence as i32, signed(row.candidate), signed(row.parent_slot), signed(row.slot)];
            assert_eq!((frontier[i], nodes[i]), (want, row.node as i32), "{}: row {i}", self.name);
        }
        let starts: Vec<i32> = words(&self.control.frontier_start);
        for (sequence, &start) in starts[..=round.batch()].iter().enumerate() {
            let before = rows.iter().filter(|row| (row.sequence as usize) < sequence).count();
            assert_eq!(start as usize, before, "{}: start of sequence {sequence}", self.name);
        }
        let levels: Vec<ControlLevel> = words(&self.control.levels);
        assert_eq!(state.num_levels as usize, round.levels().len(), "{}", self.name);
        for (got, want) in levels.iter().zip(round.levels()) {
            assert_eq!(
                (got.first_row as usize, got.rows as usize, got.price.to_bits(), got.ns),
                (want.first_row, want.rows, want.price.to_bits(), want.ns),
                "{}",
                self.name
            );
        }
    }

    #[track_caller]
    pub fn compare_trees(&self, trees: &[SelectedTree]) {
        let starts: Vec<i32> = words(&self.control.seq_start);
        let tokens: Vec<i32> = words(&self.control.tree_tokens);
        let parents: Vec<i32> = words(&self.control.tree_parents);
        let depths: Vec<i32> = words(&self.control.tree_depths);
        let ancestors: Vec<[u64; 4]> = words(&self.control.tree_ancestors);
        let nodes: Vec<u32> = words(&self.control.tree_nodes);
        assert_eq!(starts[0], 0, "{}", self.name);
        for (sequence, selected) in trees.iter().enumerate() {
            let name = format!("{}: tree of sequence {sequence}", self.name);
            let rows = starts[sequence] as usize..starts[sequence + 1] as usize;
            assert_eq!(nodes[rows.clone()], selected.pool_nodes, "{name}");
            assert_eq!(tokens[rows.clone()], *selected.tree.tokens(), "{name}");
            assert_eq!(parents[rows.clone()], *selected.tree.parents(), "{name}");
            let want: Vec<i32> = selected.tree.depths().iter().map(|&depth| i32::from(depth)).collect();
            assert_eq!(depths[rows.clone()], want, "{name}");
            assert_eq!(ancestors[rows], *selected.tree.ancestors(), "{name}");
        }
    }

    /// Executes the round that `round` has begun, on both sides.
    pub fn run(&mut self, round: &mut DraftRound, drafter: Drafter, seed: u64) -> Vec<SelectedTree> {
        let mut random = Rng::new(seed);
        let top_k = round.top_k();
        self.control.upload(round).unwrap();
        self.control.begin().unwrap();
        self.compare_selection(round);
        let mut first_candidate = 0;
        loop {
            let rows = round.next_level().unwrap_or_default().to_vec();
            self.control.frontier().unwrap();
            self.compare_frontier(round, &rows);
            if rows.is_empty() {
                break;
            }
            assert_eq!(self.state().first_candidate as usize, first_candidate, "{}", self.name);
            let children = rows.iter().flat_map(|_| drafter(&mut random, top_k));
            let (tokens, logps): (Vec<i32>, Vec<f32>) = children.unzip();
            round.add_level(&tokens, &logps);
            self.bring(first_candidate, &tokens, &logps);
            first_candidate += tokens.len();
            self.control.extend(&self.tokens, &self.logp).unwrap();
            self.compare_pools(round);
            self.control.select().unwrap();
            self.compare_selection(round);
            self.compare_kept(round);
        }
        // What a graph of more levels than needed would go on to launch.
        self.control.extend(&self.tokens, &self.logp).unwrap();
        self.control.select().unwrap();
        self.control.frontier().unwrap();
        self.compare_frontier(round, &[]);
        self.compare_selection(round);
        let trees = round.select().to_vec();
        self.control.pack().unwrap();
        self.compare_trees(&trees);
        self.compare_selection(round);
        self.compare_pools(round);
        trees
    }
}
