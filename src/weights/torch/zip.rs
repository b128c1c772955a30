//! The directory of a zip file whose entries are stored as they are, which is what `torch.save` writes (torch 1.6 and newer).
//!
//! Only the central directory counts (APPNOTE 6.3, with zip64); of a local header only its length is used. Entries are
//! ranges of the file, so nothing is copied and nothing can expand.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END64_BYTES: usize = 56;
const LOCATOR64_BYTES: usize = 20;
/// Longest comment behind the directory.
const MAX_COMMENT: usize = u16::MAX as usize;
/// More entries, and longer names, than `torch.save` writes.
const MAX_ENTRIES: u64 = 1 << 18;
const MAX_NAME: usize = 1024;
/// Extra field that holds what does not fit in 32 bits.
const ZIP64_FIELD: usize = 1;

/// Whether `file` begins as a zip file does.
pub(super) fn is_zip(file: &[u8]) -> bool {
    u32_at(file, 0) == Some(LOCAL)
}

/// Where the content of each entry of `file` lies. Fails, with a reason for the user, on entries that are compressed,
/// encrypted, outside the file, twice there or over one another.
pub(super) fn entries(file: &[u8]) -> Result<BTreeMap<&str, Range<usize>>, String> {
    let (directory, count) = directory(file)?;
    if count > MAX_ENTRIES {
        return Err(format!("the zip directory claims {count} entries, more than {MAX_ENTRIES}"));
    }
    let mut entries = BTreeMap::new();
    let mut taken = Vec::new();
    let mut at = directory.start;
    while at < directory.end && entries.len() as u64 <= count {
        let (entry, next) = central_entry(&file[..directory.end], at)
            .ok_or_else(|| format!("the zip directory is damaged at byte {at}"))?;
        at = next;
        let name = std::str::from_utf8(entry.name)
            .map_err(|_| "the zip directory has a name that is not UTF-8".to_string())?;
        let content = entry.content(name, &file[..directory.start])?;
        taken.push((entry.offset..content.end, name));
        if entries.insert(name, content).is_some() {
            return Err(format!("the zip directory lists {name} twice"));
        }
    }
    if entries.len() as u64 != count {
        return Err(format!("the zip directory should list {count} entries but lists {}", entries.len()));
    }
    taken.sort_by_key(|(range, _)| range.start);
    match taken.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        Some(pair) => Err(format!("the zip entries {} and {} overlap", pair[0].1, pair[1].1)),
        None => Ok(entries),
    }
}

/// Where the central directory lies, and how many entries it should have.
fn directory(file: &[u8]) -> Result<(Range<usize>, u64), String> {
    let last = file.len().saturating_sub(END_BYTES);
    let end = (last.saturating_sub(MAX_COMMENT)..=last)
        .rev()
        .find(|&at| {
            let comment = u16_at(file, at + END_BYTES - 2);
            u32_at(file, at) == Some(END) && comment.is_some_and(|len| at + END_BYTES + len == file.len())
        })
        .ok_or("the zip directory at its end is missing: the file is truncated")?;
    let damaged = || "the end of the zip directory is damaged".to_string();
    let locator = end.checked_sub(LOCATOR64_BYTES).filter(|&at| u32_at(file, at) == Some(LOCATOR64));
    let (count, len, start, limit) = match locator {
        None => {
            let wide = |at| u32_at(file, at).map(u64::from);
            let count = u16_at(file, end + 10).map(|count| count as u64);
            (count, wide(end + 12), wide(end + 16), end)
        }
        Some(locator) => {
            let end64 = u64_at(file, locator + 8).and_then(|at| usize::try_from(at).ok());
            let end64 = end64
                .filter(|&at| u32_at(file, at) == Some(END64) && at.saturating_add(END64_BYTES) <= locator)
                .ok_or_else(damaged)?;
            (u64_at(file, end64 + 32), u64_at(file, end64 + 40), u64_at(file, end64 + 48), end64)
        }
    };
    let (Some(count), Some(len), Some(start)) = (count, len, start) else { return Err(damaged()) };
    match start.checked_add(len) {
        // What does not exceed the length of the file fits.
        Some(stop) if stop <= limit as u64 => Ok((start as usize..stop as usize, count)),
        _ => Err(damaged()),
    }
}

/// What the central directory says about an entry.
struct Central<'a> {
    name: &'a [u8],
    encrypted: bool,
    method: usize,
    compressed: u64,
    size: u64,
    offset: usize,
}

/// The entry at `at`, and where the next one begins; `None` if it is not whole.
fn central_entry(file: &[u8], at: usize) -> Option<(Central<'_>, usize)> {
    if u32_at(file, at)? != CENTRAL {
        return None;
    }
    let [name_len, extra_len, comment_len] =
        [u16_at(file, at + 28)?, u16_at(file, at + 30)?, u16_at(file, at + 32)?];
    let name_end = at + CENTRAL_BYTES + name_len;
    let name = file.get(at + CENTRAL_BYTES..name_end).filter(|name| name.len() <= MAX_NAME)?;
    let next = name_end + extra_len + comment_len;
    let extra = file.get(name_end..name_end + extra_len)?;
    file.get(..next)?;
    let [mut size, mut compressed, mut offset] =
        [u32_at(file, at + 24)?, u32_at(file, at + 20)?, u32_at(file, at + 42)?].map(u64::from);
    // In this order, each only where the 32-bit field is full.
    let mut wide = zip64_field(extra);
    for field in [&mut size, &mut compressed, &mut offset] {
        if *field == u64::from(u32::MAX) {
            let (value, rest) = wide?.split_first_chunk::<8>()?;
            *field = u64::from_le_bytes(*value);
            wide = Some(rest);
        }
    }
    let entry = Central {
        name,
        encrypted: u16_at(file, at + 8)? & 1 != 0,
        method: u16_at(file, at + 10)?,
        compressed,
        size,
        offset: usize::try_from(offset).ok()?,
    };
    Some((entry, next))
}

/// The zip64 field among the `extra` ones.
fn zip64_field(mut extra: &[u8]) -> Option<&[u8]> {
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let content = extra.get(4..4 + len)?;
        if id == ZIP64_FIELD {
            return Some(content);
        }
        extra = &extra[4 + len..];
    }
    None
}

impl Central<'_> {
    /// Where the content lies; `file` ends where the directory begins.
    fn content(&self, name: &str, file: &[u8]) -> Result<Range<usize>, String> {
        if self.method != 0 || self.encrypted || self.compressed != self.size {
            return Err(format!(
                "the zip entry {name} is compressed or encrypted: torch.save stores entries as they are"
            ));
        }
        let outside = || format!("the zip entry {name} lies outside the file: it is truncated or damaged");
        if u32_at(file, self.offset) != Some(LOCAL) {
            return Err(outside());
        }
        let (Some(name_len), Some(extra_len)) =
            (u16_at(file, self.offset + 26), u16_at(file, self.offset + 28))
        else {
            return Err(outside());
        };
        let start = self.offset + LOCAL_BYTES + name_len + extra_len;
        let size = usize::try_from(self.size).map_err(|_| outside())?;
        match start.checked_add(size) {
            Some(end) if end <= file.len() => Ok(start..end),
            _ => Err(outside()),
        }
    }
}

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk().copied()
}

fn u16_at(file: &[u8], at: usize) -> Option<usize> {
    bytes_at(file, at).map(|bytes| u16::from_le_bytes(bytes).into())
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    bytes_at(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    bytes_at(file, at).map(u64::from_le_bytes)
}
