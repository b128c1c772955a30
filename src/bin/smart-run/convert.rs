//! `smart-run convert`: a model folder's weights as safetensors, in a new folder that appears when it is whole.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use smart_run::config::{FloatType, ModelSource, with_dtype};
use smart_run::weights::{Checkpoint, WriteOptions};
use smart_run::{Error, Result};

use crate::args::ConvertArgs;
use crate::loading;
use crate::output::print_now;
use crate::{interrupt, output};

/// Ends of the names of files that are copied: configuration, tokenizer, chat template, model card.
const COPIED: [&str; 5] = ["json", "txt", "model", "jinja", "md"];
/// End of the names of indexes, which the new weights do not need.
const INDEX: &str = ".index.json";

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    check_out(&args.out)?;
    let source = ModelSource::from(args.folder.as_path());
    let checkpoint = Checkpoint::open(&source)?;
    interrupt::listen();
    let partial = Partial::beside(&args.out)?;
    let bar = loading::bytes_bar("converting");
    let options = WriteOptions { float_type: args.dtype, max_shard_bytes: args.max_shard_bytes };
    let written = checkpoint.write_safetensors(&partial.folder, options, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        !interrupt::requested()
    });
    bar.finish_and_clear();
    let Some(num_files) = written? else {
        eprintln!("smart-run: interrupted; nothing was written");
        return Ok(());
    };
    let copied = copy_others(&args.folder, &partial.folder, args.dtype)?;
    partial.rename(&args.out)?;
    let files = |count: usize| if count == 1 { "file" } else { "files" };
    print_now(&format!(
        "{}: {} tensors in {num_files} {} of safetensors, {copied} other {} copied\n",
        args.out.display(),
        checkpoint.names().count(),
        files(num_files),
        files(copied)
    ))
}

/// Fails unless `out` is free: not there, or an empty folder.
fn check_out(out: &Path) -> Result<()> {
    output::check_place(out)?;
    match fs::read_dir(out).map(|mut files| files.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::format(out, "this folder is not empty: give --out a new one")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(Error::format(out, "this is a file: give --out a new folder"))
        }
        Err(error) => Err(Error::io(out, error)),
    }
}

/// A folder under another name until it is whole; removed with this value unless it was renamed.
struct Partial {
    folder: PathBuf,
}

impl Partial {
    fn beside(out: &Path) -> Result<Self> {
        let name = out.file_name().ok_or_else(|| Error::format(out, "this is no name for a new folder"))?;
        let partial = format!(".{}.partial-{}", name.to_string_lossy(), std::process::id());
        let folder = out.with_file_name(partial);
        fs::create_dir(&folder).map_err(|error| Error::io(&folder, error))?;
        Ok(Self { folder })
    }

    fn rename(mut self, out: &Path) -> Result<()> {
        fs::rename(&self.folder, out).map_err(|error| Error::io(out, error))?;
        self.folder = PathBuf::new();
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.folder.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Copies what is beside the weights, with the new `dtype` in the config. Returns the number of files.
fn copy_others(from: &Path, to: &Path, dtype: Option<FloatType>) -> Result<usize> {
    let mut copied = 0;
    for entry in fs::read_dir(from).map_err(|error| Error::io(from, error))? {
        let name = entry.map_err(|error| Error::io(from, error))?.file_name();
        // Links are followed: download caches are made of them.
        let path = from.join(&name);
        if !is_copied(&name) || !path.is_file() {
            continue;
        }
        let place = to.join(&name);
        match dtype.filter(|_| name == "config.json") {
            None => {
                fs::copy(&path, &place).map_err(|error| Error::io(&path, error))?;
            }
            Some(dtype) => {
                let json = fs::read(&path).map_err(|error| Error::io(&path, error))?;
                let json = with_dtype(&path, &json, dtype)?;
                fs::write(&place, json).map_err(|error| Error::io(&place, error))?;
            }
        }
        copied += 1;
    }
    Ok(copied)
}

fn is_copied(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let end = name.rsplit_once('.').map_or("", |(_, end)| end);
    let is_notice = ["LICENSE", "NOTICE", "USE_POLICY"].iter().any(|begin| name.starts_with(begin));
    !name.starts_with('.') && !name.ends_with(INDEX) && (COPIED.contains(&end) || is_notice)
}
