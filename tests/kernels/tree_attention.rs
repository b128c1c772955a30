//! Tree attention: against the oracle, and the bit contract: a row's bits are the same in plain decoding, in a chunk, in a
//! tree, alone or among others, wherever its keys lie and the prefix ends. All of it for every family of tensor-core kernels that there is.

mod clusters;
mod families;
mod windows;

use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::tree_attention::{
    TreeAttentionArgs, tree_attention, tree_attention_in_units, workspace_len,
};
use smart_run::reference::tree_attention as reference;
use smart_run::reference::tree_attention::Heads;

use crate::common::compare::{Tol, close, same_bits};
use crate::common::device::{Mode, TestDevice, device};
use crate::common::inputs::{MODEL_DTYPES, Rng, download, poisoned, round_to, rounded, upload};

/// A family of kernels, and how they run.
struct Way<'a> {
    tested: &'a TestDevice,
    device: Device,
    mode: Mode,
}

/// Every way for `dtype`. f32 has no families, and those of 16 bits share a native twin, which runs once.
fn ways(tested: &TestDevice, dtype: DType) -> Vec<Way<'_>> {
    ways_in(tested, dtype, &tested.modes())
}

fn ways_in<'a>(tested: &'a TestDevice, dtype: DType, modes: &[Mode]) -> Vec<Way<'a>> {
    let families = tested.attention_families();
    let num_families = if dtype == DType::F32 { 1 } else { families.len() };
    let of_family = |(i, device): (usize, Device)| {
        let modes = modes.iter().filter(move |&&mode| i == 0 || mode != Mode::Twin);
        modes.map(move |&mode| Way { tested, device: device.clone(), mode })
    };
    families.into_iter().take(num_families).enumerate().flat_map(of_family).collect()
}

impl Way<'_> {
    /// Makes the following launches run so.
    fn enter(&self) {
        self.tested.enter(self.mode);
    }
}

impl std::fmt::Debug for Way<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.device.attention_family().name(), self.mode)
    }
}

/// A logical key list with its queries: position i holds key, value and query i. Rows of a pass are taken from it.
struct Story {
    dtype: DType,
    heads: Heads,
    /// `[len, num_kv_heads, head_dim]`
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[len, num_q_heads, head_dim]`
    q: Vec<f32>,
    /// Keys that a row sees at most.
    window: Option<usize>,
}

impl Story {
    fn new(dtype: DType, heads: Heads, len: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut values = |count: usize| rounded(dtype, rng.normals(count));
        let kv = len * heads.num_kv_heads * heads.head_dim;
        let (k, v, q) = (values(kv), values(kv), values(len * heads.num_q_heads * heads.head_dim));
        Story { dtype, heads, k, v, q, window: None }
    }

    fn with_window(self, window: usize) -> Self {
        Story { window: Some(window), ..self }
    }

    fn kv_width(&self) -> usize {
        self.heads.num_kv_heads * self.heads.head_dim
    }

    fn q_width(&self) -> usize {
        self.heads.num_q_heads * self.heads.head_dim
    }

    fn len(&self) -> usize {
        self.k.len() / self.kv_width()
    }
}

/// One sequence of a pass: KV position j holds position `content[j]` of the story, and row r is the query
/// `queries[r]` of it.
#[derive(Clone, Default)]
struct Sequence {
    prefix_len: usize,
    content: Vec<usize>,
    queries: Vec<usize>,
    ancestors: Vec<[u64; 4]>,
}

impl Sequence {
    /// Positions `prefix_len..prefix_len + rows` of the story as a causal chunk.
    fn chunk(prefix_len: usize, rows: usize) -> Self {
        let mut sequence =
            Sequence { prefix_len, content: (0..prefix_len + rows).collect(), ..Default::default() };
        for row in 0..rows {
            sequence.queries.push(prefix_len + row);
            sequence
                .ancestors
                .push(std::array::from_fn(|word| low_bits((row + 1).saturating_sub(word * 64))));
        }
        sequence
    }

    /// A random tree of `nodes` behind the prefix. Node i stands for some position of the story at its depth:
    /// `prefix_len + depth` for the nodes of one path, positions no plain decoding knows for the others.
    fn tree(rng: &mut Rng, prefix_len: usize, nodes: usize, branchy: bool, story_len: usize) -> Self {
        let mut tree = Sequence { prefix_len, content: (0..prefix_len).collect(), ..Default::default() };
        let mut on_main_path = vec![];
        let mut depths = vec![];
        for node in 0..nodes {
            let parent = match node {
                0 => None,
                _ if branchy => Some(rng.below(node)),
                _ => Some(node - 1 - rng.below(node.min(3))),
            };
            let mut mask = parent.map_or([0; 4], |parent| tree.ancestors[parent]);
            mask[node / 64] |= 1 << (node % 64);
            let depth = parent.map_or(0, |parent: usize| depths[parent] + 1);
            depths.push(depth);
            let first_child = !(0..node).any(|other| on_main_path[other] && depths[other] == depth);
            let main = first_child && parent.is_none_or(|parent| on_main_path[parent]);
            on_main_path.push(main);
            let position = if main { prefix_len + depth } else { rng.below(story_len) };
            tree.content.push(position);
            tree.queries.push(position);
            tree.ancestors.push(mask);
        }
        tree
    }

    /// The story positions of the keys up to row `row`, in logical order.
    fn path(&self, row: usize) -> Vec<usize> {
        let kv_positions = reference::path(self.prefix_len, &self.ancestors[row]);
        kv_positions.into_iter().map(|kv_pos| self.content[kv_pos]).collect()
    }

    /// Row `row` alone with the same keys, all but the last `tail` of them in the prefix.
    fn replay(&self, row: usize, tail: usize) -> Self {
        let path = self.path(row);
        let mut alone = Sequence::chunk(path.len() - tail, tail);
        alone.content = path;
        alone.queries = vec![self.queries[row]];
        alone.ancestors = vec![*alone.ancestors.last().expect("the tail holds the row itself")];
        alone
    }
}

fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Device arrays of a pass over one story. Pages are dealt out in a shuffled order; what no row may read is NaN.
struct Pass {
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    seq_start: Tensor,
    prefix_len: Tensor,
    ancestors: Tensor,
    out: Tensor,
    workspace: Tensor,
    max_kv_len: usize,
    max_rows: usize,
    window: Option<usize>,
    host: HostPass,
}

/// The same as slices, for the oracle.
struct HostPass {
    k_cache: Vec<f32>,
    v_cache: Vec<f32>,
    pages: Vec<Vec<i32>>,
}

impl Pass {
    fn new(device: &Device, story: &Story, sequences: &[Sequence], rng: &mut Rng) -> Self {
        let Heads { num_kv_heads, head_dim, page_size, .. } = story.heads;
        let pages_of = |sequence: &Sequence| sequence.content.len().div_ceil(page_size);
        let num_pages = sequences.iter().map(pages_of).sum::<usize>() + 1;
        let mut free: Vec<i32> = (0..num_pages as i32).collect();
        let pages: Vec<Vec<i32>> = sequences
            .iter()
            .map(|sequence| {
                (0..pages_of(sequence)).map(|_| free.swap_remove(rng.below(free.len()))).collect()
            })
            .collect();

        let elements = num_pages * num_kv_heads * page_size * head_dim;
        let (mut k_cache, mut v_cache) = (vec![f32::NAN; elements], vec![f32::NAN; elements]);
        for (sequence, pages) in sequences.iter().zip(&pages) {
            let at = reference::Sequence { prefix_len: sequence.prefix_len, pages, window: None };
            for (kv_pos, &position) in sequence.content.iter().enumerate() {
                for head in 0..num_kv_heads {
                    let offset = story.heads.cache_offset(&at, head, kv_pos);
                    let source = position * story.kv_width() + head * head_dim;
                    k_cache[offset..][..head_dim].copy_from_slice(&story.k[source..][..head_dim]);
                    v_cache[offset..][..head_dim].copy_from_slice(&story.v[source..][..head_dim]);
                }
            }
        }

        let max_pages = pages.iter().map(Vec::len).max().unwrap();
        let mut table = vec![-1; sequences.len() * max_pages];
        for (row, pages) in table.chunks_mut(max_pages).zip(&pages) {
            row[..pages.len()].copy_from_slice(pages);
        }
        let mut seq_start = vec![0];
        let (mut q, mut ancestors): (Vec<f32>, Vec<u64>) = (vec![], vec![]);
        for sequence in sequences {
            seq_start.push(seq_start.last().unwrap() + sequence.queries.len() as i32);
            for &position in &sequence.queries {
                q.extend(&story.q[position * story.q_width()..][..story.q_width()]);
            }
            ancestors.extend(sequence.ancestors.iter().flatten());
        }
        let rows = *seq_start.last().unwrap() as usize;
        let prefix_len: Vec<i32> = sequences.iter().map(|sequence| sequence.prefix_len as i32).collect();
        let max_kv_len = sequences.iter().map(|sequence| sequence.content.len()).max().unwrap();
        let max_rows = sequences.iter().map(|sequence| sequence.queries.len()).max().unwrap();
        let cache_shape = [num_pages, num_kv_heads, page_size, head_dim];
        let workspace = workspace_len(rows, story.heads.num_q_heads, head_dim, max_kv_len);
        Pass {
            q: upload(device, story.dtype, &q, &[rows, story.q_width()]),
            k_cache: upload(device, story.dtype, &k_cache, &cache_shape),
            v_cache: upload(device, story.dtype, &v_cache, &cache_shape),
            page_table: Tensor::from_slice(device, &table, &[sequences.len(), max_pages]).unwrap(),
            seq_start: Tensor::from_slice(device, &seq_start, &[sequences.len() + 1]).unwrap(),
            prefix_len: Tensor::from_slice(device, &prefix_len, &[sequences.len()]).unwrap(),
            ancestors: Tensor::from_slice(device, &ancestors, &[rows, 4]).unwrap(),
            out: poisoned(device, story.dtype, &[rows, story.q_width()]),
            workspace: poisoned(device, DType::F32, &[workspace]),
            max_kv_len,
            max_rows,
            window: story.window,
            host: HostPass { k_cache, v_cache, pages },
        }
    }

    /// One output vector per row.
    fn run(&self, device: &Device, story: &Story) -> Vec<Vec<f32>> {
        tree_attention(device, self.args(story)).unwrap();
        self.rows(story)
    }

    fn run_in_units(&self, device: &Device, story: &Story, splits_each: usize) -> Vec<Vec<f32>> {
        tree_attention_in_units(device, self.args(story), splits_each).unwrap();
        self.rows(story)
    }

    fn rows(&self, story: &Story) -> Vec<Vec<f32>> {
        download(&self.out).chunks(story.q_width()).map(<[f32]>::to_vec).collect()
    }

    fn args(&self, story: &Story) -> TreeAttentionArgs<'_> {
        let Heads { num_q_heads, num_kv_heads, head_dim, .. } = story.heads;
        self.out.fill_bytes(0xff).unwrap();
        TreeAttentionArgs {
            q: &self.q,
            k_cache: &self.k_cache,
            v_cache: &self.v_cache,
            page_table: &self.page_table,
            seq_start: &self.seq_start,
            prefix_len: &self.prefix_len,
            ancestors: &self.ancestors,
            out: &self.out,
            workspace: &self.workspace,
            window: self.window,
            sm_scale: sm_scale(story),
            num_q_heads,
            num_kv_heads,
            head_dim,
            max_kv_len: self.max_kv_len,
            max_rows: self.max_rows,
        }
    }
}

fn sm_scale(story: &Story) -> f32 {
    (story.heads.head_dim as f32).powf(-0.5)
}

fn heads(num_q_heads: usize, num_kv_heads: usize, head_dim: usize) -> Heads {
    Heads { num_q_heads, num_kv_heads, head_dim, page_size: 16 }
}

/// The rows of `sequences` in one pass, sequence by sequence.
fn run(device: &Device, story: &Story, sequences: &[Sequence], seed: u64) -> Vec<Vec<Vec<f32>>> {
    let rows = Pass::new(device, story, sequences, &mut Rng::new(seed)).run(device, story);
    let mut rows = rows.into_iter();
    sequences.iter().map(|sequence| rows.by_ref().take(sequence.queries.len()).collect()).collect()
}

/// Scores are f32 dot products of exact products: error below head_dim * 2^-24 * sum |q k| sm_scale, some 2^-17 for these
/// inputs, which scales weights by as much. Weights are rounded to the dtype (relative 2^-9, 2^-12), in numerator and
/// denominator alike, so that an output moves by at most that share of the mean |v|, which is below 1; the output is
/// rounded once more. f32 has no such rounding; 2^-16 covers scores and sums.
fn tolerance(dtype: DType) -> Tol {
    let weights = match dtype {
        DType::Bf16 => 1.0 / 512.0,
        DType::F16 => 1.0 / 4096.0,
        _ => 0.0,
    };
    Tol::rounding(dtype, weights + 1.0 / 65536.0)
}

#[track_caller]
fn check_against_oracle(device: &TestDevice, story: &Story, sequences: &[Sequence], name: &str) {
    let pass = Pass::new(device, story, sequences, &mut Rng::new(7));
    let mut want = vec![];
    for (sequence, pages) in sequences.iter().zip(&pass.host.pages) {
        let at = reference::Sequence { prefix_len: sequence.prefix_len, pages, window: story.window };
        for (&position, ancestors) in sequence.queries.iter().zip(&sequence.ancestors) {
            let q = &story.q[position * story.q_width()..][..story.q_width()];
            let (k, v) = (&pass.host.k_cache, &pass.host.v_cache);
            want.extend(reference::row(q, k, v, &at, ancestors, sm_scale(story), story.heads));
        }
    }
    for way in ways(device, story.dtype) {
        way.enter();
        let got = pass.run(&way.device, story).concat();
        close(
            &format!("{name} {:?} {:?} window {:?} {way:?}", story.dtype, story.heads, story.window),
            &got,
            &want,
            tolerance(story.dtype),
        );
    }
}

/// A row of a tree against the same keys and query in plain decoding.
#[track_caller]
fn check_replay(device: &TestDevice, story: &Story, tree: &Sequence, rows: &[usize]) {
    for way in ways(device, story.dtype) {
        check_replay_in(&way, story, tree, rows);
    }
}

#[track_caller]
fn check_replay_in(way: &Way, story: &Story, tree: &Sequence, rows: &[usize]) {
    way.enter();
    let together = &run(&way.device, story, std::slice::from_ref(tree), 1)[0];
    for &row in rows {
        let alone = &run(&way.device, story, &[tree.replay(row, 1)], 2)[0][0];
        let name = format!("row {row} of {} behind {} {way:?}", tree.queries.len(), tree.prefix_len);
        let name = format!("{name} {:?} {:?} window {:?}", story.dtype, story.heads, story.window);
        same_bits(&name, &together[row], alone);
    }
}

#[test]
fn agrees_with_the_oracle() {
    let device = device();
    let mut rng = Rng::new(1);
    for dtype in MODEL_DTYPES {
        for (heads, prefix_len, rows) in [
            (heads(4, 1, 64), 0, 1),   // first token
            (heads(2, 2, 32), 63, 2),  // the tail crosses a tile
            (heads(7, 1, 32), 255, 5), // rows that straddle row tiles, the tail crosses a split
            (heads(8, 1, 128), 40, 3), // two row tiles
            (heads(3, 3, 96), 130, 4), // three kv heads
        ] {
            let story = Story::new(dtype, heads, 300, rng.next());
            let tree = Sequence::tree(&mut rng, prefix_len, rows, true, story.len());
            check_against_oracle(&device, &story, &[Sequence::chunk(prefix_len, rows), tree], "ragged");
        }
    }
}

#[test]
fn one_strong_key_and_huge_scores() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let mut story = Story::new(dtype, heads(2, 1, 32), 80, 5);
        for key in story.k[70 * 32..71 * 32].iter_mut() {
            *key = round_to(dtype, *key * 100.0);
        }
        // A weight error is relative to the score, here a thousand times greater.
        for way in ways(&device, dtype) {
            way.enter();
            let out = run(&way.device, &story, &[Sequence::chunk(79, 1)], 3);
            assert!(out.concat().concat().iter().all(|x| x.is_finite()), "{dtype:?} {way:?}");
        }
    }
}

#[test]
fn a_tree_node_has_the_bits_of_plain_decoding() {
    let device = device();
    let mut rng = Rng::new(2);
    let edges = [0, 1, 15, 16, 63, 64, 65, 255, 256, 257, 511, 513];
    let groups = [(1, 1), (4, 1), (7, 1), (8, 1)];
    let dims = [32, 64, 96, 128];
    for (case, prefix_len) in edges.into_iter().enumerate() {
        for dtype in MODEL_DTYPES {
            // Every edge in every dtype; heads and sizes in turn, so that each meets each within a few edges.
            let ((num_q_heads, num_kv_heads), head_dim) = (groups[case % 4], dims[(case / 4 + case) % 4]);
            let story =
                Story::new(dtype, heads(num_q_heads, num_kv_heads, head_dim), prefix_len + 24, rng.next());
            let nodes = 2 + rng.below(12);
            let tree = Sequence::tree(&mut rng, prefix_len, nodes, case % 2 == 0, story.len());
            let rows = [0, nodes / 2, nodes - 1];
            check_replay(&device, &story, &tree, &rows);
        }
    }
}

#[test]
fn a_chunk_has_the_bits_of_one_by_one() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (prefix_len, rows) in [(0, 20), (60, 9), (250, 10)] {
            let story = Story::new(dtype, heads(2, 1, 32), prefix_len + rows, 11);
            let chunk = Sequence::chunk(prefix_len, rows);
            check_replay(&device, &story, &chunk, &(0..rows).step_by(3).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_end_of_the_prefix_does_not_show() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let story = Story::new(dtype, heads(4, 1, 64), 330, 13);
        let last = Sequence::chunk(329, 1);
        for way in ways(&device, dtype) {
            way.enter();
            let want = run(&way.device, &story, std::slice::from_ref(&last), 1).concat().concat();
            for tail in [2, 10, 74, 75, 140, 256] {
                let got = run(&way.device, &story, &[last.replay(0, tail)], 2).concat().concat();
                same_bits(&format!("{tail} of 330 keys behind the prefix, {dtype:?} {way:?}"), &got, &want);
            }
        }
    }
}

#[test]
fn a_row_does_not_see_its_neighbours() {
    let device = device();
    let mut rng = Rng::new(17);
    for dtype in MODEL_DTYPES {
        let story = Story::new(dtype, heads(4, 2, 32), 120, rng.next());
        for nodes in [8, 60, 200] {
            let tree = Sequence::tree(&mut rng, 70, nodes, true, story.len());
            let others = [Sequence::chunk(3, 5), tree.clone(), Sequence::chunk(90, 1)];
            for way in ways(&device, dtype) {
                way.enter();
                let together = &run(&way.device, &story, &others, 3)[1];
                for row in [0, nodes / 2, nodes - 1] {
                    let alone = &run(&way.device, &story, &[tree.replay(row, 1)], 4)[0][0];
                    same_bits(&format!("row {row} among {nodes} {dtype:?} {way:?}"), &together[row], alone);
                }
            }
        }
    }
}

#[test]
fn trees_larger_than_the_shared_memory() {
    // At head_dim 128 a CTA holds 128 keys and values: deep trees are staged tile by tile, wide ones node by node.
    let device = device();
    for (heads, prefix_len, branchy) in [(heads(1, 1, 128), 40, true), (heads(8, 1, 128), 50, false)] {
        let story = Story::new(DType::Bf16, heads, 300, 41);
        let tree = Sequence::tree(&mut Rng::new(43), prefix_len, 200, branchy, story.len());
        check_replay(&device, &story, &tree, &[0, 63, 64, 130, 177, 198, 199]);
        check_against_oracle(&device, &story, &[tree], "large tree");
    }
}

#[test]
fn units_of_keys_do_not_show() {
    let device = device();
    for (dtype, num_q_heads) in [(DType::Bf16, 2), (DType::Bf16, 6), (DType::F16, 2), (DType::F32, 2)] {
        let heads = Heads { page_size: 32, ..heads(num_q_heads, 1, 32) };
        let story = Story::new(dtype, heads, 4200, 19);
        let tree = Sequence::tree(&mut Rng::new(3), 4190, 6, true, story.len());
        let ragged = [Sequence::chunk(4196, 4), Sequence::chunk(200, 1), tree, Sequence::chunk(2046, 3)];
        let pass = Pass::new(&device, &story, &ragged, &mut Rng::new(3));
        for way in ways(&device, dtype) {
            way.enter();
            let want = pass.run_in_units(&way.device, &story, 1);
            check_against_oracle_row(&pass, &story, 4199, &want[3]);
            for splits_each in [8, 17] {
                let got = pass.run_in_units(&way.device, &story, splits_each);
                same_bits(
                    &format!("{splits_each} splits each {dtype:?} {way:?}"),
                    &got.concat(),
                    &want.concat(),
                );
            }
            let alone = run(&way.device, &story, &[Sequence::chunk(4199, 1)], 1).concat().concat();
            same_bits(&format!("a row alone {dtype:?} {way:?}"), &alone, &want[3]);
        }
    }
}

fn check_against_oracle_row(pass: &Pass, story: &Story, position: usize, got: &[f32]) {
    let at =
        reference::Sequence { prefix_len: position + 1, pages: &pass.host.pages[0], window: story.window };
    let q = &story.q[position * story.q_width()..][..story.q_width()];
    let (k, v) = (&pass.host.k_cache, &pass.host.v_cache);
    let want = reference::row(q, k, v, &at, &[0; 4], sm_scale(story), story.heads);
    close("long context", got, &want, tolerance(story.dtype));
}

/// Every family in order, then under random schedules.
#[track_caller]
fn check_schedules(device: &TestDevice, story: &Story, sequences: &[Sequence]) {
    for way in ways_in(device, story.dtype, &device.modes()[..1]) {
        way.enter();
        let want = run(&way.device, story, sequences, 1).concat().concat();
        for mode in device.schedules() {
            device.enter(mode);
            let got = run(&way.device, story, sequences, 1).concat().concat();
            same_bits(&format!("{:?} window {:?} {way:?} {mode:?}", story.dtype, story.window), &got, &want);
        }
    }
}

#[test]
fn schedules_do_not_matter() {
    let device = device();
    for dtype in [DType::Bf16, DType::F32] {
        for (heads, rows) in [(heads(2, 1, 32), 3), (heads(8, 1, 32), 5)] {
            let story = Story::new(dtype, heads, 100, 23);
            let tree = Sequence::tree(&mut Rng::new(29), 66, rows, true, story.len());
            check_schedules(&device, &story, std::slice::from_ref(&tree));
        }
    }
}

/// Many random trees; `SMART_SOAK=1` runs more.
#[test]
fn random_trees_replayed() {
    let device = device();
    let soak = std::env::var_os("SMART_SOAK").is_some_and(|value| value == "1");
    let mut rng = Rng::new(31);
    for _ in 0..if soak { 1000 } else { 100 } {
        let dtype = MODEL_DTYPES[rng.below(3)];
        let num_kv_heads = 1 + rng.below(2);
        let group = [1, 2, 3, 4, 5, 7, 8][rng.below(7)];
        let head_dim = [32, 64, 96, 128][rng.below(if soak { 4 } else { 2 })];
        let prefix_len = rng.below(if soak { 1200 } else { 300 });
        let nodes = 1 + rng.below(if soak { 256 } else { 40 });
        let heads = Heads {
            page_size: 16 * (1 + rng.below(3)),
            ..heads(num_kv_heads * group, num_kv_heads, head_dim)
        };
        let mut story = Story::new(dtype, heads, prefix_len + nodes, rng.next());
        story.window = [None, Some(1 + rng.below(prefix_len + nodes))][rng.below(2)];
        let branchy = rng.below(2) == 0;
        let tree = Sequence::tree(&mut rng, prefix_len, nodes, branchy, story.len());
        let rows = [rng.below(nodes), nodes - 1];
        check_replay(&device, &story, &tree, &rows);
    }
}

#[test]
fn bits_of_rows_of_earlier_passes() {
    // A drafter's level: one row that sees KV rows 0, 2 and 5 behind the prefix, none of them in this pass.
    let device = device();
    for dtype in MODEL_DTYPES {
        let story = Story::new(dtype, heads(4, 1, 32), 60, 37);
        let level = Sequence {
            prefix_len: 40,
            content: (0..46).collect(),
            queries: vec![50],
            ancestors: vec![[0b100101, 0, 0, 0]],
        };
        check_replay(&device, &story, &level, &[0]);
        check_against_oracle(&device, &story, &[level], "drafter level");
    }
}
