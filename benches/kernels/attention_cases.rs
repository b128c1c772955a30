//! Attention over trees: sequences, contexts, trees, heads, pages and windows, by each family of kernels that the device has.

use smart_run::Result;
use smart_run::device::{DType, Device, Tensor, TensorCoreFamily};
use smart_run::kernels::tree_attention::{TreeAttentionArgs, tree_attention, workspace_len};
use smart_run::reference;

use super::measure::{Case, Entry, near};
use super::row_cases::row;
use super::setting::{Model, Setting};
use super::shapes::TreeForm;

/// K/V positions of a page, where nothing else is said.
pub const PAGE: usize = 16;

/// How long the texts of a batch are; `context` is the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lengths {
    Equal,
    /// From a B-th of the longest up, evenly.
    Uniform,
    /// The i-th has an i-th of the longest.
    Zipf,
}

/// A launch.
#[derive(Clone, Copy)]
struct Shape {
    sequences: usize,
    context: usize,
    nodes: usize,
    tree: TreeForm,
    heads: (usize, usize),
    page: usize,
    window: Option<usize>,
    lengths: Lengths,
}

impl Shape {
    /// Keys before the tree, a sequence each.
    fn contexts(&self) -> Vec<usize> {
        let length = |i: usize| match self.lengths {
            Lengths::Equal => self.context,
            Lengths::Uniform => self.context * i / self.sequences,
            Lengths::Zipf => self.context / i,
        };
        (1..=self.sequences).map(length).collect()
    }

    fn entry(self, (way, device): (&'static str, Device), rank: u8) -> Entry {
        let Self { sequences, context, nodes, tree, heads, page, window, lengths } = self;
        let mut name = format!("tree_attention B={sequences} context={context} nodes={nodes}");
        if tree != TreeForm::Eagle && nodes > 1 {
            name += &format!(" {tree:?}");
        }
        name += &format!(" heads={}/{}", heads.0, heads.1);
        if page != PAGE {
            name += &format!(" page={page}");
        }
        if lengths != Lengths::Equal {
            name += &format!(" lengths={lengths:?}");
        }
        if let Some(window) = window {
            name += &format!(" window={window}");
        }
        name += &format!(" {way}");
        let json = serde_json::json!({
            "family": "attention", "instructions": way, "sequences": sequences, "context": context, "contexts": self.contexts(), "nodes": nodes,
            "tree": format!("{tree:?}"), "parents": tree.parents(nodes), "q_heads": heads.0, "kv_heads": heads.1,
            "page": page, "window": window,
        });
        let build = move |setting: &Setting| attention_case(setting, device.clone(), &self);
        Entry::new(rank, name, json, build)
    }
}

/// The grid; families of one shape are neighbours, and of the usual shapes each again without clusters, where few sequences could have some.
pub fn attention(setting: &Setting) -> Vec<Entry> {
    let there = |family: TensorCoreFamily| Some((family, setting.device.with_attention_family(family).ok()?));
    let families: Vec<(TensorCoreFamily, Device)> =
        TensorCoreFamily::ALL.into_iter().filter_map(there).collect();
    let of_shape = |(shape, rank): (Shape, u8)| {
        let apart = (rank == 0 && shape.sequences <= 4).then_some(1);
        let of_family = move |(family, device): &(TensorCoreFamily, Device)| {
            let without_clusters = match family {
                TensorCoreFamily::Mma => "mma, no clusters",
                TensorCoreFamily::Wgmma => "wgmma, no clusters",
            };
            let usual = shape.entry((family.name(), device.clone()), rank);
            let apart = apart.map(|rank| shape.entry((without_clusters, device.with_clusters(false)), rank));
            std::iter::once(usual).chain(apart).collect::<Vec<_>>()
        };
        families.iter().flat_map(of_family).collect::<Vec<_>>()
    };
    shapes(setting.model).into_iter().flat_map(of_shape).collect()
}

/// First the combinations of every day, then other trees, heads, lengths and pages, then all; each with its rank.
fn shapes(model: &Model) -> Vec<(Shape, u8)> {
    let grid = model.attention;
    let usual = |[sequences, context, nodes]: [usize; 3]| Shape {
        sequences,
        context,
        nodes,
        tree: TreeForm::Eagle,
        heads: grid.heads[0],
        page: PAGE,
        window: None,
        lengths: Lengths::Equal,
    };
    let mut shapes: Vec<(Shape, u8)> = grid.first.iter().map(|&first| (usual(first), 0)).collect();
    for &first in grid.first {
        let shape = usual(first);
        if shape.nodes > 1 {
            shapes.extend([TreeForm::Chain, TreeForm::Star].map(|tree| (Shape { tree, ..shape }, 1)));
        }
        shapes.extend(grid.heads[1..].iter().map(|&heads| (Shape { heads, ..shape }, 1)));
        if shape.sequences > 1 {
            let lengths = [Lengths::Uniform, Lengths::Zipf];
            shapes.extend(lengths.map(|lengths| (Shape { lengths, ..shape }, 1)));
        }
        // Mistral's share of context to window at 16k: 4 to 1.
        shapes.push((Shape { window: Some(shape.context / 4), ..shape }, 1));
        let others = grid.page_sizes.iter().filter(|&&page| page != PAGE);
        shapes.extend(others.map(|&page| (Shape { page, ..shape }, 2)));
    }
    for &heads in grid.heads {
        for &nodes in grid.nodes {
            for &context in grid.contexts {
                for &sequences in grid.sequences {
                    if sequences * (context + nodes) * heads.1 > grid.most_keys * grid.heads[0].1 {
                        continue;
                    }
                    let shape = Shape { heads, ..usual([sequences, context, nodes]) };
                    shapes.push((shape, if heads == grid.heads[0] { 2 } else { 3 }));
                    if nodes > 1 {
                        let others = [TreeForm::Chain, TreeForm::Star];
                        shapes.extend(others.map(|tree| (Shape { tree, ..shape }, 3)));
                    }
                }
            }
        }
    }
    shapes
}

fn attention_case(setting: &Setting, device: Device, shape: &Shape) -> Result<Case> {
    let &Shape { sequences, nodes, tree, heads: (q_heads, kv_heads), page, window, .. } = shape;
    let head_dim = setting.model.head_dim;
    let (rows, q_width) = (sequences * nodes, q_heads * head_dim);
    let contexts = shape.contexts();
    let max_kv_len = shape.context + nodes;
    let pages = max_kv_len.div_ceil(page);
    let cache = [sequences * pages, kv_heads, page, head_dim];
    // Each launch reads another layer's K and V, as far as the pool goes.
    let caches: Vec<Tensor> = (0..64).map(|i| setting.random(i, &cache)).collect();
    // A sequence's pages lie backwards, so that neighbours in the table are not neighbours in memory.
    let table: Vec<i32> =
        (0..sequences).flat_map(|b| (0..pages).rev().map(move |page| (b * pages + page) as i32)).collect();
    let words = tree.ancestors(nodes);
    let ancestors: Vec<u64> = (0..sequences).flat_map(|_| words.iter().flatten().copied()).collect();
    let ints = |values: Vec<i32>| setting.ints(&values);
    let q = setting.random(0, &[rows, q_width]);
    let page_table = ints(table.clone())?.reshape(&[sequences, pages]);
    let seq_start = ints((0..=sequences).map(|b| (b * nodes) as i32).collect())?;
    let prefix_len = ints(contexts.iter().map(|&context| context as i32).collect())?;
    let ancestors = Tensor::from_slice(&device, &ancestors, &[rows, 4])?;
    let out = setting.uninit(DType::Bf16, &[rows, q_width])?;
    let workspace = setting.uninit(DType::F32, &[workspace_len(rows, q_heads, head_dim, max_kv_len)])?;
    let sm_scale = (head_dim as f32).powf(-0.5);

    let heads = reference::tree_attention::Heads {
        num_q_heads: q_heads,
        num_kv_heads: kv_heads,
        head_dim,
        page_size: page,
    };
    // Of the first sequence, whose pages come first.
    let first_len = pages * kv_heads * page * head_dim;
    let second_start = setting.start(1, cache.iter().product());
    let (keys, values) = (setting.values(0, first_len), setting.values(second_start, first_len));
    let last_q = setting.values((nodes - 1) * q_width, q_width);
    let (read, last_words, first_context) = (out.clone(), words[nodes - 1], contexts[0]);
    let depth: u32 = words.iter().flatten().map(|word| word.count_ones()).sum();
    // A row sees its path, or the last `window` keys of it.
    let hidden =
        |context: usize| window.map_or(0, |window| (context + 1).saturating_sub(window).min(context));
    let shown: usize = contexts.iter().map(|&context| context - hidden(context)).sum();
    let seen = nodes * shown + sequences * depth as usize;
    Ok(Case {
        bytes: (4 * (shown + rows) * kv_heads * head_dim + 4 * rows * q_width) as f64,
        flops: (4 * seen * q_width) as f64,
        launch: Box::new(move |i| {
            let args = TreeAttentionArgs {
                q: &q,
                k_cache: &caches[2 * i % 64],
                v_cache: &caches[(2 * i + 1) % 64],
                page_table: &page_table,
                seq_start: &seq_start,
                prefix_len: &prefix_len,
                ancestors: &ancestors,
                out: &out,
                workspace: &workspace,
                window,
                sm_scale,
                num_q_heads: q_heads,
                num_kv_heads: kv_heads,
                head_dim,
                max_kv_len,
                max_rows: nodes,
            };
            tree_attention(&device, args)
        }),
        check: Box::new(move || {
            let pages = &table[..pages];
            let sequence = reference::tree_attention::Sequence { prefix_len: first_context, pages, window };
            let want = reference::tree_attention::row(
                &last_q,
                &keys,
                &values,
                &sequence,
                &last_words,
                sm_scale,
                heads,
            );
            near("tree_attention", &row(&read, nodes - 1)?, &want);
            Ok(())
        }),
    })
}
