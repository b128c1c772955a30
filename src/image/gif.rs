//! What has to be known of a GIF file before it is decoded: where its first frame lies, and what surrounds it.
//!
//! The decoder leaves black around a frame that is smaller than the screen. Pillow has there the colour that the frame calls
//! transparent, or the first one of its palette.

use std::ops::Range;

/// The first frame's place on the screen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FirstFrame {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// Colour of the screen around it.
    pub surround: [u8; 3],
}

impl FirstFrame {
    /// Finds it in the GIF file `content`.
    pub fn find(content: &[u8]) -> Result<Self, String> {
        Self::read(content).ok_or("this GIF file is cut short; it has no frame")?
    }

    /// `None` where the file ends first.
    fn read(content: &[u8]) -> Option<Result<Self, String>> {
        let number = |at: usize| -> Option<usize> {
            Some(usize::from(u16::from_le_bytes([*content.get(at)?, *content.get(at + 1)?])))
        };
        let (screen_columns, screen_rows) = (number(6)?, number(8)?);
        let screen_flags = *content.get(10)?;
        let mut palette = (screen_flags & 0x80 != 0).then_some(13);
        let mut at = 13 + palette_len(screen_flags);
        let mut transparent = 0;
        loop {
            match *content.get(at)? {
                // An extension: a label, then blocks of a length and as many bytes, up to an empty one.
                0x21 => {
                    // Graphic control.
                    if *content.get(at + 1)? == 0xF9 && content.get(at + 3)? & 1 != 0 {
                        transparent = usize::from(*content.get(at + 6)?);
                    }
                    at += 2;
                    loop {
                        let len = usize::from(*content.get(at)?);
                        at += 1 + len;
                        if len == 0 {
                            break;
                        }
                    }
                }
                0x2C => {
                    let (left, top, width, height) =
                        (number(at + 1)?, number(at + 3)?, number(at + 5)?, number(at + 7)?);
                    let flags = *content.get(at + 9)?;
                    if flags & 0x80 != 0 {
                        palette = Some(at + 10);
                    }
                    if left + width > screen_columns || top + height > screen_rows {
                        return Some(Err(
                            "this GIF file's first frame exceeds its screen; store it anew".into()
                        ));
                    }
                    let surround = match palette {
                        Some(start) => {
                            let color = content.get(start + transparent * 3..)?.get(..3)?;
                            [color[0], color[1], color[2]]
                        }
                        None => [transparent as u8; 3],
                    };
                    return Some(Ok(FirstFrame {
                        rows: top..top + height,
                        columns: left..left + width,
                        surround,
                    }));
                }
                0x3B => return None,
                // As decoders do: what is no block is passed over.
                _ => at += 1,
            }
        }
    }

    /// Paints what surrounds the frame in `pixels` `[height, width, 3]`.
    pub fn paint_surround(&self, width: usize, pixels: &mut [u8]) {
        for (y, line) in pixels.chunks_exact_mut(width * 3).enumerate() {
            for (x, pixel) in line.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                if !(self.rows.contains(&y) && self.columns.contains(&x)) {
                    *pixel = self.surround;
                }
            }
        }
    }
}

/// Bytes of the palette that `flags` announce.
fn palette_len(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A screen of 6 x 5 with a palette of two colours.
    const SCREEN: &[u8] = b"GIF89a\x06\0\x05\0\x80\0\0\x01\x02\x03\x04\x05\x06";
    /// The second colour is transparent.
    const CONTROL: &[u8] = b"\x21\xF9\x04\x01\0\0\x01\0";
    const COMMENT: &[u8] = b"\x21\xFE\x02\x2C\x2C\x01\x2C\0";

    fn frame(left: u8, width: u8, flags: u8) -> Vec<u8> {
        vec![0x2C, left, 0, 1, 0, width, 0, 2, 0, flags, 7, 8, 9, 10, 11, 12]
    }

    #[test]
    fn the_surround_is_the_transparent_or_the_first_colour() {
        let surround = |parts: &[&[u8]]| FirstFrame::find(&parts.concat()).unwrap().surround;
        assert_eq!(surround(&[SCREEN, COMMENT, &frame(2, 3, 0)]), [1, 2, 3]);
        assert_eq!(surround(&[SCREEN, CONTROL, COMMENT, &frame(2, 3, 0)]), [4, 5, 6]);
        assert_eq!(surround(&[SCREEN, CONTROL, &frame(2, 3, 0x80)]), [10, 11, 12]);
    }

    #[test]
    fn frames_lie_on_the_screen() {
        let found = FirstFrame::find(&[SCREEN, &frame(2, 4, 0)].concat()).unwrap();
        assert_eq!((found.rows, found.columns), (1..3, 2..6));
        assert!(FirstFrame::find(&[SCREEN, &frame(3, 4, 0)].concat()).unwrap_err().contains("exceeds"));
        let file = [SCREEN, CONTROL, &frame(2, 4, 0x80)].concat();
        for len in 6..file.len() {
            assert!(FirstFrame::find(&file[..len]).is_err(), "{len}");
        }
    }
}
