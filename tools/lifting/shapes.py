"""What is lifted into what: sizes of both networks, and where the small one's parts go in the large one."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch


class LiftError(ValueError):
    """A pair or a shape that cannot be lifted: one sentence that says what to change."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like decoder, in the words of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int

    @classmethod
    def from_json(cls, config: dict) -> "Shape":
        heads = config["num_attention_heads"]
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab_size=config["vocab_size"],
        )

    @property
    def group(self) -> int:
        """Query heads that share a key and value head."""
        return self.num_attention_heads // self.num_key_value_heads


LLAMA_3_8B = Shape(4096, 14336, 32, 32, 8, 128, 128256)


def spread(num_small: int, num_big: int) -> list[int]:
    """Layers of the large network that hold the small one's, first and last at the ends: 8 in 32 are 0, 4, 9, 13, 18, 22, 27, 31."""
    if num_small == 1:
        return [0]
    return [math.floor(i * (num_big - 1) / (num_small - 1) + 0.5) for i in range(num_small)]


def check_fits(small: Shape, big: Shape) -> None:
    """Whether dead parts come in cancelling pairs around the live ones."""
    for field in ("num_hidden_layers", "num_key_value_heads", "vocab_size", "intermediate_size"):
        if getattr(big, field) < getattr(small, field):
            raise LiftError(f"{field} is {getattr(big, field)}: it should be the small model's {getattr(small, field)} or more")
    for shape in (small, big):
        if shape.num_attention_heads % shape.num_key_value_heads:
            raise LiftError(
                f"num_key_value_heads is {shape.num_key_value_heads}: it should divide num_attention_heads, {shape.num_attention_heads}"
            )
    if big.hidden_size < small.hidden_size + 2:
        raise LiftError(
            f"hidden_size is {big.hidden_size}: it should be {small.hidden_size + 2} or more, for the stream of {small.hidden_size}, "
            "a constant channel and a dead one"
        )
    if big.head_dim % small.head_dim or (big.head_dim != small.head_dim and small.head_dim % 2):
        raise LiftError(f"head_dim is {big.head_dim}: it should be a multiple of the small model's {small.head_dim}")
    if big.group < small.group:
        raise LiftError(f"a K/V head serves {big.group} query heads: it should serve the small model's {small.group} or more")
    has_dead_groups = big.num_key_value_heads > small.num_key_value_heads or big.num_hidden_layers > small.num_hidden_layers
    if big.group % 2 and has_dead_groups or big.group != small.group and (small.group % 2 or big.group % 2):
        raise LiftError(
            f"a K/V head serves {big.group} query heads, {small.group} in the small model: both should be even, as dead heads cancel in pairs"
        )
    if big.intermediate_size != small.intermediate_size and (small.intermediate_size % 2 or big.intermediate_size % 2):
        raise LiftError(f"intermediate_size is {big.intermediate_size}: it and the small model's should be even, as dead neurons cancel in pairs")
    if small.intermediate_size % 2 and big.num_hidden_layers > small.num_hidden_layers:
        raise LiftError("the small model's intermediate_size is odd: additional layers need an even one, as dead neurons cancel in pairs")


@dataclass(frozen=True)
class Norms:
    """What makes every RMSNorm of the lifted network equal the small one's.

    The small stream x [h] becomes y = basis @ [x ; alpha] [H] with orthonormal columns, so that
    mean(y^2) + eps_big = (h / H) (mean(x^2) + (alpha^2 + H eps_big) / h): the norms agree up to the factor sqrt(h / H) if
    h eps_small = alpha^2 + H eps_big. By default each gets half of it, which gives Llama-3's 1e-5 for the demo pair at H = 4096.
    alpha is a bfloat16, and eps takes the rest.
    """

    alpha: float
    eps: float
    drafter_eps: float

    @classmethod
    def match(cls, hidden: int, big_hidden: int, eps: float, drafter_eps: float, eps_big: float | None) -> "Norms":
        """For a target and a drafter trained with `eps` and `drafter_eps`; `eps_big` is the lifted target's."""
        limit = hidden * eps / big_hidden
        eps_big = limit / 2 if eps_big is None else eps_big
        if not 0 < eps_big < limit:
            raise LiftError(f"--eps is {eps_big:g}: it should be between 0 and {limit:g}, to leave something for the constant channel")
        alpha = float(torch.tensor(math.sqrt(hidden * eps - big_hidden * eps_big)).to(torch.bfloat16))
        eps_big, drafter_eps_big = ((hidden * small_eps - alpha**2) / big_hidden for small_eps in (eps, drafter_eps))
        if eps_big <= 0:
            raise LiftError(f"--eps is too small: the constant channel, {alpha}, leaves nothing for it")
        if drafter_eps_big <= 0:
            raise LiftError(
                f"the drafter's rms_norm_eps is {drafter_eps:g}, the target's {eps:g}: --eps should be above "
                f"{hidden * (eps - drafter_eps) / big_hidden:g} to suit both"
            )
        return cls(alpha, eps_big, drafter_eps_big)


def read_config(folder: Path) -> dict:
    """The config.json of a Llama-like model that can be lifted."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LiftError(f"{path} cannot be read: {error}") from error
    if config.get("model_type") != "llama":
        raise LiftError(f"{path}: model_type is {config.get('model_type')}: only llama can be lifted")
    for field in ("attention_bias", "mlp_bias", "rope_scaling", "bias"):
        if config.get(field):
            raise LiftError(f"{path}: {field} is {config[field]}: only models without it can be lifted")
    return config


def shape_of(small: Shape, overrides: dict[str, int | None]) -> Shape:
    """Llama-3-8B's shape but for what `overrides` says, checked."""
    big = replace(LLAMA_3_8B, **{field: value for field, value in overrides.items() if value is not None})
    check_fits(small, big)
    return big
