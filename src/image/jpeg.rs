//! What has to be known of a JPEG file before it is decoded.
//!
//! The decoder fills what is missing from a file that is cut short with grey, where Pillow refuses it; and it takes any number
//! of progressive scans, each of which may cost a pass over all pixels for a few bytes of file.

/// Scans of one picture; encoders write about ten.
const MAX_SCANS: usize = 100;

/// Fails unless `content` is complete, up to its end-of-image marker, and of at most [`MAX_SCANS`] scans.
pub(super) fn check(content: &[u8]) -> Result<(), String> {
    let cut_short = || "this JPEG file is cut short; its end is missing".to_string();
    let mut scans = 0;
    let mut at = 2; // behind the start-of-image marker, by which the format was known
    loop {
        // A marker is 0xFF, any number of times, and a code. What stands before it is data of a scan, or, as decoders
        // allow, garbage.
        let start = content.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF));
        at += start.ok_or_else(cut_short)?;
        let fill = content[at..].iter().position(|&byte| byte != 0xFF).ok_or_else(cut_short)?;
        let code = content[at + fill];
        at += fill + 1;
        match code {
            // End of image.
            0xD9 if scans > 0 => return Ok(()),
            0xD9 => return Err("this JPEG file ends before its pixels begin".into()),
            // A byte 0xFF of a scan's data; markers that stand alone.
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            0xDA => scans += 1,
            _ => {}
        }
        if scans > MAX_SCANS {
            return Err(format!("this JPEG file has more than {MAX_SCANS} scans; store it anew"));
        }
        let length = content.get(at..at + 2).ok_or_else(cut_short)?;
        at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: [u8; 2] = [0xFF, 0xD8];
    const END: [u8; 2] = [0xFF, 0xD9];
    /// A comment that holds an end-of-image marker.
    const COMMENT: [u8; 6] = [0xFF, 0xFE, 0, 4, 0xFF, 0xD9];
    /// A scan with an empty header; its data has a stuffed 0xFF and a restart marker.
    const SCAN: [u8; 9] = [0xFF, 0xDA, 0, 2, 1, 0xFF, 0x00, 0xFF, 0xD0];

    #[test]
    fn complete_files_pass() {
        let file = [&START[..], &COMMENT, &SCAN, &SCAN, &[0xFF], &END, &[1, 2, 3]].concat();
        assert_eq!(check(&file), Ok(()));
    }

    #[test]
    fn files_that_are_cut_anywhere_do_not() {
        let file = [&START[..], &COMMENT, &SCAN, &SCAN, &END].concat();
        for len in 2..file.len() {
            assert!(check(&file[..len]).is_err(), "{len}");
        }
        assert!(check(&[START, END].concat()).is_err());
    }

    #[test]
    fn scans_are_counted() {
        let with = |scans: usize| [&START[..], &SCAN.repeat(scans), &END].concat();
        assert_eq!(check(&with(MAX_SCANS)), Ok(()));
        assert!(check(&with(MAX_SCANS + 1)).unwrap_err().contains("scans"));
    }
}
