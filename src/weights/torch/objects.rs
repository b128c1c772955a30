//! What the pickle of a state dict may name: a handful of functions and types of torch, here as plain data.
#![forbid(unsafe_code)]

use super::super::StoredType;
use super::pickle::{Machine, Value};
use super::reader::Span;

/// More dimensions than any weight has.
const MAX_DIMS: usize = 8;
/// More tensors than any model has.
const MAX_TENSORS: usize = 1 << 18;

/// A function or type that a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `torch._utils._rebuild_tensor_v2`: storage, offset, size, strides.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`: as v2, over bytes, with a dtype of its own.
    RebuildTensorOfType,
    /// `torch._utils._rebuild_parameter`: a tensor that was trained.
    RebuildParameter,
    /// `torch.FloatStorage` and the like.
    Storage(StoredType),
    /// `torch.storage.UntypedStorage`: bytes.
    UntypedStorage,
    /// `torch.float32` and the like.
    Type(StoredType),
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch.Size`: a tuple.
    Size,
    /// `_codecs.encode`: how protocol 2 writes bytes, which are passed over.
    Encode,
}

impl Global {
    /// The global `module.name`; an error, which names it, unless it is one of ours.
    pub fn named(module: &str, name: &str) -> Result<Self, String> {
        let known = match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("_codecs", "encode") => Some(Global::Encode),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorOfType),
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("torch.storage", "UntypedStorage") => Some(Global::UntypedStorage),
            ("torch", "Size") => Some(Global::Size),
            ("torch", name) => match name.strip_suffix("Storage") {
                Some(kind) => storage_type(kind).map(Global::Storage),
                None => torch_type(name).map(Global::Type),
            },
            _ => None,
        };
        known.ok_or_else(|| {
            const SHOWN: usize = 80;
            let full: String = format!("{module}.{name}").chars().take(SHOWN).collect();
            format!(
                "its pickle names {}, which is neither a tensor nor a part of one: nothing of it was run",
                full.escape_default()
            )
        })
    }
}

fn storage_type(kind: &str) -> Option<StoredType> {
    Some(match kind {
        "BFloat16" => StoredType::BF16,
        "Half" => StoredType::F16,
        "Float" => StoredType::F32,
        "Double" => StoredType::F64,
        "Long" => StoredType::I64,
        "Int" => StoredType::I32,
        "Short" => StoredType::I16,
        "Char" => StoredType::I8,
        "Byte" => StoredType::U8,
        "Bool" => StoredType::BOOL,
        _ => return None,
    })
}

fn torch_type(name: &str) -> Option<StoredType> {
    Some(match name {
        "bfloat16" => StoredType::BF16,
        "float16" => StoredType::F16,
        "float32" => StoredType::F32,
        "float64" => StoredType::F64,
        "int64" => StoredType::I64,
        "int32" => StoredType::I32,
        "int16" => StoredType::I16,
        "int8" => StoredType::I8,
        "uint8" => StoredType::U8,
        "uint16" => StoredType::U16,
        "uint32" => StoredType::U32,
        "uint64" => StoredType::U64,
        "bool" => StoredType::BOOL,
        "float8_e4m3fn" => StoredType::F8_E4M3,
        "float8_e5m2" => StoredType::F8_E5M2,
        _ => return None,
    })
}

/// What a pickle has made of storages and tensors.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
}

/// A block of elements outside the pickle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    /// `U8` where it is untyped.
    pub dtype: StoredType,
    /// What finds it: the name of a zip entry, or one of the keys after the pickle.
    pub key: Span,
    pub num_elements: usize,
}

/// A view of a storage, not yet checked against it.
#[derive(Debug)]
pub(super) struct Tensor {
    pub storage: Storage,
    pub dtype: StoredType,
    /// Elements before the first one.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// Elements from one index of each dimension to the next.
    pub strides: Vec<usize>,
}

impl Objects {
    /// What `global(*arguments)` makes.
    pub fn call(machine: &mut Machine, global: Global, arguments: u32) -> Result<Value, String> {
        let arguments = machine.tuple(arguments);
        let tensor = match (global, arguments) {
            (Global::Size, &[dims @ Value::Tuple(_)]) => return Ok(dims),
            (Global::Encode, &[Value::Text(_) | Value::Other, Value::Text(codec)])
                if machine.text(codec) == "latin1" =>
            {
                return Ok(Value::Other);
            }
            // The tensor itself, whether it needs a gradient, hooks.
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), _, _]) => return Ok(tensor),
            // ..., whether it needs a gradient, hooks; then, if at all, flags such as "conjugate lazily".
            (
                Global::RebuildTensor,
                &[Value::Storage(storage), offset, size, strides, _, _, ref flags @ ..],
            ) => {
                plain(machine, flags)?;
                let storage = machine.objects.storages[storage as usize];
                tensor(machine, storage, storage.dtype, offset, size, strides)?
            }
            (
                Global::RebuildTensorOfType,
                &[
                    Value::Storage(storage),
                    offset,
                    size,
                    strides,
                    _,
                    _,
                    Value::Global(Global::Type(dtype)),
                    ref flags @ ..,
                ],
            ) => {
                plain(machine, flags)?;
                let mut storage = machine.objects.storages[storage as usize];
                let element = dtype.bitsize() / 8;
                if storage.dtype != StoredType::U8 {
                    return Err("its pickle reads a storage of one type as another".into());
                }
                storage.num_elements /= element;
                tensor(machine, storage, dtype, offset, size, strides)?
            }
            (other, _) => {
                return Err(format!("its pickle calls {other:?} with arguments that torch does not write"));
            }
        };
        if machine.objects.tensors.len() == MAX_TENSORS {
            return Err(format!("its pickle makes more than {MAX_TENSORS} tensors"));
        }
        machine.objects.tensors.push(tensor);
        Ok(Value::Tensor(machine.objects.tensors.len() as u32 - 1))
    }

    /// The storage of a persistent id: `("storage", type, key, device, number of elements)`, and in the older format None.
    pub fn storage(machine: &mut Machine, id: Value) -> Result<Value, String> {
        let id = match id {
            Value::Tuple(id) => machine.tuple(id),
            _ => &[],
        };
        let (&[Value::Text(kind), Value::Global(class), Value::Text(key), _, Value::Int(len)]
        | &[Value::Text(kind), Value::Global(class), Value::Text(key), _, Value::Int(len), Value::None]) = id
        else {
            return Err("its pickle refers to something outside it that is no storage".into());
        };
        let dtype = match class {
            Global::Storage(dtype) => dtype,
            Global::UntypedStorage => StoredType::U8,
            _ => return Err("its pickle refers to a storage of no known type".into()),
        };
        let num_elements =
            usize::try_from(len).map_err(|_| "its pickle refers to a storage of negative length")?;
        if machine.text(kind) != "storage" {
            return Err("its pickle refers to something outside it that is no storage".into());
        }
        machine.objects.storages.push(Storage { dtype, key, num_elements });
        Ok(Value::Storage(machine.objects.storages.len() as u32 - 1))
    }
}

/// Fails on flags that change what the elements mean.
fn plain(machine: &Machine, flags: &[Value]) -> Result<(), String> {
    match flags {
        [] | [Value::None] => Ok(()),
        &[Value::Dict(flags)] if machine.pairs(flags).is_empty() => Ok(()),
        _ => Err("its pickle has a tensor with flags (conjugate or negative bit): save it resolved".into()),
    }
}

fn tensor(
    machine: &Machine,
    storage: Storage,
    dtype: StoredType,
    offset: Value,
    size: Value,
    strides: Value,
) -> Result<Tensor, String> {
    let count = |value: Value| match value {
        Value::Int(count) => usize::try_from(count).ok(),
        _ => None,
    };
    let counts = |value: Value| match value {
        Value::Tuple(items) if machine.tuple(items).len() <= MAX_DIMS => {
            machine.tuple(items).iter().map(|&item| count(item)).collect::<Option<Vec<usize>>>()
        }
        _ => None,
    };
    match (count(offset), counts(size), counts(strides)) {
        (Some(offset), Some(shape), Some(strides)) if shape.len() == strides.len() => {
            Ok(Tensor { storage, dtype, offset, shape, strides })
        }
        _ => Err(format!(
            "its pickle has a tensor whose offset, size or strides are not counts of up to {MAX_DIMS} dimensions"
        )),
    }
}
