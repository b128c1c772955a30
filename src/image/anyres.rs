//! The whole picture, and a larger one in tiles: LLaVA-NeXT (transformers: `LlavaNextImageProcessor`).

use super::patches::PatchWriter;
use super::resample::resize;
use super::{PatchLayout, Patches, Picture};
use crate::Result;
use crate::config::Anyres;

/// Chooses a resolution, and divides the picture into tiles.
#[derive(Debug, Clone)]
pub struct AnyresProcessor {
    config: Anyres,
    writer: PatchWriter,
}

impl AnyresProcessor {
    pub(super) fn new(config: Anyres, patch_size: usize) -> Self {
        let writer = PatchWriter::new(patch_size, 1, &config.scale);
        AnyresProcessor { config, writer }
    }

    /// How the patches of a picture of `original_size` stand.
    pub(super) fn layout(&self, original_size: (usize, usize)) -> PatchLayout {
        let tile = self.config.tile;
        let resolution = best_resolution(original_size, &self.config.pinpoints);
        let tile_grid = (resolution.0 / tile, resolution.1 / tile);
        PatchLayout {
            patch_len: self.writer.patch_len(),
            tiles: 1 + tile_grid.0 * tile_grid.1,
            tile_grid,
            grid: self.writer.grid(tile, tile),
            original_size,
        }
    }

    pub(super) fn prepare(&self, picture: &Picture) -> Result<Patches> {
        let tile = self.config.tile;
        let layout = self.layout(picture.size());
        let tile_grid = layout.tile_grid;
        let mut values = Vec::with_capacity(layout.num_values());

        let whole = resize(picture, (tile, tile), self.config.interpolation);
        self.writer.write_all(&whole, tile, &mut values);
        let resolution = (tile_grid.0 * tile, tile_grid.1 * tile);
        let large = self.padded(picture, resolution);
        let line_len = tile * 3;
        let mut pixels = Vec::with_capacity(tile * line_len);
        for row in 0..tile_grid.0 {
            for column in 0..tile_grid.1 {
                pixels.clear();
                for y in row * tile..(row + 1) * tile {
                    pixels.extend_from_slice(&large[(y * resolution.1 + column * tile) * 3..][..line_len]);
                }
                self.writer.write_all(&pixels, tile, &mut values);
            }
        }
        Patches::new(values, layout)
    }

    /// The picture as large as it fits into `resolution`, in the middle of black: `[resolution.0, resolution.1, 3]`.
    fn padded(&self, picture: &Picture, resolution: (usize, usize)) -> Vec<u8> {
        let size = fitted(picture.size(), resolution);
        let content = resize(picture, size, self.config.interpolation);
        let (top, left) = ((resolution.0 - size.0) / 2, (resolution.1 - size.1) / 2);
        let mut pixels = vec![0; resolution.0 * resolution.1 * 3];
        for (y, line) in content.chunks_exact(size.1 * 3).enumerate() {
            pixels[((top + y) * resolution.1 + left) * 3..][..line.len()].copy_from_slice(line);
        }
        pixels
    }
}

/// The resolution of `pinpoints` that keeps most of a picture of `original` pixels, and of these the one that wastes least; the
/// first where several do. All are (rows, columns).
///
/// # Panics
/// `pinpoints` is empty.
pub fn best_resolution(original: (usize, usize), pinpoints: &[(usize, usize)]) -> (usize, usize) {
    let rank = |&(rows, columns): &(usize, usize)| {
        let (height, width) = (original.0 as f64, original.1 as f64);
        let scale = (columns as f64 / width).min(rows as f64 / height);
        let kept = ((width * scale) as usize * (height * scale) as usize).min(original.0 * original.1);
        let wasted = (rows * columns) as i64 - kept as i64;
        (kept, -wasted)
    };
    let mut best = pinpoints[0];
    for candidate in pinpoints {
        if rank(candidate) > rank(&best) {
            best = *candidate;
        }
    }
    best
}

/// The largest size within `resolution` that keeps the aspect ratio, rounded up; (rows, columns).
fn fitted(original: (usize, usize), resolution: (usize, usize)) -> (usize, usize) {
    let (height, width) = (original.0 as f64, original.1 as f64);
    let across = resolution.1 as f64 / width;
    let down = resolution.0 as f64 / height;
    if across < down {
        (((height * across).ceil() as usize).min(resolution.0), resolution.1)
    } else {
        (resolution.0, ((width * down).ceil() as usize).min(resolution.1))
    }
}
