"""Lifted pairs on disk: ordinary Hugging Face folders."""

import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lifting.check import Lifted
from lifting.drafter import load_lifted, tapped_inputs
from lifting.network import Folder, write_parts
from lifting.pair import LiftedPair
from lifting.shapes import LiftError

# What a target has beside weights and config.json; the lifted one speaks the same language.
COPIED = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]


def make(pair: LiftedPair, out: Path, small_target: Path, context: int | None = None) -> None:
    """Writes `out`/target, a shard a layer, and `out`/drafter, one file. The configs come last: a folder without one is not whole."""
    for name in ("target", "drafter"):
        (out / name).mkdir(parents=True, exist_ok=True)
        if any((out / name).iterdir()):
            raise LiftError(f"{out / name} is not empty: --out should be a new folder")
    start = time.perf_counter()
    total = write_parts(out / "target", pair.target.parts(), pair.target.num_parts)
    for name in COPIED:
        if (small_target / name).is_file():
            shutil.copyfile(small_target / name, out / "target" / name)
    write_json(out / "target/config.json", pair.target.config(context))
    print(f"target: {total / 1e9:.2f} GB in {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in pair.drafter.tensors().items()}
    save_file(tensors, out / "drafter/model.safetensors", metadata={"format": "pt"})
    write_json(out / "drafter/config.json", pair.drafter.config(context))
    total = sum(tensor.nbytes for tensor in tensors.values())
    print(f"drafter: {total / 1e9:.2f} GB in {time.perf_counter() - start:.1f} s", flush=True)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def in_memory(pair: LiftedPair) -> Lifted:
    """A pair to check that no disk has seen: the target's parts are made as the check reads them."""
    drafter = load_lifted(pair.drafter.config(), pair.drafter.tensors())
    return Lifted(pair.target, pair.target.config(), drafter, pair.drafter.taps)


def from_folder(folder: Path, device: torch.device) -> Lifted:
    """A pair that `make` wrote; the layers to tap are those that its config.json names."""
    try:
        config, drafter_config = (json.loads((folder / name / "config.json").read_text()) for name in ("target", "drafter"))
        tensors = load_file(folder / "drafter/model.safetensors", device=str(device))
    except (OSError, ValueError) as error:
        raise LiftError(f"{folder} is not what `make` writes: {error}") from error
    taps = tapped_inputs(drafter_config, config["num_hidden_layers"])
    return Lifted(Folder(folder / "target", device), config, load_lifted(drafter_config, tensors), taps)
