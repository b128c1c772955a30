//! Reads a pickle's program: bytes, numbers, lines.
#![forbid(unsafe_code)]

/// Longest program.
const MAX_BYTES: usize = 32 << 20;

/// Where a text, or a long integer, stands in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// Number of bytes.
    pub fn len(self) -> usize {
        self.len as usize
    }
}

/// A program, and how far it has been read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    program: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The program that `file` begins with.
    pub fn new(file: &'a [u8]) -> Self {
        Self { program: &file[..file.len().min(MAX_BYTES)], at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The bytes at `span`.
    pub fn bytes(&self, span: Span) -> &'a [u8] {
        &self.program[span.start as usize..][..span.len()]
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let taken = self.program[self.at..].get(..len).ok_or_else(|| {
            if self.program.len() == MAX_BYTES {
                format!("its pickle is longer than {} MiB", MAX_BYTES >> 20)
            } else {
                "its pickle ends too early: the file is truncated".to_string()
            }
        })?;
        self.at += len;
        Ok(taken)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, String> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// An unsigned integer of 1 to 8 bytes.
    pub fn length(&mut self, bytes: usize) -> Result<usize, String> {
        let mut wide = [0; 8];
        wide[..bytes].copy_from_slice(self.take(bytes)?);
        Ok(usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX))
    }

    /// Where the next `length` bytes stand, after the length itself.
    pub fn span(&mut self, length_bytes: usize) -> Result<Span, String> {
        let len = self.length(length_bytes)?;
        let start = self.at;
        self.take(len)?;
        Ok(Span { start: start as u32, len: len as u32 })
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> Result<&'a str, String> {
        /// Longer than any name of torch.
        const MAX_LINE: usize = 256;
        let rest = &self.program[self.at..];
        let rest = &rest[..rest.len().min(MAX_LINE)];
        let len = rest.iter().position(|&byte| byte == b'\n');
        let line = match len {
            Some(len) => self.take(len + 1)?.split_last().map_or(&[][..], |(_, line)| line),
            // Fails where the file ends.
            None => self.take(MAX_LINE)?,
        };
        match (len, std::str::from_utf8(line)) {
            (Some(_), Ok(line)) => Ok(line),
            _ => Err("its pickle names a function by what is no name".into()),
        }
    }
}
