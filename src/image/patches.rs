//! What a vision tower is given of a picture, and how pixels become it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use crate::config::PixelScale;
use crate::{Error, Result};

/// Keyed anew in every process.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// How the patches of one picture stand. It follows from the picture's size, before there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PatchLayout {
    /// Numbers of a patch: 3 channels, frames if there are, pixels.
    pub patch_len: usize,
    /// Pictures that are encoded one by one: 1, or the tiles of LLaVA-NeXT, the whole picture first.
    pub tiles: usize,
    /// Tiles that the picture is divided into, (rows, columns), the whole picture not counted; (1, 1) where it is not divided.
    pub tile_grid: (usize, usize),
    /// Patches of a tile, (rows, columns).
    pub grid: (usize, usize),
    /// Size of the picture as decoded, (height, width) in pixels.
    pub original_size: (usize, usize),
}

impl PatchLayout {
    /// Patches of all tiles.
    pub fn num_patches(&self) -> usize {
        self.tiles.saturating_mul(self.grid.0).saturating_mul(self.grid.1)
    }

    /// Numbers of all patches.
    pub fn num_values(&self) -> usize {
        self.num_patches().saturating_mul(self.patch_len)
    }

    /// Bytes that the patches take.
    pub fn bytes(&self) -> usize {
        self.num_values().saturating_mul(size_of::<f32>())
    }
}

impl AsRef<PatchLayout> for PatchLayout {
    fn as_ref(&self) -> &PatchLayout {
        self
    }
}

/// What a vision tower is given of one picture: patches as rows. Clones share them.
#[derive(Clone)]
pub struct Patches {
    made: Arc<Made>,
    /// Dropped with the last clone; declared behind what it may stand for.
    share: Option<Arc<dyn Send + Sync>>,
}

struct Made {
    values: Vec<f32>,
    layout: PatchLayout,
    fingerprint: u64,
}

impl Patches {
    /// Patches of these `values`, see [`Patches::values`]. Reads them once, for the fingerprint: a tenth of a second for the largest pictures.
    ///
    /// # Errors
    /// [`Error::Input`]: more or fewer values than the layout has.
    pub fn new(values: Vec<f32>, layout: PatchLayout) -> Result<Self> {
        if values.len() != layout.num_values() {
            return Err(Error::Input(format!(
                "{} patches of {} numbers are not {} numbers",
                layout.num_patches(),
                layout.patch_len,
                values.len()
            )));
        }
        let fingerprint = HASHER.hash_one((bytemuck::cast_slice::<f32, u8>(&values), layout));
        Ok(Patches { made: Arc::new(Made { values, layout, fingerprint }), share: None })
    }

    /// These patches, holding `share`, such as one of a budget of memory, until they and all their clones from now on are dropped.
    pub fn holding(self, share: impl Send + Sync + 'static) -> Self {
        Patches { made: self.made, share: Some(Arc::new((share, self.share))) }
    }

    /// `[tiles * grid.0 * grid.1, patch_len]`, row-major, normalised; a row is one patch, (channel, \[frame,\] y, x).
    ///
    /// Patches of a tile go from left to right and from top to bottom. With dynamic resolution (Qwen2-VL), those that are
    /// merged into one token stand together: (rows / merge, columns / merge, merge, merge).
    pub fn values(&self) -> &[f32] {
        &self.made.values
    }

    /// How they stand.
    pub fn layout(&self) -> &PatchLayout {
        &self.made.layout
    }

    /// A hash of values and layout, the same for the same. It is keyed anew in every process, so nobody can prepare two pictures that pass
    /// for one.
    pub fn fingerprint(&self) -> u64 {
        self.made.fingerprint
    }
}

impl AsRef<PatchLayout> for Patches {
    fn as_ref(&self) -> &PatchLayout {
        self.layout()
    }
}

impl fmt::Debug for Patches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patches").field("layout", self.layout()).finish_non_exhaustive()
    }
}

/// Turns 8-bit pixels into rows of patches.
#[derive(Debug, Clone)]
pub(super) struct PatchWriter {
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Times that every channel stands in a row.
    pub frames: usize,
    /// What a level becomes, by channel.
    values: Box<[[f32; 256]; 3]>,
}

impl PatchWriter {
    pub fn new(patch_size: usize, frames: usize, scale: &PixelScale) -> Self {
        let mut values = Box::new([[0.0; 256]; 3]);
        for (channel, values) in values.iter_mut().enumerate() {
            for (level, value) in values.iter_mut().enumerate() {
                *value = scale.value(channel, level as u8);
            }
        }
        PatchWriter { patch_size, frames, values }
    }

    /// Length of a row.
    pub fn patch_len(&self) -> usize {
        3 * self.frames * self.patch_size * self.patch_size
    }

    /// Appends to `rows` the patch at (row, column) of the grid of `pixels` `[height, width, 3]`.
    pub fn write(&self, pixels: &[u8], width: usize, patch: (usize, usize), rows: &mut Vec<f32>) {
        let side = self.patch_size;
        for (channel, values) in self.values.iter().enumerate() {
            let start = rows.len();
            for y in patch.0 * side..(patch.0 + 1) * side {
                let line = &pixels[(y * width + patch.1 * side) * 3..][..side * 3];
                rows.extend(line.as_chunks::<3>().0.iter().map(|pixel| values[usize::from(pixel[channel])]));
            }
            let end = rows.len();
            for _ in 1..self.frames {
                rows.extend_from_within(start..end);
            }
        }
    }

    /// Appends all whole patches of `pixels` `[height, width, 3]`, row by row.
    ///
    /// What is left over at the right and at the bottom is no patch, as for a convolution without padding.
    pub fn write_all(&self, pixels: &[u8], width: usize, rows: &mut Vec<f32>) {
        let (patch_rows, patch_columns) = self.grid(pixels.len() / 3 / width, width);
        for row in 0..patch_rows {
            for column in 0..patch_columns {
                self.write(pixels, width, (row, column), rows);
            }
        }
    }

    /// Patches of a picture, (rows, columns).
    pub fn grid(&self, height: usize, width: usize) -> (usize, usize) {
        (height / self.patch_size, width / self.patch_size)
    }

    /// How the patches of a picture of `original_size` stand that is encoded whole, as one of `height` x `width` pixels.
    pub fn layout_of_one(&self, height: usize, width: usize, original_size: (usize, usize)) -> PatchLayout {
        let grid = self.grid(height, width);
        PatchLayout { patch_len: self.patch_len(), tiles: 1, tile_grid: (1, 1), grid, original_size }
    }
}

impl PixelScale {
    /// What `level` of `channel` becomes, with the roundings of transformers: the product is taken in f64 and rounded, the rest
    /// is f32.
    fn value(&self, channel: usize, level: u8) -> f32 {
        let scaled = match self.rescale {
            Some(factor) => (f64::from(level) * factor) as f32,
            None => f32::from(level),
        };
        match self.normalize {
            Some([mean, std]) => (scaled - mean[channel] as f32) / std[channel] as f32,
            None => scaled,
        }
    }
}
