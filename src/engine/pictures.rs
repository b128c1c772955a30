//! The pictures of a request: encoded once, when it is submitted; from then on part of its context.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use crate::config::ModelConfig;
use crate::device::Tensor;
use crate::error::{Error, Result};
use crate::image::{PatchLayout, Patches};
use crate::model::vision::{
    PlacedPicture, VisionEncoder, check_patches, expand_placeholders, find_pictures, num_tokens,
    rotary_positions,
};
use crate::model::{Pass, Rotary, text_rotary};
use crate::pages::PositionKey;

/// `prompt` with every picture's placeholder as long as the picture: what a request for `config` is served with. Of the pictures it needs no
/// more than how their patches stand.
///
/// # Errors
/// [`Error::Input`]: placeholders and pictures that do not match; patches that the model's tower does not take; pictures for a model that
/// sees none.
pub fn expand_prompt(
    config: &ModelConfig,
    prompt: &[i32],
    pictures: &[impl AsRef<PatchLayout>],
) -> Result<Vec<i32>> {
    match &config.vision {
        Some(vision) => {
            pictures.iter().try_for_each(|picture| check_patches(vision, picture.as_ref()))?;
            let lens: Vec<usize> =
                pictures.iter().map(|picture| num_tokens(vision, picture.as_ref())).collect();
            expand_placeholders(prompt, vision.image_token_id, &lens)
        }
        None if pictures.is_empty() => Ok(prompt.to_vec()),
        None => Err(Error::Input(
            "the model reads text alone: pictures need one with a vision tower, such as LLaVA or Qwen2-VL"
                .into(),
        )),
    }
}

/// What each position of an expanded `prompt` is known by: its token, or a hash of the picture's fingerprint and the place in it. Hashes are
/// keyed anew in every process, so nobody can prepare two pictures that pass for one. No pixel is looked at.
pub(super) fn position_keys(
    config: &ModelConfig,
    prompt: &[i32],
    pictures: &[Patches],
    hasher: &RandomState,
) -> Vec<PositionKey> {
    let mut keys: Vec<PositionKey> = prompt.iter().map(|&token| token.into()).collect();
    let Some(vision) = &config.vision else { return keys };
    for (patches, placed) in pictures.iter().zip(find_pictures(vision, prompt, pictures)) {
        for (i, key) in keys[placed.tokens].iter_mut().enumerate() {
            // Below 0, where no token is.
            *key = (hasher.hash_one((patches.fingerprint(), i)) | 1 << 63) as PositionKey;
        }
    }
    keys
}

/// What a sequence sees beside its tokens.
#[derive(Default)]
pub(super) struct Pictures {
    /// First position and embeddings `[tokens, hidden]` of each picture; empty once all passes over the prompt are done.
    encoded: Vec<(usize, Tensor)>,
    /// Rotary positions of the prompt; empty where they are the logical ones.
    prompt: Vec<Rotary>,
    /// Rotary less logical position behind the prompt.
    delta: i32,
}

impl Pictures {
    /// Encodes the pictures of an expanded prompt that reach beyond its first `known` positions.
    pub fn encode(
        config: &ModelConfig,
        encoder: Option<&VisionEncoder>,
        prompt: &[i32],
        pictures: &[Patches],
        known: usize,
    ) -> Result<Self> {
        let Some(encoder) = encoder.filter(|_| !pictures.is_empty()) else { return Ok(Self::default()) };
        let placed = find_pictures(encoder.config(), prompt, pictures);
        let encode = |(patches, placed): (&Patches, &PlacedPicture)| {
            Ok((placed.tokens.start, encoder.encode(patches)?))
        };
        let wanted = pictures.iter().zip(&placed).filter(|(_, placed)| placed.tokens.end > known);
        let encoded = wanted.map(encode).collect::<Result<_>>()?;
        let (prompt, delta) = match config.geometry.rope.sections {
            Some(_) => rotary_positions(prompt.len(), &placed),
            None => (Vec::new(), 0),
        };
        Ok(Self { encoded, prompt, delta })
    }

    /// Rotary position of the token at `position`.
    pub fn rotary(&self, position: usize) -> Rotary {
        match self.prompt.get(position) {
            Some(&rotary) => rotary,
            None => text_rotary(position).map(|p| p + self.delta),
        }
    }

    /// Lets the rows of `pass` from `first_row` on, which read the tokens at `positions`, see what the pictures show there.
    pub fn show(&self, pass: &mut Pass, first_row: usize, positions: Range<usize>) {
        for (start, features) in &self.encoded {
            let seen = positions.start.max(*start)..positions.end.min(start + features.dim(0));
            if !seen.is_empty() {
                let rows = seen.start - start..seen.end - start;
                pass.show(first_row + seen.start - positions.start, features.rows(rows));
            }
        }
    }

    /// Frees the embeddings: every pass over the prompt is done.
    pub fn forget_embeddings(&mut self) {
        self.encoded.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    /// The keys of a text with one picture, the `first` of whose numbers is given.
    fn keys(
        config: &ModelConfig,
        hasher: &RandomState,
        first: f32,
        original_size: (usize, usize),
    ) -> Vec<PositionKey> {
        let vision = config.vision.as_ref().unwrap();
        let patch_len = vision.tower.patch_len();
        let layout = PatchLayout { patch_len, tiles: 1, tile_grid: (1, 1), grid: (4, 6), original_size };
        let mut values = vec![0.25; layout.num_values()];
        values[0] = first;
        let pictures = [Patches::new(values, layout).unwrap()];
        let prompt = expand_prompt(config, &[1, vision.image_token_id, 2], &[layout]).unwrap();
        assert_eq!(prompt, expand_prompt(config, &[1, vision.image_token_id, 2], &pictures).unwrap());
        position_keys(config, &prompt, &pictures, hasher)
    }

    #[test]
    fn equal_pictures_have_equal_keys_and_others_others() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen2_vl");
        let config = ModelConfig::from_hf(&ModelSource::from(folder.as_path())).unwrap();
        let hasher = RandomState::new();
        let shown = keys(&config, &hasher, 0.5, (9, 9));
        assert_eq!((shown.len(), shown[0], shown[7]), (8, 1, 2), "6 tokens of 2 x 2 patches between two");
        let mut of_picture = shown[1..7].to_vec();
        assert!(of_picture.iter().all(|&key| key < 0));
        of_picture.sort_unstable();
        of_picture.dedup();
        assert_eq!(of_picture.len(), 6, "every place has a key of its own");
        // Made twice, they are the same; one number, or the size, makes another picture.
        assert_eq!(keys(&config, &hasher, 0.5, (9, 9)), shown);
        for other in [keys(&config, &hasher, 0.75, (9, 9)), keys(&config, &hasher, 0.5, (9, 10))] {
            assert!((1..7).all(|i| other[i] != shown[i]));
        }
    }
}
