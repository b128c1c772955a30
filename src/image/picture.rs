//! A decoded picture.
//!
//! What a picture file means is what Pillow's `Image.open(path).convert("RGB")` makes of it:
//! - The EXIF orientation is not applied: the picture stays as the camera stored it. (`transformers.image_utils.load_image`
//!   does rotate; a picture that should be seen upright has to be stored upright.)
//! - Alpha is dropped, not blended: what is transparent shows the colour that the file holds there. (So does `load_image`;
//!   transformers 5 lays a picture on white only if it is handed over with its alpha.)
//! - Of 16 bits per channel the high byte counts, save for pure grey, which Pillow clips at 255 and does not scale.
//! - Of an animation the first frame counts.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::Path;

use ::image::error::ImageError;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::gif::FirstFrame;
use super::jpeg;
use crate::{Error, Result, fence};

/// Longest side of a picture, in pixels.
pub const MAX_SIDE: usize = 65_535;
/// Most pixels of a picture.
pub const MAX_PIXELS: usize = 64 << 20;
/// Bytes that a picture file may have.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Bytes that a PNG file may unfold to beside its pixels: a colour profile that is all zeros packs well.
const MAX_METADATA_BYTES: u64 = 16 << 20;
/// Bytes of a frame that a decoder may hold beside the picture: RGBA.
const MAX_FRAME_BYTES: u64 = 4 * MAX_PIXELS as u64;
/// What can be decoded. The content decides, not the file's name.
const FORMATS: [ImageFormat; 4] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif];

/// A picture of 8-bit RGB pixels, at least one, at most [`MAX_PIXELS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    height: usize,
    width: usize,
    /// `[height, width, 3]`, row-major.
    pixels: Vec<u8>,
}

impl Picture {
    /// Decodes the PNG, JPEG, WebP or GIF file `path`.
    ///
    /// # Errors
    /// The file cannot be read, is no whole picture of these formats, or is too large.
    pub fn open(path: &Path) -> Result<Self> {
        // Asked first: to open a pipe may take forever.
        let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        if !metadata.is_file() {
            return Err(Error::format(path, "this is no regular file; give a PNG, JPEG, WebP or GIF file"));
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(file_too_large(path));
        }
        // One byte more than allowed, should the file grow: it is seen to be too large then.
        let mut content = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content))
            .map_err(|error| Error::io(path, error))?;
        Self::from_bytes(path, &content)
    }

    /// Decodes the content of a PNG, JPEG, WebP or GIF file; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub fn from_bytes(name: impl AsRef<Path>, content: &[u8]) -> Result<Self> {
        fenced(name.as_ref(), content, decode)
    }

    /// (height, width) in pixels as the header of a PNG, JPEG, WebP or GIF file states them, without decoding it. Decoded, it has this size or
    /// is refused.
    ///
    /// # Errors
    /// No file of these formats, or too large a picture; what is wrong behind the header may not be seen.
    pub fn stated_size(name: impl AsRef<Path>, content: &[u8]) -> Result<(usize, usize)> {
        fenced(name.as_ref(), content, |content| header(content).map(|header| header.size))
    }

    /// A picture of `pixels` `[height, width, 3]`, row-major.
    ///
    /// # Errors
    /// [`Error::Input`] where the sizes do not fit each other or exceed the limits.
    pub fn from_rgb(height: usize, width: usize, pixels: Vec<u8>) -> Result<Self> {
        check_size(height, width).map_err(Error::Input)?;
        if pixels.len() != height * width * 3 {
            return Err(Error::Input(format!(
                "a picture of {height} x {width} pixels is {} bytes of RGB, not {}",
                height * width * 3,
                pixels.len()
            )));
        }
        Ok(Picture { height, width, pixels })
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// (height, width) in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// The pixels `[height, width, 3]`, row-major.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels of a row, `[width, 3]`.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.pixels[y * self.width * 3..][..self.width * 3]
    }
}

fn file_too_large(name: &Path) -> Error {
    Error::format(
        name,
        format!("this file is larger than {} MiB; give a smaller picture", MAX_FILE_BYTES >> 20),
    )
}

/// What `read` finds in the file `name`; what it says against it becomes an error, and so does a panic.
fn fenced<T>(
    name: &Path,
    content: &[u8],
    read: impl FnOnce(&[u8]) -> std::result::Result<T, String>,
) -> Result<T> {
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(file_too_large(name));
    }
    // Decoders hold nothing but what this call made, so nothing half done outlives a panic.
    match fence::fenced(|| read(content)) {
        Some(Ok(found)) => Ok(found),
        Some(Err(reason)) => Err(Error::format(name, reason)),
        None => Err(Error::format(name, "this picture cannot be decoded: its parts contradict each other")),
    }
}

/// A file whose header has been read.
struct Header<D> {
    format: ImageFormat,
    decoder: D,
    /// (height, width), within the limits.
    size: (usize, usize),
}

/// Reads the header of `content`, or says why there is none.
fn header(content: &[u8]) -> std::result::Result<Header<impl ImageDecoder + '_>, String> {
    let format = ::image::guess_format(content).ok().filter(|format| FORMATS.contains(format));
    let Some(format) = format else {
        return Err("this is no PNG, JPEG, WebP or GIF file; convert the picture to one of these".into());
    };
    if format == ImageFormat::Jpeg {
        jpeg::check(content)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(content), format);
    reader.limits(limits(MAX_METADATA_BYTES));
    let decoder = reader.into_decoder().map_err(sentence)?;
    let (width, height) = decoder.dimensions();
    let size = (height as usize, width as usize);
    check_size(size.0, size.1)?;
    Ok(Header { format, decoder, size })
}

/// What a decoder may read, and allocate at most.
fn limits(max_alloc: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(max_alloc);
    limits
}

/// The picture in `content`, or why there is none.
fn decode(content: &[u8]) -> std::result::Result<Picture, String> {
    let Header { format, mut decoder, size: (height, width) } = header(content)?;
    decoder.set_limits(limits(MAX_FRAME_BYTES)).map_err(sentence)?;
    let mut pixels = rgb(DynamicImage::from_decoder(decoder).map_err(sentence)?)?;
    if pixels.len() != height * width * 3 {
        return Err("this picture cannot be decoded: it is not of the size that its header states".into());
    }
    if format == ImageFormat::Gif {
        FirstFrame::find(content)?.paint_surround(width, &mut pixels);
    }
    Ok(Picture { height, width, pixels })
}

/// Fails on a picture without pixels, or with too many.
pub(super) fn check_size(height: usize, width: usize) -> std::result::Result<(), String> {
    if height == 0 || width == 0 {
        return Err(format!("this picture is {width} x {height}: it has no pixels"));
    }
    if height > MAX_SIDE || width > MAX_SIDE || height * width > MAX_PIXELS {
        return Err(format!(
            "this picture is {width} x {height}: more than {MAX_SIDE} pixels a side or {} million in all are too many; \
             scale it down",
            MAX_PIXELS >> 20
        ));
    }
    Ok(())
}

/// 8-bit RGB as Pillow's `convert("RGB")` makes it.
fn rgb(decoded: DynamicImage) -> std::result::Result<Vec<u8>, String> {
    let grey = |level: u8| [level; 3];
    let high = |level: u16| (level >> 8) as u8;
    Ok(match decoded {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma8(image) => image.pixels().flat_map(|p| grey(p[0])).collect(),
        DynamicImage::ImageLumaA8(image) => image.pixels().flat_map(|p| grey(p[0])).collect(),
        DynamicImage::ImageRgb16(image) => image.pixels().flat_map(|p| p.0.map(high)).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|p| [p[0], p[1], p[2]].map(high)).collect()
        }
        // Pillow's mode "I;16": clipped.
        DynamicImage::ImageLuma16(image) => image.pixels().flat_map(|p| grey(p[0].min(255) as u8)).collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|p| grey(high(p[0]))).collect(),
        _ => {
            return Err(
                "this picture's pixels are of a kind that is not supported; store it as 8-bit RGB".into()
            );
        }
    })
}

/// A decoder's error as a sentence about the file.
fn sentence(error: ImageError) -> String {
    match error {
        ImageError::Limits(_) => format!(
            "this picture is too large to decode: more than {MAX_SIDE} pixels a side or {} million in all; scale it down",
            MAX_PIXELS >> 20
        ),
        error => {
            let text = error.to_string();
            let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("this picture cannot be decoded; the file is broken or cut short ({one_line})")
        }
    }
}
