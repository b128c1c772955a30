//! How pictures are made ready for a vision tower: `preprocessor_config.json`, or the `image_processor` of a
//! `processor_config.json` (transformers 5), which goes first where there are both.
//!
//! Absent fields have the defaults of the class that the file names. What would change the result and is not supported is
//! refused by name; fields that none of these classes reads are passed over, as transformers passes over them.

use std::ops::RangeInclusive;

use super::ModelSource;
use super::fields::{Fields, brief};
use crate::Result;

/// Sides of what a tower sees at once, in pixels.
const SIDES: RangeInclusive<usize> = 1..=2048;
/// Sides of a resolution that is divided into tiles, in pixels.
const TILED_SIDES: RangeInclusive<usize> = 1..=8192;
/// Pixels that a picture may be resized to.
const PIXELS: RangeInclusive<usize> = 1..=16 << 20;
/// Resolutions to choose from.
const MAX_PINPOINTS: usize = 256;

/// Means and deviations of CLIP's training pictures.
const CLIP_SCALE: [[f64; 3]; 2] = [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]];
/// To the interval from -1 to 1.
const SIGLIP_SCALE: [[f64; 3]; 2] = [[0.5; 3]; 2];

/// An image processor of transformers, as data.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageConfig {
    /// CLIP, SigLIP, LLaVA.
    Fixed(FixedResolution),
    /// LLaVA-NeXT.
    Anyres(Anyres),
    /// Qwen2-VL, Qwen2.5-VL.
    Dynamic(DynamicResolution),
}

/// Every picture in one size.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedResolution {
    /// The colour that a picture is padded with to a square at first, if it is.
    pub pad_to_square: Option<[u8; 3]>,
    /// What it is resized to.
    pub resize: ResizeTo,
    /// (rows, columns) of its centre that are kept; there always are where `resize` leaves a side open.
    pub crop: Option<(usize, usize)>,
    /// How it is resized.
    pub interpolation: Interpolation,
    /// What becomes of its pixels.
    pub scale: PixelScale,
}

/// The whole picture in the size of a tile, and the picture in a larger resolution, divided into tiles.
#[derive(Debug, Clone, PartialEq)]
pub struct Anyres {
    /// Side of a tile, in pixels.
    pub tile: usize,
    /// Resolutions to choose from, (rows, columns) in pixels; multiples of `tile`.
    pub pinpoints: Vec<(usize, usize)>,
    /// How pictures are resized.
    pub interpolation: Interpolation,
    /// What becomes of their pixels.
    pub scale: PixelScale,
}

/// Every picture about as large as it is, in whole groups of patches.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicResolution {
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Side of the square of patches that the tower merges into one token.
    pub merge_size: usize,
    /// Frames of a patch; a picture is repeated.
    pub frames: usize,
    /// Fewest and most pixels after resizing.
    pub pixels: RangeInclusive<usize>,
    /// How pictures are resized.
    pub interpolation: Interpolation,
    /// What becomes of their pixels.
    pub scale: PixelScale,
}

/// A size to resize to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeTo {
    /// The shorter side; the other one keeps the aspect ratio.
    ShortestEdge(usize),
    /// (rows, columns), whatever the aspect ratio.
    Exact(usize, usize),
}

/// Interpolation of a resized picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// Linear between neighbours.
    Bilinear,
    /// Cubic between neighbours.
    Bicubic,
}

/// From an 8-bit level to what a tower reads: `(level * rescale - mean) / std`, by channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelScale {
    /// Factor, usually 1/255.
    pub rescale: Option<f64>,
    /// Mean and deviation of each channel.
    pub normalize: Option<[[f64; 3]; 2]>,
}

impl ImageConfig {
    /// Reads and validates how the model `source` wants its pictures; `None` if it does not say.
    ///
    /// # Errors
    /// A field that is broken or asks for what is not supported.
    pub fn from_hf(source: &ModelSource) -> Result<Option<Self>> {
        let nested = match Fields::read_optional(source, "processor_config.json")? {
            Some(fields) => fields.object("image_processor")?,
            None => None,
        };
        let fields = match nested {
            Some(fields) => Some(fields),
            None => Fields::read_optional(source, "preprocessor_config.json")?,
        };
        fields.as_ref().map(Self::from_fields).transpose()
    }

    fn from_fields(fields: &Fields) -> Result<Self> {
        let old_name = "feature_extractor_type";
        let field = if fields.value("image_processor_type").is_none() && fields.value(old_name).is_some() {
            old_name
        } else {
            "image_processor_type"
        };
        let class = fields.require(field, fields.text(field)?)?;
        // The same rules over torchvision (Fast) and over Pillow (Pil); ours are Pillow's.
        let stem = class.strip_suffix("Fast").or(class.strip_suffix("Pil")).unwrap_or(class);
        match stem {
            "CLIPImageProcessor" | "CLIPFeatureExtractor" => {
                FixedResolution::from_fields(fields, &Defaults::CLIP).map(ImageConfig::Fixed)
            }
            "LlavaImageProcessor" => {
                FixedResolution::from_fields(fields, &Defaults::LLAVA).map(ImageConfig::Fixed)
            }
            "SiglipImageProcessor" => {
                FixedResolution::from_fields(fields, &Defaults::SIGLIP).map(ImageConfig::Fixed)
            }
            "LlavaNextImageProcessor" => Anyres::from_fields(fields).map(ImageConfig::Anyres),
            "Qwen2VLImageProcessor" | "Qwen2_5_VLImageProcessor" => {
                DynamicResolution::from_fields(fields).map(ImageConfig::Dynamic)
            }
            _ => Err(fields.error(
                field,
                format_args!(
                    "is {class:?}: only CLIPImageProcessor, SiglipImageProcessor, LlavaImageProcessor, \
                     LlavaNextImageProcessor and Qwen2VLImageProcessor are supported"
                ),
            )),
        }
    }
}

/// In what the classes of [`FixedResolution`] differ.
struct Defaults {
    resize: ResizeTo,
    center_crop: bool,
    scale: [[f64; 3]; 2],
    /// Whether `do_pad` means a square; for the others it pads to the largest picture of a batch.
    pads_to_square: bool,
}

impl Defaults {
    const CLIP: Self = Defaults {
        resize: ResizeTo::ShortestEdge(224),
        center_crop: true,
        scale: CLIP_SCALE,
        pads_to_square: false,
    };
    const LLAVA: Self = Defaults { pads_to_square: true, ..Self::CLIP };
    const SIGLIP: Self = Defaults {
        resize: ResizeTo::Exact(224, 224),
        center_crop: false,
        scale: SIGLIP_SCALE,
        pads_to_square: false,
    };
}

impl FixedResolution {
    fn from_fields(fields: &Fields, defaults: &Defaults) -> Result<Self> {
        require_resize(fields)?;
        if fields.flag("use_square_size")? == Some(true) {
            return Err(fields.error("use_square_size", "is true: give `size` as height and width instead"));
        }
        let scale = PixelScale::from_fields(fields, defaults.scale)?;
        let pad_to_square = match (fields.flag("do_pad")?.unwrap_or(false), defaults.pads_to_square) {
            (false, _) => None,
            (true, true) => Some(background(fields, defaults.scale[0])?),
            (true, false) => {
                return Err(
                    fields.error("do_pad", "is true: padding is supported for LlavaImageProcessor only")
                );
            }
        };
        let resize = resize_to(fields, defaults.resize)?;
        let crop = if fields.flag("do_center_crop")?.unwrap_or(defaults.center_crop) {
            Some(rows_and_columns(fields, "crop_size")?.unwrap_or((224, 224)))
        } else {
            None
        };
        if let (ResizeTo::ShortestEdge(_), None) = (resize, crop) {
            return Err(fields.error(
                "size",
                "leaves the longer side open and nothing is cropped: a tower needs pictures of one size",
            ));
        }
        Ok(FixedResolution { pad_to_square, resize, crop, interpolation: interpolation(fields)?, scale })
    }
}

impl Anyres {
    fn from_fields(fields: &Fields) -> Result<Self> {
        let (tile, columns) = match resize_to(fields, ResizeTo::ShortestEdge(224))? {
            ResizeTo::ShortestEdge(edge) => (edge, edge),
            ResizeTo::Exact(rows, columns) => (rows, columns),
        };
        if tile != columns {
            return Err(fields.error("size", "is no square: only square tiles are supported"));
        }
        let crop = rows_and_columns(fields, "crop_size")?.unwrap_or((224, 224));
        if crop != (tile, tile) {
            return Err(fields.error(
                "crop_size",
                format_args!("is {} x {}: only tiles of `size`, {tile}, are supported", crop.0, crop.1),
            ));
        }
        Ok(Anyres {
            tile,
            pinpoints: pinpoints(fields, tile)?,
            interpolation: interpolation(fields)?,
            scale: PixelScale::from_fields(fields, CLIP_SCALE)?,
        })
    }
}

impl DynamicResolution {
    fn from_fields(fields: &Fields) -> Result<Self> {
        require_resize(fields)?;
        let size = fields.object("size")?;
        // transformers 4 has `min_pixels` and `max_pixels`, beside `size` or in it; transformers 5 calls them edges.
        let bound = |names: [&str; 2], default: usize| -> Result<usize> {
            if let Some(bound) = fields.count(names[0], PIXELS)? {
                return Ok(bound);
            }
            let Some(size) = &size else { return Ok(default) };
            let bound = size.count(names[1], PIXELS)?;
            let bound = if bound.is_some() { bound } else { size.count(names[0], PIXELS)? };
            size.require(names[1], bound)
        };
        let fewest = bound(["min_pixels", "shortest_edge"], 56 * 56)?;
        let most = bound(["max_pixels", "longest_edge"], 28 * 28 * 1280)?;
        if fewest > most {
            return Err(
                fields.error("size", format_args!("asks for at least {fewest} and at most {most} pixels"))
            );
        }
        Ok(DynamicResolution {
            patch_size: fields.count("patch_size", 1..=128)?.unwrap_or(14),
            merge_size: fields.count("merge_size", 1..=8)?.unwrap_or(2),
            frames: fields.count("temporal_patch_size", 1..=4)?.unwrap_or(2),
            pixels: fewest..=most,
            interpolation: interpolation(fields)?,
            scale: PixelScale::from_fields(fields, CLIP_SCALE)?,
        })
    }
}

impl PixelScale {
    fn from_fields(fields: &Fields, defaults: [[f64; 3]; 2]) -> Result<Self> {
        let rescale = if fields.flag("do_rescale")?.unwrap_or(true) {
            Some(fields.number("rescale_factor", 0.0..=1e6)?.unwrap_or(1.0 / 255.0))
        } else {
            None
        };
        let normalize = if fields.flag("do_normalize")?.unwrap_or(true) {
            Some([
                by_channel(fields, "image_mean", -1e6..=1e6, defaults[0])?,
                by_channel(fields, "image_std", 1e-6..=1e6, defaults[1])?,
            ])
        } else {
            None
        };
        Ok(PixelScale { rescale, normalize })
    }
}

/// A number for each channel; one number stands for all three.
fn by_channel(
    fields: &Fields,
    field: &str,
    range: RangeInclusive<f64>,
    default: [f64; 3],
) -> Result<[f64; 3]> {
    match fields.numbers(field, range)?.as_deref() {
        None => Ok(default),
        Some(&[number]) => Ok([number; 3]),
        Some(&[red, green, blue]) => Ok([red, green, blue]),
        Some(other) => {
            Err(fields.error(field, format_args!("holds {} numbers: it should hold three", other.len())))
        }
    }
}

/// The mean colour, as transformers cuts it to whole levels.
fn background(fields: &Fields, default: [f64; 3]) -> Result<[u8; 3]> {
    let mean = by_channel(fields, "image_mean", 0.0..=1.0, default)?;
    Ok(mean.map(|mean| (mean * 255.0) as u8))
}

fn require_resize(fields: &Fields) -> Result<()> {
    match fields.flag("do_resize")? {
        Some(false) => Err(fields.error("do_resize", "is false: a tower needs pictures that are resized")),
        _ => Ok(()),
    }
}

/// Pillow's number of the filter.
fn interpolation(fields: &Fields) -> Result<Interpolation> {
    match fields.count("resample", 0..=5)? {
        Some(2) => Ok(Interpolation::Bilinear),
        None | Some(3) => Ok(Interpolation::Bicubic),
        Some(other) => Err(fields
            .error("resample", format_args!("is {other}: only 2, bilinear, and 3, bicubic, are supported"))),
    }
}

/// `size`: a number, which is the shorter side's, or an object.
fn resize_to(fields: &Fields, default: ResizeTo) -> Result<ResizeTo> {
    if !fields.value("size").is_some_and(serde_json::Value::is_object) {
        return Ok(fields.count("size", SIDES)?.map_or(default, ResizeTo::ShortestEdge));
    }
    match fields.object("size")? {
        Some(size) if size.value("shortest_edge").is_some() => {
            if size.value("longest_edge").is_some() {
                return Err(size.error("longest_edge", "is not supported here; give `shortest_edge` alone"));
            }
            let edge = size.count("shortest_edge", SIDES)?;
            Ok(ResizeTo::ShortestEdge(size.require("shortest_edge", edge)?))
        }
        _ => Ok(rows_and_columns(fields, "size")?
            .map_or(default, |(rows, columns)| ResizeTo::Exact(rows, columns))),
    }
}

/// A size of both sides: a number, which is a square's, or an object of `height` and `width`.
fn rows_and_columns(fields: &Fields, field: &str) -> Result<Option<(usize, usize)>> {
    if !fields.value(field).is_some_and(serde_json::Value::is_object) {
        return Ok(fields.count(field, SIDES)?.map(|side| (side, side)));
    }
    let Some(size) = fields.object(field)? else { return Ok(None) };
    let side = |name: &str| -> Result<usize> { size.require(name, size.count(name, SIDES)?) };
    Ok(Some((side("height")?, side("width")?)))
}

/// `image_grid_pinpoints`: pairs of (rows, columns) in pixels.
fn pinpoints(fields: &Fields, tile: usize) -> Result<Vec<(usize, usize)>> {
    let field = "image_grid_pinpoints";
    let pair = |value: &serde_json::Value| {
        let sides: Vec<usize> = value
            .as_array()?
            .iter()
            .map(|side| side.as_u64().and_then(|side| usize::try_from(side).ok()))
            .collect::<Option<_>>()?;
        match sides[..] {
            [rows, columns]
                if [rows, columns].iter().all(|side| TILED_SIDES.contains(side) && side % tile == 0)
                    && PIXELS.contains(&(rows * columns)) =>
            {
                Some((rows, columns))
            }
            _ => None,
        }
    };
    let default = || [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)].to_vec();
    let Some(value) = fields.value(field) else { return Ok(default()) };
    let pairs = value
        .as_array()
        .filter(|pairs| (1..=MAX_PINPOINTS).contains(&pairs.len()))
        .and_then(|pairs| pairs.iter().map(pair).collect());
    pairs.ok_or_else(|| {
        fields.error(
            field,
            format_args!(
                "is {}: it should be a list of [height, width], each a multiple of {tile} up to {} and {} million \
                 pixels at most",
                brief(value),
                TILED_SIDES.end(),
                PIXELS.end() >> 20
            ),
        )
    })
}
