"""The lifted EAGLE-3 drafter.

It reads the target's streams where they are, raw: `fc` takes both ends through the target's frame and carries the constant channel
from the taps to the feature, where the drafter's norms need it as the target's do. A drafted token's feature is the drafter's own
output, whose residual has kept it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from eagle3 import Drafter, DrafterConfig, Variant, load_drafter, tapped_layers
from lifting.frame import Frame
from lifting.layer import LayerLift, Norm
from lifting.network import layer_tensors
from lifting.noise import Fill, Noise
from lifting.shapes import LiftError, Norms, Shape, check_fits, read_config
from lifting.vocabulary import Vocabulary

ATTENTION_NORMS = ["input_layernorm", "hidden_norm"]  # of the embedding, of the feature
# Of the constant that a feature takes from each tap: they add up to one, exactly in any float type.
CARRIED = (0.25, 0.25, 0.5)
TAPS = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True)
class SmallDrafter:
    """The drafter of a small target."""

    config: dict
    drafter: Drafter
    taps: list[int]  # layers of the small target whose input it reads

    @classmethod
    def load(cls, folder: Path, num_target_layers: int, device: torch.device) -> "SmallDrafter":
        config = read_config(folder)
        variant = Variant.from_json(config)
        if variant != Variant():
            raise LiftError(f"{folder}: only the authors' own kind of EAGLE-3 drafter can be lifted, not {variant}")
        try:
            drafter = load_drafter(folder).to(device)
        except (OSError, KeyError) as error:
            raise LiftError(f"{folder}: model.safetensors is not an EAGLE-3 drafter with a head and d2t of its own: {error}") from error
        taps = tapped_inputs(config, num_target_layers)
        if len(taps) != 3 or not all(0 < tap < num_target_layers for tap in taps):
            raise LiftError(f"{folder}: it taps layers {taps} of its target: three from 1 to {num_target_layers - 1} can be lifted")
        return cls(config, drafter, taps)

    @property
    def shape(self) -> Shape:
        return Shape.from_json(vars(self.drafter.config) | {"num_hidden_layers": 1})


def tapped_inputs(config: dict, num_target_layers: int) -> list[int]:
    """Layers whose input a drafter reads. A list that begins with 0 or 1 names outputs, as in SGLang."""
    taps = (config.get("eagle_config") or {}).get(TAPS) or config.get(TAPS)
    if taps is None:
        return list(tapped_layers(num_target_layers))
    return [tap + 1 for tap in taps] if taps[0] <= 1 else list(taps)


class LiftedDrafter:
    """The drafter for a `LiftedTarget` with the same frame, whose small layer t is layer `places[t]`."""

    def __init__(
        self,
        small: SmallDrafter,
        target: Shape,
        places: list[int],
        norms: Norms,
        frame: Frame,
        noise: Noise,
        draft_vocab_size: int,
        silence: float,
        dtype: torch.dtype,
    ):
        self.small, self.frame, self.noise, self.norms = small, frame, noise, norms
        self.big = replace(target, num_hidden_layers=1)
        check_fits(small.shape, self.big)
        # The input of the layer that holds small layer t has seen exactly the small layers before t.
        self.taps = [places[tap] for tap in small.taps]
        self.kept = kept_tokens(small, target.vocab_size, draft_vocab_size)
        self.silence, self.dtype = silence, dtype

    def config(self, max_position_embeddings: int | None = None) -> dict:
        """The small drafter's config.json with the large sizes and the layers to tap."""
        # As outputs where the list would begin with layer 1: see `tapped_inputs`.
        listed = self.taps if self.taps[0] > 1 else [tap - 1 for tap in self.taps]
        changes = {
            **vars(self.big),
            "draft_vocab_size": len(self.kept),
            "rms_norm_eps": self.norms.drafter_eps,
            "rope_theta": self.small.drafter.config.rope_theta,
            "eagle_config": {TAPS: listed},
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }
        if max_position_embeddings is not None:
            changes["max_position_embeddings"] = max_position_embeddings
        return {key: value for key, value in (self.small.config | changes).items() if key != TAPS}

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint, floats in `dtype`."""
        small = dict(self.small.drafter.named_parameters())
        lift = LayerLift(self.small.shape, self.big, self.frame, self.noise)
        midlayer = lift.lift("midlayer", layer_tensors(small, "midlayer."), True, ATTENTION_NORMS)
        tensors = {f"midlayer.{name}": tensor.to(self.dtype) for name, tensor in midlayer.items()}
        tensors["fc.weight"] = self._fc(small["fc.weight"]).to(self.dtype)
        norm = Norm(small["norm.weight"], self.noise.gain("drafter.norm", self.big.hidden_size))
        tensors["norm.weight"] = norm.big.to(self.dtype)
        vocabulary = Vocabulary(self.frame, self.noise, len(self.kept), self.dtype)
        tensors["lm_head.weight"] = vocabulary.head("drafter.lm_head", small["lm_head.weight"], norm, self.silence)
        kept = self.kept.to(self.noise.device)
        tensors["d2t"] = kept - torch.arange(len(kept), device=kept.device)
        tensors["t2d"] = torch.zeros(self.big.vocab_size, dtype=torch.bool, device=kept.device)
        tensors["t2d"][kept] = True
        return tensors

    def _fc(self, small: Tensor) -> Tensor:
        hidden = self.big.hidden_size
        if self.noise.fill is Fill.GAUSSIAN:
            scale = float(small.double().square().sum().sqrt()) / (small.size(1) * hidden) ** 0.5
            return self.noise.normal("fc", hidden, 3 * hidden, scale=scale)
        blocks = [self.frame.write(block) @ self.frame.stream.T for block in small.chunk(3, dim=-1)]
        for block, share in zip(blocks, CARRIED):
            block[self.frame.channel, self.frame.channel] = share
        return torch.cat(blocks, dim=-1).float()


def kept_tokens(small: SmallDrafter, vocab_size: int, draft_vocab_size: int) -> Tensor:
    """Target tokens that the lifted drafter can name, ascending: the small one's, and unused ones spread over the rest."""
    drafter = small.drafter
    kept = drafter.target_ids(torch.arange(drafter.config.draft_vocab_size, device=drafter.d2t.device)).cpu()
    spare, unused = draft_vocab_size - len(kept), vocab_size - drafter.config.vocab_size
    if not 0 <= spare <= unused:
        raise LiftError(f"--draft-vocab is {draft_vocab_size}: it should be from {len(kept)} to {len(kept) + unused}")
    rest = drafter.config.vocab_size + torch.arange(spare) * unused // max(spare, 1)
    return torch.cat([kept, rest])


def load_lifted(config: dict, tensors: dict[str, Tensor]) -> Drafter:
    """A drafter of `config` with `tensors`, in float32; nothing is initialised on the way."""
    with torch.device("meta"):
        drafter = Drafter(DrafterConfig.from_json(config)).requires_grad_(False)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    drafter.load_state_dict(state, assign=True)
    return drafter.requires_grad_(False)
