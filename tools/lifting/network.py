"""Networks as streams of parts: from a folder, or made on the way."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifting.shapes import LiftError, Shape, read_config

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Network:
    """A small target in memory."""

    config: dict
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Network":
        """Weights as they are stored."""
        config = read_config(folder)
        path = folder / "model.safetensors"
        if not path.is_file():
            raise LiftError(f"{path} is missing: a small target has its weights in this one file")
        return cls(config, load_file(path, device=str(device)))

    @property
    def shape(self) -> Shape:
        return Shape.from_json(self.config)

    @property
    def head(self) -> Tensor:
        return self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """As `LiftedTarget.parts`."""
        yield {"model.embed_tokens.weight": self.tensors["model.embed_tokens.weight"]}
        for index in range(self.shape.num_hidden_layers):
            prefix = f"model.layers.{index}."
            yield {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        yield {"model.norm.weight": self.tensors["model.norm.weight"], "lm_head.weight": self.head}


class Parts(Protocol):
    """What a forward pass and a writer need of a target."""

    def parts(self) -> Iterator[dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Folder:
    """A target whose shards are its parts, as `write_parts` leaves it: read one after the other."""

    path: Path
    device: torch.device

    def parts(self) -> Iterator[dict[str, Tensor]]:
        index = json.loads((self.path / INDEX).read_text())
        for shard in sorted(set(index["weight_map"].values())):
            yield load_file(self.path / shard, device=str(self.device))


def layer_tensors(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_parts(folder: Path, parts: Iterator[dict[str, Tensor]], num_parts: int) -> int:
    """A shard a part, and their index; returns the bytes of all tensors. One part is in memory at a time."""
    weight_map, total_size = {}, 0
    for number, part in enumerate(parts, start=1):
        shard = f"model-{number:05}-of-{num_parts:05}.safetensors"
        part = {name: tensor.cpu().contiguous() for name, tensor in part.items()}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
        total_size += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total_size
