//! Writes a checkpoint as safetensors files, a block at a time.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::checkpoint::{INDEX_FILE, SINGLE_FILE};
use super::view::{TensorView, stored_type};
use super::{Checkpoint, StoredType};
use crate::config::FloatType;
use crate::{Error, Result};

/// Bytes read at a time: bounds the host memory of writing, and the time until a wish to stop is heard.
const BLOCK_BYTES: usize = 8 << 20;
/// Headers are filled up with spaces to a multiple of this, so that elements are aligned.
const ALIGNMENT: usize = 8;

/// The field of a header that is no tensor.
const METADATA: &str = "__metadata__";

/// How a checkpoint is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// Type of the float tensors; `None` keeps them as they are. Integers and booleans are always kept.
    pub float_type: Option<FloatType>,
    /// Bytes of tensors in a file at most, but for a tensor that is larger alone.
    pub max_shard_bytes: usize,
}

/// Called with the bytes read so far and the bytes in all; answers whether to go on.
pub type WriteProgress<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// A tensor as it will be written.
struct Plan {
    name: String,
    dtype: StoredType,
    /// Type to convert to; `None` copies.
    convert_to: Option<FloatType>,
    shape: Vec<usize>,
    size_in_bytes: usize,
}

impl Checkpoint {
    /// Writes all tensors to the folder `dir`: `model.safetensors`, or shards and `model.safetensors.index.json`. Returns
    /// the number of files with tensors, `None` if `progress` asked to stop.
    ///
    /// # Errors
    /// A float type that cannot be converted, values beyond the new type, or a file that cannot be written.
    pub fn write_safetensors(
        &self,
        dir: &Path,
        options: WriteOptions,
        progress: WriteProgress,
    ) -> Result<Option<usize>> {
        let shards = self.plan_shards(options)?;
        let total = self.total_bytes();
        let mut done = 0;
        let mut weight_map = Map::new();
        for (i, shard) in shards.iter().enumerate() {
            let file = match shards.len() {
                1 => SINGLE_FILE.to_string(),
                count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            let mut go_on = |bytes: usize| {
                done += bytes;
                progress(done, total)
            };
            if !self.write_shard(&dir.join(&file), shard, &mut go_on)? {
                return Ok(None);
            }
            weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), Value::from(file.as_str()))));
        }
        if shards.len() > 1 {
            let total_size: usize = shards.iter().flatten().map(|tensor| tensor.size_in_bytes).sum();
            let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
            let path = dir.join(INDEX_FILE);
            std::fs::write(&path, format!("{index:#}\n")).map_err(|error| Error::io(&path, error))?;
        }
        Ok(Some(shards.len()))
    }

    fn plan_shards(&self, options: WriteOptions) -> Result<Vec<Vec<Plan>>> {
        let mut shards = vec![Vec::new()];
        let mut shard_bytes = 0usize;
        for tensor in self.tensors() {
            if tensor.name == METADATA {
                return Err(self
                    .get(METADATA)?
                    .error("has a name that safetensors files keep for themselves"));
            }
            let convert_to =
                options.float_type.filter(|&to| tensor.is_float() && stored_type(to) != tensor.dtype);
            let dtype = convert_to.map_or(tensor.dtype, stored_type);
            // Whole bytes before; one of our types after, at most eight times as wide.
            let size_in_bytes =
                tensor.size_in_bytes / tensor.dtype.bitsize().div_ceil(8) * dtype.bitsize().div_ceil(8);
            if shard_bytes > 0 && shard_bytes + size_in_bytes > options.max_shard_bytes {
                shards.push(Vec::new());
                shard_bytes = 0;
            }
            shard_bytes += size_in_bytes;
            let (name, shape) = (tensor.name.to_owned(), tensor.shape.to_vec());
            let plan = Plan { name, dtype, convert_to, shape, size_in_bytes };
            shards.last_mut().expect("there is one from the start").push(plan);
        }
        for shard in &mut shards {
            // Wide elements first, so that all are aligned.
            shard.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
        }
        Ok(shards)
    }

    /// Writes one file; false if `go_on` asked to stop.
    fn write_shard(&self, path: &Path, shard: &[Plan], go_on: &mut dyn FnMut(usize) -> bool) -> Result<bool> {
        let io = |error| Error::io(path, error);
        let mut out = BufWriter::new(File::create(path).map_err(io)?);
        out.write_all(&header(shard)).map_err(io)?;
        for plan in shard {
            if !write_tensor(&self.get(&plan.name)?, plan, &mut out, path, go_on)? {
                return Ok(false);
            }
        }
        let file = out.into_inner().map_err(|error| io(error.into_error()))?;
        file.sync_all().map_err(io)?;
        Ok(true)
    }
}

fn header(shard: &[Plan]) -> Vec<u8> {
    let mut fields = Map::new();
    fields.insert(METADATA.into(), json!({"format": "pt"}));
    let mut end = 0;
    for Plan { name, dtype, shape, size_in_bytes, .. } in shard {
        let begin = end;
        end += size_in_bytes;
        fields.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}));
    }
    let mut json = Value::Object(fields).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json].concat()
}

fn write_tensor(
    view: &TensorView,
    plan: &Plan,
    out: &mut impl Write,
    path: &Path,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<bool> {
    let io = |error| Error::io(path, error);
    if view.bytes.is_empty() {
        return Ok(true);
    }
    let Some(float_type) = plan.convert_to else {
        for block in view.bytes.chunks(BLOCK_BYTES) {
            out.write_all(block).map_err(io)?;
            if !go_on(block.len()) {
                return Ok(false);
            }
        }
        return Ok(true);
    };
    let num_rows = view.shape.first().copied().unwrap_or(1);
    let (row_bytes, new_row_bytes) = (view.bytes.len() / num_rows, plan.size_in_bytes / num_rows);
    let step = (BLOCK_BYTES / row_bytes.max(1)).max(1);
    let mut converted = Vec::new();
    for start in (0..num_rows).step_by(step) {
        let rows = start..(start + step).min(num_rows);
        converted.resize(rows.len() * new_row_bytes, 0);
        view.copy_rows_converted(rows.clone(), float_type, &mut converted)?;
        out.write_all(&converted).map_err(io)?;
        if !go_on(rows.len() * row_bytes) {
            return Ok(false);
        }
    }
    Ok(true)
}
