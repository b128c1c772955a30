//! Pictures of a conversation: taken out of its messages, counted by their sizes, and made ready within a budget of memory.
//!
//! What a vision tower is given of a picture may be large where the picture's file is small: 308 MB for 12.8 million pixels under Qwen2-VL,
//! be they of one colour. So a prompt's length is known, and its pictures' memory is set aside, before any of them is decoded; the memory is
//! given back when the last sequence that may have to look at the picture again is gone.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::app::Serving;
use super::body::BUDGET_UNIT;
use super::errors::ApiError;
use super::generation::retry_after;
use crate::image::{PatchLayout, Patches, Picture};

/// Most pictures of a conversation.
const MAX_PICTURES: usize = 32;

/// Memory for prepared pictures, shared by all requests.
pub(super) struct PictureBudget {
    /// In units of [`BUDGET_UNIT`], as all that is set aside.
    left: Arc<Semaphore>,
    units: usize,
}

impl PictureBudget {
    pub fn new(bytes: usize) -> Self {
        let units = bytes.div_ceil(BUDGET_UNIT).min(Semaphore::MAX_PERMITS);
        Self { left: Arc::new(Semaphore::new(units)), units }
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.units.saturating_mul(BUDGET_UNIT)
    }

    /// What pictures hold of it.
    pub fn bytes_held(&self) -> usize {
        self.units.saturating_sub(self.left.available_permits()) * BUDGET_UNIT
    }

    /// A share of `units`, if so much is left.
    fn take(&self, units: usize) -> Option<OwnedSemaphorePermit> {
        self.left.clone().try_acquire_many_owned(u32::try_from(units).ok()?).ok()
    }
}

/// A picture as it was sent.
pub(super) struct PictureFile {
    /// Where in the request it stands, as in `messages[0].content[1]`.
    name: String,
    content: Vec<u8>,
    /// How its patches will stand, by its header.
    layout: PatchLayout,
}

impl AsRef<PatchLayout> for PictureFile {
    fn as_ref(&self) -> &PatchLayout {
        &self.layout
    }
}

impl PictureFile {
    /// What its patches take of the budget.
    fn units(&self) -> usize {
        self.layout.bytes().div_ceil(BUDGET_UNIT)
    }
}

/// Moves the pictures of the message `name` to `pictures`; what stands for them says no more than that they are there.
///
/// # Errors
/// 400 that names the part: the model sees no pictures, there are too many, or this is none by its header.
pub(super) fn take(
    message: &mut Value,
    name: &str,
    serving: &Serving,
    pictures: &mut Vec<PictureFile>,
) -> Result<(), ApiError> {
    let Some(Value::Array(parts)) = message.get_mut("content") else { return Ok(()) };
    for (index, part) in parts.iter_mut().enumerate() {
        let kind = part.get("type").and_then(Value::as_str);
        if !matches!(kind, Some("image" | "image_url")) {
            continue;
        }
        let name = format!("{name}.content[{index}]");
        let Some(processor) = &serving.model.images else {
            return Err(ApiError::unsupported(name, "this model reads text alone: it sees no pictures"));
        };
        if pictures.len() == MAX_PICTURES {
            let reason = format!("a conversation has at most {MAX_PICTURES} pictures");
            return Err(ApiError::field(name, reason));
        }
        let url =
            part.pointer("/image_url/url").or_else(|| part.get("image_url")).or_else(|| part.get("image"));
        let Some(url) = url.and_then(Value::as_str) else {
            let reason =
                format!("{name} should hold its picture: {{\"image_url\": {{\"url\": \"data:...\"}}}}");
            return Err(ApiError::field(name, reason));
        };
        let content =
            decode_data_url(url).map_err(|reason| ApiError::field(&name, format!("{name}: {reason}")))?;
        let size = Picture::stated_size(&name, &content)
            .map_err(|error| ApiError::field(&name, error.to_string()))?;
        let layout = processor.layout(size).map_err(|error| ApiError::of(&name, error))?;
        pictures.push(PictureFile { name, content, layout });
        *part = json!({"type": "image"});
    }
    Ok(())
}

/// What the model's vision tower is given of the pictures `files`: each holds its share of the budget for as long as there is a copy of it. To
/// decode a picture takes memory beside that, of one picture at a time.
///
/// # Errors
/// 400: a file is no whole picture, or all of them are more than the budget ever has; 429 where the pictures of others fill it.
pub(super) fn prepare(files: Vec<PictureFile>, serving: &Serving) -> Result<Vec<Patches>, ApiError> {
    let Some(processor) = &serving.model.images else { return Ok(Vec::new()) };
    let budget = &serving.pictures;
    let units = files.iter().fold(0usize, |sum, file| sum.saturating_add(file.units()));
    if units > budget.units {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let reason = format!(
            "the conversation's pictures take {} MiB once they are prepared, and this server has {} MiB for those of all requests: send fewer \
             or smaller ones",
            mib(units.saturating_mul(BUDGET_UNIT)),
            mib(budget.bytes())
        );
        return Err(ApiError::field("messages", reason));
    }
    let shares: Option<Vec<_>> = files.iter().map(|file| budget.take(file.units())).collect();
    let shares = shares.ok_or_else(|| {
        // They are held until answers end.
        let seconds = retry_after(&serving.client.snapshot().request_seconds, 1, 1);
        ApiError::busy("the pictures of other requests fill the memory for pictures; try again", seconds)
    })?;
    let prepare = |(file, share): (PictureFile, OwnedSemaphorePermit)| {
        let PictureFile { name, content, layout } = file;
        let picture = Picture::from_bytes(&name, &content)
            .map_err(|error| ApiError::field(&name, error.to_string()))?;
        drop(content);
        let patches = processor.prepare(&picture).map_err(|error| ApiError::of(&name, error))?;
        if *patches.layout() != layout {
            return Err(ApiError::internal(format!("{name} is not of the size that was counted")));
        }
        Ok(patches.holding(share))
    };
    files.into_iter().zip(shares).map(prepare).collect()
}

/// The bytes of `data:TYPE;base64,...`.
pub(super) fn decode_data_url(url: &str) -> Result<Vec<u8>, &'static str> {
    const FETCHES_NOTHING: &str =
        "this server fetches nothing: give the picture itself as a data URL, data:image/png;base64,...";
    let is_data = url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"));
    let rest = if is_data { &url[5..] } else { return Err(FETCHES_NOTHING) };
    let (head, data) = rest.split_once(',').ok_or("a data URL needs a comma in front of its data")?;
    if !head.rsplit(';').next().is_some_and(|last| last.eq_ignore_ascii_case("base64")) {
        return Err("a data URL of a picture should be in base64: data:image/png;base64,...");
    }
    STANDARD.decode(data).map_err(|_| "the data of this data URL are not valid base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_urls_are_read() {
        assert_eq!(decode_data_url("data:image/png;base64,AAEC"), Ok(vec![0, 1, 2]));
        assert_eq!(decode_data_url("DATA:;base64,AAE="), Ok(vec![0, 1]));
        for url in ["http://a/b.png", "https://a", "file:///etc/passwd", "", "dat", "\u{e9}\u{e9}\u{e9}"] {
            assert!(decode_data_url(url).unwrap_err().contains("fetches nothing"), "{url}");
        }
        for url in
            ["data:image/png;base64", "data:image/png,AAEC", "data:image/png;base64,A", "data:;base64,%41"]
        {
            assert!(decode_data_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_share_of_the_budget_lasts_as_long_as_a_copy_of_the_picture() {
        let budget = PictureBudget::new(3 * BUDGET_UNIT);
        let layout =
            PatchLayout { patch_len: 3, tiles: 1, tile_grid: (1, 1), grid: (2, 2), original_size: (2, 2) };
        let patches = Patches::new(vec![0.0; 12], layout).unwrap().holding(budget.take(2).unwrap());
        let copies = vec![patches; 128];
        assert!(copies.iter().all(|copy| copy.values().as_ptr() == copies[0].values().as_ptr()));
        assert_eq!(budget.bytes_held(), 2 * BUDGET_UNIT);
        assert!(budget.take(2).is_none());
        let last = copies[77].clone();
        drop(copies);
        assert_eq!(budget.bytes_held(), 2 * BUDGET_UNIT);
        drop(last);
        assert_eq!(budget.bytes_held(), 0);
        assert!(budget.take(3).is_some() && budget.take(usize::MAX).is_none());
    }
}
