//! About the picture's own size: Qwen2-VL and Qwen2.5-VL (transformers: `Qwen2VLImageProcessor`).

use std::ops::RangeInclusive;

use super::patches::PatchWriter;
use super::resample::resize;
use super::{PatchLayout, Patches, Picture};
use crate::config::DynamicResolution;
use crate::{Error, Result};

/// Longer over shorter side of a picture, at most.
const MAX_ASPECT_RATIO: f64 = 200.0;

/// Resizes to whole groups of patches.
#[derive(Debug, Clone)]
pub struct DynamicProcessor {
    config: DynamicResolution,
    writer: PatchWriter,
}

impl DynamicProcessor {
    pub(super) fn new(config: DynamicResolution) -> Self {
        let writer = PatchWriter::new(config.patch_size, config.frames, &config.scale);
        DynamicProcessor { config, writer }
    }

    /// How the patches of a picture of `original_size` stand.
    ///
    /// # Errors
    /// As [`smart_resize`].
    pub(super) fn layout(&self, original_size: (usize, usize)) -> Result<PatchLayout> {
        let factor = self.config.patch_size * self.config.merge_size;
        let (rows, columns) = smart_resize(original_size, factor, &self.config.pixels)?;
        Ok(self.writer.layout_of_one(rows, columns, original_size))
    }

    pub(super) fn prepare(&self, picture: &Picture) -> Result<Patches> {
        let layout = self.layout(picture.size())?;
        let (merge, grid) = (self.config.merge_size, layout.grid);
        let (rows, columns) = (grid.0 * self.config.patch_size, grid.1 * self.config.patch_size);
        let pixels = resize(picture, (rows, columns), self.config.interpolation);
        let mut values = Vec::with_capacity(layout.num_values());
        for row in (0..grid.0).step_by(merge) {
            for column in (0..grid.1).step_by(merge) {
                for part in 0..merge * merge {
                    let patch = (row + part / merge, column + part % merge);
                    self.writer.write(&pixels, columns, patch, &mut values);
                }
            }
        }
        Patches::new(values, layout)
    }
}

/// Size near `original` whose sides are multiples of `factor`, with a number of pixels within `pixels` and about the same aspect
/// ratio; all sizes are (rows, columns). The rule, and its rounding, are Qwen2-VL's `smart_resize`.
///
/// # Errors
/// [`Error::Input`] for a picture that is more than 200 times as long as wide.
pub fn smart_resize(
    original: (usize, usize),
    factor: usize,
    pixels: &RangeInclusive<usize>,
) -> Result<(usize, usize)> {
    let (height, width) = (original.0 as f64, original.1 as f64);
    let aspect_ratio = height.max(width) / height.min(width);
    if aspect_ratio > MAX_ASPECT_RATIO {
        return Err(Error::Input(format!(
            "a picture of {} x {} pixels is too long for this model: one side may be at most {MAX_ASPECT_RATIO} times \
             the other; crop it",
            original.1, original.0
        )));
    }
    let size = factor as f64;
    // Python rounds halves to even.
    let near = |side: f64| (side / size).round_ties_even() as usize * factor;
    let (rows, columns) = (near(height), near(width));
    if rows * columns > *pixels.end() {
        let beta = ((original.0 * original.1) as f64 / *pixels.end() as f64).sqrt();
        let below = |side: f64| ((side / beta / size).floor() as usize * factor).max(factor);
        Ok((below(height), below(width)))
    } else if rows * columns < *pixels.start() {
        let beta = (*pixels.start() as f64 / (original.0 * original.1) as f64).sqrt();
        let above = |side: f64| (side * beta / size).ceil() as usize * factor;
        Ok((above(height), above(width)))
    } else {
        Ok((rows, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIXELS: RangeInclusive<usize> = 3136..=1_003_520;

    #[test]
    fn sides_are_rounded_with_halves_to_even() {
        let sized = |height, width| smart_resize((height, width), 28, &PIXELS).unwrap();
        assert_eq!(sized(280, 560), (280, 560));
        // 10.5 and 11.5 factors.
        assert_eq!(sized(294, 322), (280, 336));
        assert_eq!(sized(295, 321), (308, 308));
    }

    #[test]
    fn pixels_stay_within_their_bounds() {
        for original in [(1, 1), (1, 200), (13, 13), (56, 56), (3000, 4000), (5000, 25), (65_535, 400)] {
            let (rows, columns) = smart_resize(original, 28, &PIXELS).unwrap();
            assert!(
                rows % 28 == 0 && columns % 28 == 0 && PIXELS.contains(&(rows * columns)),
                "{original:?}"
            );
        }
        // A side never falls below one factor, be there too many pixels.
        assert_eq!(smart_resize((20, 2000), 28, &(1..=10_000)).unwrap(), (28, 980));
        // Less than half a factor is none at first, and so too few pixels.
        assert_eq!(smart_resize((10, 2000), 28, &(1..=10_000)).unwrap(), (28, 28));
    }

    #[test]
    fn slivers_are_refused() {
        assert!(smart_resize((200, 1), 28, &PIXELS).is_ok());
        for original in [(201, 1), (1, 201), (65_535, 327)] {
            let error = smart_resize(original, 28, &PIXELS).unwrap_err();
            assert!(matches!(error, Error::Input(_)), "{error}");
        }
    }
}
