//! The tiles of linear layers, how K is cut, and which blocks run in clusters.

use crate::device::{ClusterLaunch, DType, Device, MAX_CLUSTER, TensorCoreFamily};
use crate::error::Result;

pub(super) const TILE_K: usize = 64;
/// Weight rows of the narrow tiles of every family: what splits are reckoned by.
const NARROW_WEIGHTS: usize = 64;
/// CTAs that keep every SM of a large GPU busy with four. A constant: splits decide the order of additions,
/// so they may not depend on the machine.
const WANTED_CTAS: usize = 512;
/// Shortest split worth its partial sums, in k tiles (512 elements).
const MIN_SPLIT_TILES: usize = 8;
/// Rows of one launch with splits, which bounds the workspace; longer passes are cut.
pub(super) const MAX_SPLIT_ROWS: usize = 256;

/// One instantiation of the kernel: its tile, its pipeline depth and its names.
pub(super) struct Tile {
    pub(super) tokens: usize,
    pub(super) weights: usize,
    pub(super) threads: u32,
    stages: usize,
    /// CTAs that share tokens, where so many can run in a cluster; 1: none.
    sharing: u32,
    /// Whether Hopper's copy engine brings them, by tensor maps.
    pub(super) bulk: bool,
    /// Of bf16 and f16, each plain and gated.
    kernels: [[&'static str; 2]; 2],
}

impl Tile {
    /// Of its stages, each a tile of weights and one of tokens.
    pub(super) fn shared_bytes(&self) -> u32 {
        let row_bytes = TILE_K * DType::Bf16.size_in_bytes();
        (self.stages * (self.tokens + self.weights) * row_bytes) as u32
    }

    /// Blocks of a launch for `rows` rows and `n` weight rows.
    fn grid(&self, rows: usize, n: usize, splits: Splits) -> [u32; 3] {
        [rows.div_ceil(self.tokens) as u32, n.div_ceil(self.weights) as u32, splits.count as u32]
    }

    /// Name of the kernel.
    pub(super) fn kernel(&self, dtype: DType, gated: bool) -> &'static str {
        self.kernels[usize::from(dtype != DType::Bf16)][usize::from(gated)]
    }
}

/// A [`Tile`] with the names of its kernels.
macro_rules! tile {
    ($family:literal, $tokens:literal, $weights:literal, $threads:literal, $stages:literal, $sharing:literal, $bulk:literal $(, $suffix:literal)?) => {
        Tile {
            tokens: $tokens,
            weights: $weights,
            threads: $threads,
            stages: $stages,
            sharing: $sharing,
            bulk: $bulk,
            kernels: [
                [
                    concat!("linear", $family, "_bf16_t", $tokens $(, $suffix)?),
                    concat!("linear_swiglu", $family, "_bf16_t", $tokens $(, $suffix)?),
                ],
                [
                    concat!("linear", $family, "_f16_t", $tokens $(, $suffix)?),
                    concat!("linear_swiglu", $family, "_f16_t", $tokens $(, $suffix)?),
                ],
            ],
        }
    };
}

/// In ascending order of tokens, of equals the one with most weights first; must match the instantiations in `kernels/linear.cu` and
/// `kernels/linear_bulk.cu`.
const MMA_TILES: &[Tile] = &[
    tile!("", 8, 64, 128, 4, 1, false),
    tile!("_bulk", 8, 64, 160, 5, 1, true),
    tile!("", 16, 64, 128, 4, 1, false),
    tile!("_bulk", 16, 64, 160, 5, 1, true),
    tile!("", 32, 128, 256, 4, 1, false, "_w128"),
    tile!("_bulk", 32, 128, 288, 5, 1, true, "_w128"),
    tile!("", 32, 64, 128, 4, 1, false),
    tile!("_bulk", 64, 256, 288, 5, 2, true, "_w256"),
    tile!("", 64, 128, 256, 3, 1, false, "_w128"),
    tile!("", 64, 64, 128, 3, 1, false),
    tile!("", 128, 128, 128, 3, 1, false),
    tile!("_bulk", 128, 128, 288, 6, 4, true),
];

/// The same for `kernels/linear_wgmma.cu`.
const WGMMA_TILES: &[Tile] = &[
    tile!("_wgmma", 8, 64, 160, 5, 1, true),
    tile!("_wgmma", 16, 64, 160, 5, 1, true),
    tile!("_wgmma", 32, 128, 288, 5, 1, true, "_w128"),
    tile!("_wgmma", 32, 64, 160, 5, 1, true),
    tile!("_wgmma", 64, 256, 544, 5, 2, true, "_w256"),
    tile!("_wgmma", 64, 64, 160, 5, 2, true),
    tile!("_wgmma", 128, 256, 544, 4, 4, true, "_w256"),
    tile!("_wgmma", 128, 128, 288, 7, 4, true),
    tile!("_wgmma", 256, 128, 288, 4, 4, true),
];

pub(super) fn tiles(family: TensorCoreFamily) -> &'static [Tile] {
    match family {
        TensorCoreFamily::Mma => MMA_TILES,
        TensorCoreFamily::Wgmma => WGMMA_TILES,
    }
}

/// How K is cut: a function of the weight's shape alone, because it decides the order of additions. Into a power of two as long as parts have
/// some eight tiles, so that a cluster has room for all, and perhaps twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Splits {
    pub(super) count: usize,
    pub(super) tiles_each: usize,
}

pub(super) fn splits(n: usize, k: usize) -> Splits {
    let k_tiles = k.div_ceil(TILE_K).max(1);
    let wanted = (WANTED_CTAS / n.div_ceil(NARROW_WEIGHTS).max(1)).min(k_tiles / MIN_SPLIT_TILES).max(1);
    let tiles_each = k_tiles.div_ceil(1 << wanted.ilog2());
    Splits { count: k_tiles.div_ceil(tiles_each), tiles_each }
}

/// Tickets that an `[n, k]` weight needs: tiles of the launch that has the most, of any family.
pub(super) fn tickets_len(n: usize, k: usize) -> usize {
    let splits = splits(n, k);
    if splits.count == 1 {
        return 0;
    }
    // Narrow tiles are the most.
    let launches = TensorCoreFamily::ALL.into_iter().flat_map(|family| {
        let rows = tiles(family).iter().map(|tile| tile.tokens).chain([MAX_SPLIT_ROWS]);
        let rules = Rules { family, wide_from_ctas: u32::MAX, bulk: false };
        rows.map(move |rows| rules.tile(rows, n, splits).grid(rows, n, splits))
    });
    launches.map(|[x, y, _]| (x * y) as usize).max().unwrap_or(0)
}

/// Elements of partial sums that passes of up to `max_rows` rows make with an `[n, k]` weight.
pub(super) fn workspace_len(max_rows: usize, n: usize, k: usize) -> usize {
    match splits(n, k).count {
        1 => 0,
        count => count * max_rows.min(MAX_SPLIT_ROWS) * n,
    }
}

/// Tokens of the tiles that `rows` rows take.
pub(super) fn tokens_for(family: TensorCoreFamily, rows: usize) -> usize {
    let tiles = tiles(family);
    let tokens = tiles.iter().map(|tile| tile.tokens).find(|&tokens| rows <= tokens);
    tokens.unwrap_or(tiles[tiles.len() - 1].tokens)
}

/// Tiles of so many tokens, that with most weights first. Which of them decides speed only.
pub(super) fn tiles_of(
    family: TensorCoreFamily,
    tokens: usize,
) -> impl DoubleEndedIterator<Item = &'static Tile> {
    tiles(family).iter().filter(move |tile| tile.tokens == tokens)
}

/// What goes by rule where nothing has been measured.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) family: TensorCoreFamily,
    /// CTAs of a launch from which on more weights share a tile.
    pub(super) wide_from_ctas: u32,
    /// Whether the copy engine brings tiles also where threads could.
    pub(super) bulk: bool,
}

impl Rules {
    pub(super) fn of(device: &Device) -> Self {
        Self {
            family: device.linear_family(),
            wide_from_ctas: device.wide_from_ctas(),
            bulk: device.prefers_bulk_tiles(),
        }
    }

    /// The tile for `rows` rows: of those for as many rows the one with the most weights that makes `wide_from_ctas` CTAs, as every tile reads the
    /// rows once more.
    pub(super) fn tile(&self, rows: usize, n: usize, splits: Splits) -> &'static Tile {
        let of_tokens = || tiles_of(self.family, tokens_for(self.family, rows));
        let has_wanted = of_tokens().any(|tile| tile.bulk == self.bulk);
        let fitting = || of_tokens().filter(|tile| !has_wanted || tile.bulk == self.bulk);
        let ctas = |tile: &&Tile| tile.grid(rows, n, splits).iter().product::<u32>();
        let busy = fitting().find(|tile| ctas(tile) >= self.wide_from_ctas);
        busy.or(fitting().next_back()).expect("a tile of every number of tokens")
    }
}

/// The grid of a launch, and its clusters, of which it has whole ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) blocks: [u32; 3],
    /// `[1, 1, 1]`: none.
    pub(super) cluster: [u32; 3],
}

impl Grid {
    /// Whose blocks have nothing to do with each other.
    pub(super) fn apart(tile: &Tile, rows: usize, n: usize, splits: Splits) -> Self {
        Self { blocks: tile.grid(rows, n, splits), cluster: [1; 3] }
    }

    /// The same in clusters: where K is cut the parts of a tile meet in the shared memory of one, as a block that had to fetch them all from
    /// memory would be long at it; and up to `most_sharing` tiles of weights share their tokens, where the tile is for many. As many as can be without
    /// taking longer; `None` where that is a block.
    pub(super) fn in_clusters(
        self,
        device: &Device,
        kernel: &str,
        tile: &Tile,
        most_sharing: u32,
    ) -> Result<Option<Self>> {
        let [x, y, parts] = self.blocks;
        let (threads, shared_bytes) = (tile.threads, tile.shared_bytes());
        // Powers of two, so that every block has whole boxes of the tokens.
        let mut sharing = tile.sharing.min(most_sharing).min(1 << y.ilog2());
        while sharing > 0 {
            let (blocks, cluster) = ([x, y.next_multiple_of(sharing), parts], [1, sharing, parts]);
            let size = sharing * parts;
            let launch = ClusterLaunch { grid: blocks, threads, shared_bytes, cluster };
            if size > 1 && size as usize <= MAX_CLUSTER && device.runs_clusters(kernel, launch)? {
                return Ok(Some(Self { blocks, cluster }));
            }
            sharing /= 2;
        }
        Ok(None)
    }

    /// Blocks of a cluster; 1: none.
    pub(super) fn cluster_size(&self) -> usize {
        self.cluster.iter().product::<u32>() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceChoice, WIDE_FROM_CTAS};

    const MMA: Rules = Rules { family: TensorCoreFamily::Mma, wide_from_ctas: WIDE_FROM_CTAS, bulk: false };
    const WGMMA: Rules = Rules { family: TensorCoreFamily::Wgmma, ..MMA };

    #[test]
    fn splits_give_small_weights_enough_ctas() {
        assert_eq!(splits(4096, 4096), Splits { count: 8, tiles_each: 8 });
        assert_eq!(splits(28672, 4096), Splits { count: 1, tiles_each: 64 });
        assert_eq!(
            splits(6144, 4096),
            Splits { count: 4, tiles_each: 16 },
            "five would not fit twice into a cluster"
        );
        assert_eq!(splits(3584, 18944), Splits { count: 8, tiles_each: 37 }, "nine would fit into none");
        assert_eq!(splits(256, 896), Splits { count: 1, tiles_each: 14 });
        assert_eq!(splits(1, 8), Splits { count: 1, tiles_each: 1 });
    }

    #[test]
    fn splits_cover_k_and_none_is_empty() {
        for (n, k) in [(64, 1024), (64, 1032), (4096, 14336), (6144, 4096), (100, 70_000), (8, 8)] {
            let Splits { count, tiles_each } = splits(n, k);
            assert!(count * tiles_each * TILE_K >= k, "{n} x {k}");
            assert!((count - 1) * tiles_each * TILE_K < k, "{n} x {k}");
        }
    }

    #[test]
    fn tiles_grow_with_the_rows() {
        let one = splits(4096, 4096);
        let tokens = |family| [1, 8, 9, 16, 17, 33, 64, 65, 129, 500].map(|rows| tokens_for(family, rows));
        assert_eq!(tokens(MMA.family), [8, 8, 16, 16, 32, 64, 64, 128, 128, 128]);
        assert_eq!(tokens(WGMMA.family), [8, 8, 16, 16, 32, 64, 64, 128, 256, 256]);
        let parts = Splits { count: 3, tiles_each: 9 };
        let tile = MMA.tile(300, 200, parts);
        assert_eq!(tile.grid(300, 200, parts), [3, 2, 3]);
        assert_eq!(tile.shared_bytes(), 3 * 256 * 128);
        assert_eq!(MMA.tile(1, 64, one).shared_bytes(), 36 * 1024);
        assert_eq!(WGMMA.tile(300, 200, one).grid(300, 200, one), [2, 2, 8]);
    }

    /// Tiles of few tokens share a multiprocessor, which has 228 KB, of which each CTA costs one more; no CTA has more than 227.
    #[test]
    fn stages_fit_and_narrow_tiles_share() {
        for family in TensorCoreFamily::ALL {
            for tile in tiles(family) {
                let shares = tile.tokens <= 64 && tile.weights <= 128;
                let most = if shares { 113 } else { 227 };
                assert!(tile.shared_bytes() <= most * 1024, "{}", tile.kernels[0][0]);
            }
        }
    }

    /// Wide tiles want weights that keep the GPU busy: all of an 8B's do, a small model's square ones do not.
    #[test]
    fn weights_of_a_tile_grow_with_the_layer() {
        let weights = |rows: usize, n: usize, k: usize| WGMMA.tile(rows, n, splits(n, k)).weights;
        for (n, k) in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128_256, 4096)] {
            assert_eq!([8, 32, 64, 128, 256].map(|rows| weights(rows, n, k)), [64, 128, 256, 256, 128]);
        }
        assert_eq!([32, 64, 128].map(|rows| weights(rows, 2048, 2048)), [64, 64, 128]);
        assert_eq!([32, 64, 128].map(|rows| weights(rows, 2048, 8192)), [128, 256, 256]);
        let weights = |rows: usize| MMA.tile(rows, 4096, splits(4096, 4096)).weights;
        assert_eq!([8, 32, 64, 128].map(weights), [64, 128, 128, 128]);
    }

    /// Where K is cut its parts are a cluster; elsewhere tiles of many tokens share these, over a grid of whole clusters.
    #[test]
    fn parts_meet_and_tokens_are_shared() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let clusters = |rules: Rules, rows: usize, n: usize, k: usize| {
            let tile = rules.tile(rows, n, splits(n, k));
            let grid = Grid::apart(tile, rows, n, splits(n, k));
            let found = grid.in_clusters(&device, tile.kernel(DType::Bf16, false), tile, u32::MAX).unwrap();
            found.map(|grid| (grid.blocks, grid.cluster))
        };
        let bulk = Rules { bulk: true, ..MMA };
        for rules in [MMA, bulk, WGMMA] {
            assert_eq!(clusters(rules, 8, 4096, 4096), Some(([1, 64, 8], [1, 1, 8])));
        }
        assert_eq!(clusters(MMA, 8, 256, 14336), Some(([1, 4, 16], [1, 1, 16])));
        assert_eq!(clusters(MMA, 8, 256, 28672), None, "more parts than a cluster has blocks");
        assert_eq!(clusters(MMA, 128, 28672, 4096), None, "nobody fetches for others by cp.async");
        assert_eq!(clusters(bulk, 128, 28672, 4096), Some(([1, 224, 1], [1, 4, 1])));
        assert_eq!(clusters(WGMMA, 128, 28672, 4096), Some(([1, 112, 1], [1, 4, 1])));
        assert_eq!(clusters(WGMMA, 64, 128_256, 4096), Some(([1, 502, 1], [1, 2, 1])), "501 tiles");
        assert_eq!(clusters(bulk, 300, 384, 72), Some(([3, 4, 1], [1, 2, 1])), "three tiles, so by two");
        assert_eq!(clusters(bulk, 64, 256, 72), None, "one tile");
        // Of an 8B's o and down: the parts of two tiles.
        for rules in [bulk, WGMMA] {
            let tiles = 4096 / rules.tile(128, 4096, splits(4096, 14336)).weights as u32;
            assert_eq!(clusters(rules, 128, 4096, 14336), Some(([1, tiles, 8], [1, 2, 8])));
        }
        assert_eq!(clusters(WGMMA, 128, 6144, 4096), Some(([1, 24, 4], [1, 4, 4])));
    }

    /// The copy engine brings the tiles of `mma` where that is asked for, at all widths.
    #[test]
    fn tiles_come_as_asked() {
        for bulk in [false, true] {
            for rows in [1, 16, 32, 64, 128, 500] {
                let rules = Rules { bulk, ..MMA };
                assert_eq!(rules.tile(rows, 4096, splits(4096, 4096)).bulk, bulk, "{rows} rows");
            }
        }
    }

    #[test]
    fn every_family_has_tickets_for_its_tiles() {
        for n in [8, 64, 200, 4096] {
            for family in TensorCoreFamily::ALL {
                let splits = splits(n, 4096);
                let ways = [(1, false), (WIDE_FROM_CTAS, false), (u32::MAX, true), (1, true)];
                for (rows, (wide_from_ctas, bulk)) in
                    [1, 64, 65, 128, 129, 256].into_iter().flat_map(|rows| ways.map(|way| (rows, way)))
                {
                    let rules = Rules { family, wide_from_ctas, bulk };
                    let [x, y, _] = rules.tile(rows, n, splits).grid(rows, n, splits);
                    assert!((x * y) as usize <= tickets_len(n, 4096), "{family:?}: {rows} rows of {n}");
                }
            }
        }
    }

    #[test]
    fn workspace_is_bounded_and_absent_without_splits() {
        assert_eq!(workspace_len(64, 28672, 4096), 0);
        assert_eq!(workspace_len(8, 4096, 4096), 8 * 8 * 4096);
        assert_eq!(workspace_len(2048, 4096, 4096), 8 * 256 * 4096);
    }
}
