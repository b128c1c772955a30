//! Where answers go: standard output, files, and bars on the terminal while they are on their way.

use std::io::Write;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use smart_run::{Error, Result};

/// Writes to stdout at once.
pub fn print_now(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io("standard output", e))
}

/// Whether a file at `path` has a folder to lie in: asked before anything is loaded, measured or played.
///
/// # Errors
/// [`Error::Format`] that names the folder.
pub fn check_place(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    Err(Error::format(folder, "no such folder; make it, or choose another place for the file"))
}

/// A bar of `len` steps on stderr, drawn by indicatif's `template`; hidden when stderr is no terminal.
pub fn bar(template: &str, len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(len as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
