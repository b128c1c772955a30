"""Make tests/golden/torch/: small files that torch.save writes, each with its tensors as safetensors beside it.

    python tools/make_torch_files.py [--out tests/golden/torch]

The same state dict in both formats of torch.save and several pickle protocols, the layouts of folders that are read, and
files that must be refused. The file format is described in tests/golden/README.md.
"""

import argparse
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

# How the state dict is saved: name of the file, arguments of torch.save.
VARIANTS = {
    "zip_protocol2": dict(),
    "zip_protocol4": dict(pickle_protocol=4),
    "zip_protocol5": dict(pickle_protocol=5),
    "legacy_protocol2": dict(_use_new_zipfile_serialization=False),
    "legacy_protocol5": dict(_use_new_zipfile_serialization=False, pickle_protocol=5),
}

TYPES = dict(
    bf16=torch.bfloat16,
    f16=torch.float16,
    f32=torch.float32,
    f64=torch.float64,
    i64=torch.int64,
    i32=torch.int32,
    i16=torch.int16,
    i8=torch.int8,
    u8=torch.uint8,
)


def state_dict() -> OrderedDict:
    """Every type, and every way in which a tensor views its storage. An OrderedDict with attributes, as modules give it."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    tensors = torch.nn.Linear(3, 2).state_dict()  # brings `_metadata`
    tensors["weight"].copy_(draw(2, 3))
    tensors["bias"].copy_(draw(2))
    for name, dtype in TYPES.items():
        tensors[f"type.{name}"] = (draw(3, 4) * 20).abs().to(dtype)
    tensors["type.bool"] = draw(7) > 0
    tensors["untyped.f8_e4m3"] = draw(5).to(torch.float8_e4m3fn)
    tensors["untyped.u16"] = torch.tensor([0, 1, 65535], dtype=torch.uint16)
    tensors["special_values"] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45])
    tensors["parameter"] = torch.nn.Parameter(draw(2, 2))
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros(0, 3)

    storage = draw(60).bfloat16()
    tensors["shared.whole"] = storage
    tensors["shared.matrix"] = storage.view(6, 10)
    tensors["shared.tail"] = storage[50:]
    tensors["shared.transposed"] = storage.view(6, 10).t()
    tensors["shared.column"] = storage.view(6, 10)[:, 3]
    tensors["shared.box"] = storage.view(6, 10)[1:5:2, 2:9:3]
    tensors["shared.permuted"] = storage.view(3, 4, 5).permute(2, 0, 1)
    tensors["shared.column_of_one_row"] = storage.view(6, 10)[2:3, :4].t()

    # What holds no tensor is passed over.
    tensors["step"] = 1234
    tensors["notes"] = {"rate": 0.5, "name": "tiny", "dims": [1, (2, 3)], "big": 2**70, "none": None, "yes": True}
    return tensors


def save_twin(path: Path, tensors: dict) -> None:
    """The tensors of a state dict, row-major, as safetensors."""
    kept = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    save_file({name: value.detach().clone().contiguous() for name, value in kept.items()}, path)


def make_sharded(folder: Path) -> None:
    """Two shards and their index, as transformers wrote them."""
    folder.mkdir()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    shards = [
        OrderedDict({"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}),
        OrderedDict({"b.weight": torch.arange(4).bfloat16()}),
    ]
    for name, shard in zip(names, shards):
        torch.save(shard, folder / name)
    weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    index = dict(metadata=dict(total_size=40), weight_map=weight_map)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    save_twin(folder / "twin.safetensors", {**shards[0], **shards[1]})


def make_medusa(folder: Path) -> None:
    """Two heads, as the authors of Medusa save them."""
    folder.mkdir()
    hidden, vocab, heads = 8, 12, 2
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator).half()
    tensors = OrderedDict()
    for head in range(heads):
        tensors[f"{head}.0.linear.weight"] = draw(hidden, hidden)
        tensors[f"{head}.0.linear.bias"] = draw(hidden)
        tensors[f"{head}.1.weight"] = draw(vocab, hidden)
    torch.save(tensors, folder / "medusa_lm_head.pt")
    config = dict(medusa_num_heads=heads, medusa_num_layers=1, base_model_name_or_path="lmsys/vicuna-7b-v1.3")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_twin(folder / "twin.safetensors", tensors)


class Shifted(torch.Tensor):
    """A subclass: its pickle asks for the class."""


def make_refused(folder: Path) -> None:
    """Files that are sound, and hold what is no plain state dict."""
    folder.mkdir()
    weight = torch.arange(4.0)
    torch.save(torch.nn.Linear(2, 2), folder / "whole_module.bin")
    torch.save({"model": {"w": weight}, "step": 3}, folder / "nested.bin")
    torch.save([weight], folder / "list.bin")
    torch.save({"w": weight.expand(1000, 4)}, folder / "expanded.bin")
    torch.save({"w": weight.to_sparse()}, folder / "sparse.bin")
    torch.save({"w": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)}, folder / "quantised.bin")
    torch.save({"w": torch.complex(weight, weight)}, folder / "complex.bin")
    torch.save({"w": weight.as_subclass(Shifted)}, folder / "subclass.bin")
    torch.save({"w": weight, "folder": Path("x")}, folder / "path.bin")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "script.bin")


def make_integers(folder: Path) -> None:
    """The same whole numbers in every form in which a draft vocabulary is saved, and what is none."""
    folder.mkdir()
    numbers = [i * i % 4099 for i in range(1200)] + [255, 256, 65535, 65536]
    tensor = torch.tensor(numbers)
    legacy = dict(_use_new_zipfile_serialization=False)
    torch.save(numbers, folder / "list.pt")
    torch.save(numbers, folder / "list_legacy.pt", **legacy)
    torch.save(tensor, folder / "tensor_i64.pt")
    torch.save(tensor.int(), folder / "tensor_i32.pt")
    torch.save(tensor, folder / "tensor_legacy.pt", **legacy)
    torch.save(torch.stack([tensor, tensor + 1], dim=1)[:, 0], folder / "tensor_strided.pt")
    torch.save(torch.arange(4.0), folder / "floats.pt")
    torch.save(torch.arange(4).view(2, 2), folder / "matrix.pt")
    torch.save([1, 2.5, 3], folder / "mixed_list.pt")
    torch.save({"ids": tensor}, folder / "state_dict.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden/torch"))
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tensors = state_dict()
    for name, arguments in VARIANTS.items():
        # The older format saves untyped storages and cannot load them.
        legacy = "_use_new_zipfile_serialization" in arguments
        saved = OrderedDict((k, v) for k, v in tensors.items() if not (legacy and k.startswith("untyped.")))
        saved._metadata = tensors._metadata
        torch.save(saved, out / f"{name}.bin", **arguments)
        for key, value in torch.load(out / f"{name}.bin", weights_only=False).items():
            if isinstance(value, torch.Tensor):
                assert value.stride() == tensors[key].stride(), f"{name}: {key} was not saved as a view"
    save_twin(out / "twin.safetensors", tensors)
    make_sharded(out / "sharded")
    make_medusa(out / "medusa")
    make_refused(out / "refused")
    make_integers(out / "integers")


if __name__ == "__main__":
    main()
