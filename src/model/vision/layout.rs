//! Where everything stands: patches in a picture, embeddings of a picture behind each other, pictures in a prompt. Host only.

use std::ops::Range;

use crate::config::{JoinConfig, TowerKind, VisionConfig};
use crate::error::{Error, Result};
use crate::image::{PatchLayout, Patches};
use crate::model::{Rotary, text_rotary};

/// Where a picture's tokens stand in a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPicture {
    /// Positions of its tokens.
    pub tokens: Range<usize>,
    /// Rows and columns of tokens, for models that know of them (M-RoPE); of others the tokens are one row.
    pub grid: (usize, usize),
}

/// Tokens of a picture in the language model.
pub fn num_tokens(config: &VisionConfig, patches: &PatchLayout) -> usize {
    match (&config.join, &config.tower.kind) {
        (JoinConfig::Tiled(_), _) => tiled_rows(patches).len(),
        (_, TowerKind::Qwen2Vl { merge, .. }) => patches.grid.0 * patches.grid.1 / (merge * merge),
        (_, TowerKind::Clip { drops_class: false, .. }) => patches.grid.0 * patches.grid.1 + 1,
        _ => patches.grid.0 * patches.grid.1,
    }
}

/// Rows and columns of a picture's tokens.
fn token_grid(config: &VisionConfig, patches: &PatchLayout) -> (usize, usize) {
    match config.tower.kind {
        TowerKind::Qwen2Vl { merge, .. } => (patches.grid.0 / merge, patches.grid.1 / merge),
        _ => (1, num_tokens(config, patches)),
    }
}

/// Fails on patches that the tower does not take.
///
/// # Errors
/// [`Error::Input`] that says what differs.
pub fn check_patches(config: &VisionConfig, patches: &PatchLayout) -> Result<()> {
    let (rows, columns) = patches.grid;
    let patch_len = config.tower.patch_len();
    if patches.patch_len != patch_len {
        return Err(Error::Input(format!(
            "the picture has {} patches of {} numbers: the model's tower takes patches of {patch_len}",
            patches.num_patches(),
            patches.patch_len,
        )));
    }
    let fits = match config.tower.kind {
        TowerKind::Clip { image_size, .. } | TowerKind::Siglip { image_size } => {
            let side = image_size / config.tower.patch_size;
            let tiles = match config.join {
                JoinConfig::Tiled(_) if patches.tiles > 1 => 1 + patches.tile_grid.0 * patches.tile_grid.1,
                _ => 1,
            };
            (rows, columns) == (side, side) && patches.tiles == tiles
        }
        TowerKind::Qwen2Vl { merge, .. } => {
            patches.tiles == 1 && rows * columns > 0 && rows % merge == 0 && columns % merge == 0
        }
    };
    if fits {
        return Ok(());
    }
    Err(Error::Input(format!(
        "the picture has {rows} x {columns} patches in {} tile(s), which the model's vision tower does not take: does its image processor belong to it?",
        patches.tiles
    )))
}

/// Row and column of every patch in its picture, in the order of the patches: `merge` x `merge` neighbours stand together.
pub(super) fn merged_positions(grid: (usize, usize), merge: usize) -> [Vec<i32>; 2] {
    let (mut rows, mut columns) = (Vec::new(), Vec::new());
    for block_row in (0..grid.0).step_by(merge) {
        for block_column in (0..grid.1).step_by(merge) {
            for row in block_row..block_row + merge {
                for column in block_column..block_column + merge {
                    rows.push(row as i32);
                    columns.push(column as i32);
                }
            }
        }
    }
    [rows, columns]
}

/// The embedding that ends a row of a LLaVA-NeXT picture, in [`tiled_rows`].
pub(super) const NEWLINE: usize = usize::MAX;

/// The embeddings of a LLaVA-NeXT picture in order, as rows of the tower's output `[tiles * rows * columns]`: those of the whole
/// picture, then those of the tiles put together, without the padding and with a [`NEWLINE`] behind every row
/// (`pack_image_features` of transformers).
pub(super) fn tiled_rows(patches: &PatchLayout) -> Vec<usize> {
    let (rows, columns) = patches.grid;
    let mut order: Vec<usize> = (0..rows * columns).collect();
    if patches.tiles == 1 {
        order.push(NEWLINE);
        return order;
    }
    let (tile_rows, tile_columns) = patches.tile_grid;
    let [kept_rows, kept_columns] =
        unpadded((tile_rows * rows, tile_columns * columns), patches.original_size);
    for row in kept_rows {
        for column in kept_columns.clone() {
            let tile = 1 + row / rows * tile_columns + column / columns;
            order.push(tile * rows * columns + row % rows * columns + column % columns);
        }
        order.push(NEWLINE);
    }
    order
}

/// The rows and columns of a padded picture of patches that show something of the original (`unpad_image` of transformers).
fn unpadded(padded: (usize, usize), original: (usize, usize)) -> [Range<usize>; 2] {
    // As Python rounds to seven places, so that a whole number of patches stays whole.
    let scaled = |side: usize, scale: f64| ((side as f64 * scale * 1e7).round() / 1e7) as usize;
    let middle = |whole: usize, kept: usize| {
        let padding = whole.saturating_sub(kept) / 2;
        padding..whole - padding
    };
    let ratio = |(height, width): (usize, usize)| width as f64 / height as f64;
    if ratio(original) > ratio(padded) {
        let height = scaled(original.0, padded.1 as f64 / original.1 as f64);
        [middle(padded.0, height), 0..padded.1]
    } else {
        let width = scaled(original.1, padded.0 as f64 / original.0 as f64);
        [0..padded.0, middle(padded.1, width)]
    }
}

/// `prompt` with every picture's placeholder repeated as often as the picture has tokens (`lens`). A placeholder that stands alone
/// is repeated; a run that already has the picture's length is taken as it is.
///
/// # Errors
/// [`Error::Input`]: more or fewer placeholders than pictures, or a run of another length.
pub fn expand_placeholders(prompt: &[i32], image_token_id: i32, lens: &[usize]) -> Result<Vec<i32>> {
    let mut expanded = Vec::with_capacity(prompt.len() + lens.iter().sum::<usize>());
    let (mut at, mut pictures) = (0, lens.iter().enumerate());
    while let Some(&token) = prompt.get(at) {
        if token != image_token_id {
            expanded.push(token);
            at += 1;
            continue;
        }
        let run = prompt[at..].iter().take_while(|&&token| token == image_token_id).count();
        let Some((picture, &len)) = pictures.next() else {
            return Err(count_error(prompt, image_token_id, lens.len()));
        };
        // Two pictures may stand side by side, each as one placeholder, or the one expanded and the other not.
        let taken = if run >= len { len } else { 1 };
        if run > 1 && taken == 1 && run > lens.len() - picture {
            return Err(Error::Input(format!(
                "picture {} of the prompt has a run of {run} placeholders: it should have one, or its length, {len}",
                picture + 1
            )));
        }
        expanded.extend(std::iter::repeat_n(image_token_id, len));
        at += taken;
    }
    match pictures.next() {
        Some(_) => Err(count_error(prompt, image_token_id, lens.len())),
        None => Ok(expanded),
    }
}

fn count_error(prompt: &[i32], image_token_id: i32, pictures: usize) -> Error {
    let runs = prompt
        .iter()
        .enumerate()
        .filter(|&(i, &token)| token == image_token_id && (i == 0 || prompt[i - 1] != image_token_id))
        .count();
    Error::Input(format!(
        "the prompt has {runs} place(s) for pictures (token {image_token_id}), and {pictures} picture(s) are given"
    ))
}

/// Where the pictures stand in an expanded prompt.
pub fn find_pictures(config: &VisionConfig, prompt: &[i32], pictures: &[Patches]) -> Vec<PlacedPicture> {
    let mut at = 0;
    let place = |patches: &Patches| {
        let len = num_tokens(config, patches.layout());
        let next = prompt[at..].iter().position(|&token| token == config.image_token_id).unwrap_or(0);
        let tokens = at + next..at + next + len;
        at = tokens.end;
        PlacedPicture { tokens, grid: token_grid(config, patches.layout()) }
    };
    pictures.iter().map(place).collect()
}

/// Rotary positions of a prompt of `len` tokens under M-RoPE, and what to add to later positions (Qwen2-VL, arXiv 2409.12191,
/// section 2.1): a picture's tokens share their time and count rows and columns from there; what follows goes on behind the
/// largest position so far.
pub fn rotary_positions(len: usize, pictures: &[PlacedPicture]) -> (Vec<Rotary>, i32) {
    let mut positions = Vec::with_capacity(len);
    let mut next = 0;
    for PlacedPicture { tokens, grid } in pictures {
        while positions.len() < tokens.start {
            positions.push(text_rotary(next));
            next += 1;
        }
        for row in 0..grid.0 {
            positions.extend((0..grid.1).map(|column| [next, next + row, next + column].map(|p| p as i32)));
        }
        next += grid.0.max(grid.1);
    }
    while positions.len() < len {
        positions.push(text_rotary(next));
        next += 1;
    }
    (positions, next as i32 - len as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiled(tile_grid: (usize, usize), original_size: (usize, usize)) -> PatchLayout {
        let tiles = 1 + tile_grid.0 * tile_grid.1;
        PatchLayout { patch_len: 0, tiles, tile_grid, grid: (2, 2), original_size }
    }

    #[test]
    fn tiles_are_put_together_row_by_row() {
        let order = tiled_rows(&tiled((1, 2), (100, 200)));
        // The whole picture; then two rows through both tiles.
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 8, 9, NEWLINE, 6, 7, 10, 11, NEWLINE]);
    }

    #[test]
    fn padding_is_cut_off() {
        // Two tiles side by side, 2 x 4 patches, for a picture of four to one: a row of patches is padding, half above, half
        // below, and half a row rounds to none.
        assert_eq!(unpadded((4, 4), (100, 400)), [1..3, 0..4]);
        assert_eq!(unpadded((4, 4), (400, 100)), [0..4, 1..3]);
        assert_eq!(unpadded((2, 4), (100, 200)), [0..2, 0..4]);
        // 300 * (48 / 1000) is 14.399999... and stays 14; 250 * (48 / 1000) is 12 and stays 12.
        assert_eq!(unpadded((24, 48), (300, 1000)), [5..19, 0..48]);
        assert_eq!(unpadded((24, 48), (250, 1000)), [6..18, 0..48]);
    }

    #[test]
    fn placeholders_grow_to_the_length_of_their_picture() {
        let expand = |prompt: &[i32], lens: &[usize]| expand_placeholders(prompt, 9, lens);
        assert_eq!(expand(&[1, 9, 2], &[3]).unwrap(), [1, 9, 9, 9, 2]);
        assert_eq!(expand(&[1, 9, 9, 9, 2], &[3]).unwrap(), [1, 9, 9, 9, 2]);
        assert_eq!(expand(&[9, 9], &[2, 3]).unwrap_err().to_string().matches("1 place(s)").count(), 1);
        assert_eq!(expand(&[9, 9], &[3, 4]).unwrap(), [9; 7]);
        assert_eq!(expand(&[9, 1, 9], &[1, 2]).unwrap(), [9, 1, 9, 9]);
        assert_eq!(expand(&[1, 2], &[]).unwrap(), [1, 2]);
        let refused: [(&[i32], &[usize], &str); 4] = [
            (&[1, 9], &[], "1 place(s) for pictures (token 9), and 0 picture(s) are given"),
            (&[1, 2], &[3], "0 place(s)"),
            (&[9, 1, 9], &[3], "2 place(s)"),
            (&[9, 9, 1], &[3], "a run of 2 placeholders"),
        ];
        for (prompt, lens, reason) in refused {
            let text = expand(prompt, lens).unwrap_err().to_string();
            assert!(text.contains(reason), "{text}");
        }
    }

    /// The example of the paper: three tokens, a picture of 2 x 3 tokens, two tokens.
    #[test]
    fn a_picture_takes_as_much_position_as_its_longer_side() {
        let picture = PlacedPicture { tokens: 3..9, grid: (2, 3) };
        let (positions, delta) = rotary_positions(11, &[picture]);
        assert_eq!(positions[2], [2, 2, 2]);
        assert_eq!(positions[3..9], [[3, 3, 3], [3, 3, 4], [3, 3, 5], [3, 4, 3], [3, 4, 4], [3, 4, 5]]);
        assert_eq!((positions[9], positions[10], delta), ([6, 6, 6], [7, 7, 7], -3));
        assert_eq!(rotary_positions(2, &[]), (vec![[0; 3], [1; 3]], 0));
    }

    #[test]
    fn merged_patches_stand_together() {
        let [rows, columns] = merged_positions((2, 4), 2);
        assert_eq!(rows, [0, 0, 1, 1, 0, 0, 1, 1]);
        assert_eq!(columns, [0, 1, 0, 1, 2, 3, 2, 3]);
    }
}
