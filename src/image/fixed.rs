//! Every picture in one size: CLIP, SigLIP and LLaVA (transformers: `CLIPImageProcessor`, `SiglipImageProcessor`,
//! `LlavaImageProcessor`).

use std::borrow::Cow;

use super::patches::PatchWriter;
use super::resample::resize_window;
use super::{MAX_PIXELS, PatchLayout, Patches, Picture};
use crate::config::{FixedResolution, ResizeTo};
use crate::{Error, Result};

/// Resizes, and keeps the centre.
#[derive(Debug, Clone)]
pub struct FixedProcessor {
    config: FixedResolution,
    writer: PatchWriter,
}

impl FixedProcessor {
    pub(super) fn new(config: FixedResolution, patch_size: usize) -> Self {
        let writer = PatchWriter::new(patch_size, 1, &config.scale);
        FixedProcessor { config, writer }
    }

    /// How the patches of a picture of `original_size` stand.
    ///
    /// # Errors
    /// [`Error::Input`] for a picture that is too large once it is padded.
    pub(super) fn layout(&self, original_size: (usize, usize)) -> Result<PatchLayout> {
        if self.config.pad_to_square.is_some() {
            check_square(original_size)?;
        }
        let (rows, columns) = self.config.output_size();
        Ok(self.writer.layout_of_one(rows, columns, original_size))
    }

    pub(super) fn prepare(&self, picture: &Picture) -> Result<Patches> {
        let layout = self.layout(picture.size())?;
        let picture = match self.config.pad_to_square {
            Some(color) => Cow::Owned(padded_to_square(picture, color)?),
            None => Cow::Borrowed(picture),
        };
        let (rows, columns) = self.config.output_size();
        let pixels = self.resized(&picture, rows, columns);
        let mut values = Vec::with_capacity(layout.num_values());
        self.writer.write_all(&pixels, columns, &mut values);
        Patches::new(values, layout)
    }

    /// The central `[rows, columns, 3]` of the resized picture, black where it is smaller.
    fn resized(&self, picture: &Picture, rows: usize, columns: usize) -> Vec<u8> {
        let size = self.config.resize.size_of(picture);
        let (from_rows, to_rows) = centre(size.0, rows);
        let (from_columns, to_columns) = centre(size.1, columns);
        let window =
            (from_rows..from_rows + rows.min(size.0), from_columns..from_columns + columns.min(size.1));
        let line_len = window.1.len() * 3;
        let visible = resize_window(picture, size, window, self.config.interpolation);
        if visible.len() == rows * columns * 3 {
            return visible;
        }
        let mut pixels = vec![0; rows * columns * 3];
        for (y, line) in visible.chunks_exact(line_len).enumerate() {
            pixels[((to_rows + y) * columns + to_columns) * 3..][..line_len].copy_from_slice(line);
        }
        pixels
    }
}

impl FixedResolution {
    /// (rows, columns) of every picture.
    pub(super) fn output_size(&self) -> (usize, usize) {
        match (self.crop, self.resize) {
            (Some(size), _) => size,
            (None, ResizeTo::Exact(rows, columns)) => (rows, columns),
            // Not made by the reader of the file.
            (None, ResizeTo::ShortestEdge(edge)) => (edge, edge),
        }
    }
}

impl ResizeTo {
    /// (rows, columns) that `picture` is resized to.
    fn size_of(self, picture: &Picture) -> (usize, usize) {
        let (height, width) = (picture.height(), picture.width());
        match self {
            ResizeTo::Exact(rows, columns) => (rows, columns),
            // int(edge * long / short) in Python: integers multiplied, then divided as floats.
            ResizeTo::ShortestEdge(edge) => {
                let long = |long: usize, short: usize| ((edge * long) as f64 / short as f64) as usize;
                if width <= height { (long(height, width), edge) } else { (edge, long(width, height)) }
            }
        }
    }
}

/// Where the centre of `len` begins in what there is, and where what there is begins in the centre: of `have` pixels, the half
/// that is one larger where the rest is odd is cut at the end, or filled at the beginning.
fn centre(have: usize, len: usize) -> (usize, usize) {
    (have.saturating_sub(len) / 2, len.saturating_sub(have).div_ceil(2))
}

/// Fails on a picture of `size`, (height, width), that is too large once it is padded to a square.
fn check_square((height, width): (usize, usize)) -> Result<()> {
    let side = height.max(width);
    if side * side > MAX_PIXELS {
        return Err(Error::Input(format!(
            "a picture of {width} x {height} pixels, padded to a square, has more than {} million; scale it down",
            MAX_PIXELS >> 20
        )));
    }
    Ok(())
}

/// `picture` in the middle of a square of `color`; [`check_square`] has passed it.
fn padded_to_square(picture: &Picture, color: [u8; 3]) -> Result<Picture> {
    let (height, width) = picture.size();
    let side = height.max(width);
    let mut pixels = color.repeat(side * side);
    let (top, left) = ((side - height) / 2, (side - width) / 2);
    for y in 0..height {
        pixels[((top + y) * side + left) * 3..][..width * 3].copy_from_slice(picture.row(y));
    }
    Picture::from_rgb(side, side, pixels)
}
