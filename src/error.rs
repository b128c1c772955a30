//! The library's error: one enum, each variant a sentence that names the file, field or flag and what to do.

use std::path::PathBuf;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read but its content is not usable.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The request cannot be served as asked: a bad option, prompt or combination.
    #[error("{0}")]
    Input(String),
    /// A tensor does not have the shape or dtype that its user needs.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Kernel or tensor name.
        what: String,
        /// What is needed.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A model could not be fetched: no connection, or a server's failure.
    #[error("{0}")]
    Download(String),
    /// No usable GPU driver, or the device cannot be used.
    #[error("{0}")]
    Device(String),
    /// A result is not what it has to be: a defect of this crate or of the machine.
    #[error("{0}")]
    Defect(String),
    /// A driver call failed.
    #[error("{call} failed: {reason}")]
    Driver {
        /// The driver call.
        call: &'static str,
        /// The driver's name and text of the error.
        reason: String,
    },
}

impl Error {
    /// Whether the caller's input is at fault (exit code 2), not the run (exit code 1).
    pub fn is_input(&self) -> bool {
        matches!(self, Error::Io { .. } | Error::Format { .. } | Error::Input(_))
    }

    /// A [`Error::Format`] for `path`.
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        // Names within a file are a stranger's: they may not break the line.
        let escaped = |character: char| match character.is_control() {
            true => character.escape_default().to_string(),
            false => character.to_string(),
        };
        let reason =
            if reason.contains(char::is_control) { reason.chars().map(escaped).collect() } else { reason };
        Error::Format { path: path.into(), reason }
    }

    /// A [`Error::Io`] for `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    /// Found by fuzzing: an entry of a zip file whose name has two lines.
    #[test]
    fn what_is_said_of_a_file_is_one_line() {
        let error = Error::format("a", "the entry b\r\nc\u{1b}[0m is damaged, é");
        assert_eq!(error.to_string(), "a: the entry b\\r\\nc\\u{1b}[0m is damaged, é");
    }
}
