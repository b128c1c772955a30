//! A model's tensors by name, over one file or many.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;

use super::entry::Entry;
use super::storage::Storage;
use super::view::{TensorView, stored_type};
use super::{StoredType, header, torch};
use crate::config::{FloatType, ModelSource};
use crate::{Error, Result};

/// Names of safetensors weights in a folder.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Where the weights of a folder may be: in one file, or in those that an index lists.
struct Layout {
    format: FileFormat,
    single: &'static str,
    index: Option<&'static str>,
}

/// In the order in which they are looked for: safetensors first, whatever else is there.
const LAYOUTS: [Layout; 3] = [
    Layout { format: FileFormat::Safetensors, single: SINGLE_FILE, index: Some(INDEX_FILE) },
    Layout {
        format: FileFormat::Torch,
        single: "pytorch_model.bin",
        index: Some("pytorch_model.bin.index.json"),
    },
    Layout { format: FileFormat::Torch, single: "medusa_lm_head.pt", index: None },
];

/// How a file of weights is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// A JSON header, then the tensors.
    Safetensors,
    /// What `torch.save` writes of a state dict.
    Torch,
}

impl FileFormat {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            FileFormat::Safetensors => "safetensors",
            FileFormat::Torch => "PyTorch",
        }
    }
}

/// The tensors of a model, mapped read-only. The files must not change while this lives.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Tensor>,
    is_rehearsal: bool,
    is_dummy: bool,
}

#[derive(Debug)]
struct TensorFile {
    path: PathBuf,
    format: FileFormat,
    storage: Storage,
}

#[derive(Debug)]
struct Tensor {
    file_idx: usize,
    entry: Entry,
    /// Whether a loader has asked for it, or said that it does not want it.
    used: AtomicBool,
    /// Its elements in row-major order, once they were asked for; only if they are stored in another order.
    copied: OnceLock<Vec<u8>>,
}

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// Element type.
    pub dtype: StoredType,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Bytes of its elements.
    pub size_in_bytes: usize,
}

impl TensorInfo<'_> {
    /// Whether its elements are floating-point numbers: weights, not tables or masks.
    pub fn is_float(&self) -> bool {
        use StoredType::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
        !matches!(self.dtype, BOOL | I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
    }
}

/// `model.safetensors.index.json` and its like: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the weights of `source`: `model.safetensors`, else the files that `model.safetensors.index.json` lists, else
    /// `pytorch_model.bin` or the files of its index, else `medusa_lm_head.pt`.
    pub fn open(source: &ModelSource) -> Result<Self> {
        let dir = match source {
            ModelSource::Embedded(model) => {
                return Self::from_static(source.path(SINGLE_FILE), model.weights);
            }
            ModelSource::Dir(dir) => dir,
        };
        source.check_root()?;
        let mut checkpoint = Self::empty();
        for Layout { format, single, index } in LAYOUTS {
            if dir.join(single).exists() {
                checkpoint.map_file(dir.join(single), format)?;
                return Ok(checkpoint);
            }
            let Some(index) = index else { continue };
            if let Some(content) = source.read_optional(index)? {
                checkpoint.map_shards(source, index, &content, format)?;
                return Ok(checkpoint);
            }
        }
        let places: Vec<&str> =
            LAYOUTS.iter().flat_map(|layout| [Some(layout.single), layout.index]).flatten().collect();
        Err(Error::format(dir, format!("no {} here", places.join(", "))))
    }

    /// A checkpoint of one safetensors file that is in memory; `path` stands for it in messages.
    pub fn from_static(path: impl Into<PathBuf>, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self::empty();
        checkpoint.add_file(path.into(), FileFormat::Safetensors, Storage::Static(bytes))?;
        Ok(checkpoint)
    }

    /// A checkpoint without files, whose loaders make up what they need.
    pub fn dummy() -> Self {
        Checkpoint { is_dummy: true, ..Self::empty() }
    }

    /// Whether weights are to be made up: no tensor is found here.
    pub fn is_dummy(&self) -> bool {
        self.is_dummy
    }

    fn empty() -> Self {
        Checkpoint { files: Vec::new(), tensors: BTreeMap::new(), is_rehearsal: false, is_dummy: false }
    }

    /// From now on a loader asks for everything that it needs, and so finds every fault, but copies nothing to the device.
    pub fn rehearse(&mut self) {
        self.is_rehearsal = true;
    }

    /// Whether loading is only rehearsed.
    pub fn is_rehearsal(&self) -> bool {
        self.is_rehearsal
    }

    /// The tensor `name`, which the model must have. Counts as used from now on.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        self.find(name).ok_or_else(|| {
            let near = self.nearest(name);
            let hint = near.map_or_else(String::new, |near| format!(" (the nearest name is {near})"));
            Error::format(self.root(), format!("tensor {name} is missing{hint}"))
        })
    }

    /// The tensor `name`, if the model has it. Counts as used from now on.
    pub fn find(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, tensor) = self.tensors.get_key_value(name)?;
        tensor.used.store(true, Ordering::Relaxed);
        let TensorFile { path, storage, .. } = &self.files[tensor.file_idx];
        let entry = &tensor.entry;
        let bytes = match entry.strides {
            None => &storage[entry.bytes.clone()],
            Some(_) => tensor.copied.get_or_init(|| entry.gather(storage)),
        };
        Some(TensorView { name, path, dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// Counts the tensor `name` as used, if there is one: the loader knows it and does not need it.
    pub fn ignore(&self, name: &str) {
        self.find(name);
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What is known of all tensors without reading them, in order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, Tensor { entry, .. })| TensorInfo {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            size_in_bytes: entry.size_in_bytes(),
        })
    }

    /// The files and their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&Path, FileFormat, usize)> {
        self.files.iter().map(|file| (file.path.as_path(), file.format, file.storage.len()))
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> usize {
        self.tensors().map(|tensor| tensor.size_in_bytes).sum()
    }

    /// The type that most of the weights are stored in, by bytes: what `--dtype auto` means where the config is silent.
    pub fn float_type(&self) -> Result<FloatType> {
        let bytes_stored_as = |dtype: FloatType| -> usize {
            let of_this_type = self.tensors().filter(|tensor| tensor.dtype == stored_type(dtype));
            of_this_type.map(|tensor| tensor.size_in_bytes).sum()
        };
        FloatType::ALL
            .into_iter()
            .max_by_key(|&dtype| bytes_stored_as(dtype))
            .filter(|&dtype| bytes_stored_as(dtype) > 0)
            .ok_or_else(|| Error::format(self.root(), "no tensor is stored as BF16, F16 or F32"))
    }

    /// Names that no loader has asked for or ignored. `rotary_emb.inv_freq`, a by-product of older exporters, is left out.
    pub fn unused(&self) -> Vec<&str> {
        let unused = self.tensors.iter().filter(|(_, tensor)| !tensor.used.load(Ordering::Relaxed));
        unused.map(|(name, _)| name.as_str()).filter(|name| !name.ends_with("rotary_emb.inv_freq")).collect()
    }

    /// Ends loading: fails if tensors are left over, since the model then is not what its config says.
    pub fn finish(&self) -> Result<()> {
        const SHOWN: usize = 4;
        let unused = self.unused();
        if unused.is_empty() {
            return Ok(());
        }
        let shown = unused[..unused.len().min(SHOWN)].join(", ");
        let more = unused.len().saturating_sub(SHOWN);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(Error::format(
            self.root(),
            format!("the weights hold tensors that this model does not have: {shown}{rest}"),
        ))
    }
}

impl Checkpoint {
    fn map_shards(
        &mut self,
        source: &ModelSource,
        index_name: &str,
        index: &[u8],
        format: FileFormat,
    ) -> Result<()> {
        let index_path = source.path(index_name);
        let index: Index = serde_json::from_slice(index)
            .map_err(|error| Error::format(&index_path, format!("this is not a valid index: {error}")))?;
        let file_names: BTreeSet<&String> = index.weight_map.values().collect();
        for file_name in file_names {
            if file_name.is_empty() || file_name.contains(['/', '\\', '\0']) || file_name.starts_with('.') {
                return Err(Error::format(
                    &index_path,
                    format!("`weight_map` names {file_name:?}, which is not a file of this folder"),
                ));
            }
            self.map_file(source.path(file_name), format)?;
        }
        for (tensor, file_name) in &index.weight_map {
            if !self.tensors.contains_key(tensor) {
                return Err(Error::format(&index_path, format!("{file_name} does not hold tensor {tensor}")));
            }
        }
        Ok(())
    }

    fn map_file(&mut self, path: PathBuf, format: FileFormat) -> Result<()> {
        let storage = Storage::map(&path)?;
        self.add_file(path, format, storage)
    }

    fn add_file(&mut self, path: PathBuf, format: FileFormat, storage: Storage) -> Result<()> {
        let entries = match format {
            FileFormat::Safetensors => header::parse(&storage),
            FileFormat::Torch => torch::parse(&storage),
        };
        let entries = entries.map_err(|reason| Error::format(&path, reason))?;
        let file_idx = self.files.len();
        for (name, entry) in entries {
            if let Some(twin) = self.tensors.get(&name) {
                let first = self.files[twin.file_idx].path.display();
                return Err(Error::format(&path, format!("tensor {name} is here and in {first} as well")));
            }
            let (used, copied) = (AtomicBool::new(false), OnceLock::new());
            self.tensors.insert(name, Tensor { file_idx, entry, used, copied });
        }
        self.files.push(TensorFile { path, format, storage });
        Ok(())
    }

    /// What messages about the checkpoint as a whole name: its only file, or the folder of several.
    fn root(&self) -> PathBuf {
        match self.files.as_slice() {
            [only] => only.path.clone(),
            files => files.first().and_then(|file| file.path.parent()).map(PathBuf::from).unwrap_or_default(),
        }
    }

    /// The name most like `name`, if any is close: a missing tensor is often there under another prefix.
    fn nearest(&self, name: &str) -> Option<&str> {
        let common_tail = |other: &str| {
            let pairs = name.bytes().rev().zip(other.bytes().rev());
            pairs.take_while(|(a, b)| a == b).count()
        };
        let last_dot = name.rfind('.').unwrap_or(0);
        let last_two_parts = name.len() - name[..last_dot].rfind('.').unwrap_or(0);
        self.names()
            .max_by_key(|other| common_tail(other))
            .filter(|other| common_tail(other) >= last_two_parts)
    }
}
