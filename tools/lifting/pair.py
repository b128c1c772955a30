"""A small pair made large: everything that target and drafter share is decided here."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lifting.drafter import LiftedDrafter, SmallDrafter
from lifting.forward import run_drafter, run_target
from lifting.frame import Frame
from lifting.network import Network
from lifting.noise import Fill, Noise
from lifting.shapes import LiftError, Norms, shape_of
from lifting.target import LiftedTarget

# Unused tokens stay SILENCE nats below what the used ones sum to, at the worst position that is seen here, and MARGIN times as far as
# that needs: rounding in bfloat16 takes some of it away again.
SILENCE, MARGIN = 60.0, 2.0
TEXTS, TOKENS, ROUNDS = 4, 96, 6


@dataclass
class SmallPair:
    """What is lifted."""

    target: Network
    drafter: SmallDrafter

    @classmethod
    def load(cls, target: Path, drafter: Path, device: torch.device) -> "SmallPair":
        network = Network.load(target, device)
        small = SmallDrafter.load(drafter, network.shape.num_hidden_layers, device)
        for field in ("hidden_size", "vocab_size"):
            if getattr(small.shape, field) != getattr(network.shape, field):
                raise LiftError(
                    f"{drafter}: {field} is {getattr(small.shape, field)}: it should be its target's, {getattr(network.shape, field)}"
                )
        return cls(network, small)

    @cached_property
    def silences(self) -> tuple[float, float]:
        """How negative unused tokens of target and drafter must be: weights on alpha / rms of the small stream before the final norm.

        The constant channel is small where the stream is large, so that counts. It is measured on texts that turn, round by round, from
        random tokens to what the target writes: every token is drawn again from what the target said of it.
        """
        device = self.drafter.drafter.d2t.device
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.target.shape.vocab_size, (TEXTS, TOKENS), generator=generator)
        worst_target = worst_drafter = 0.0
        for _ in range(ROUNDS):
            seen = run_target(self.target, self.target.config, tokens.to(device), self.drafter.taps)
            worst_target = max(worst_target, silence(seen.logits, seen.last, self.target.config["rms_norm_eps"]))
            for step in run_drafter(self.drafter.drafter, seen, 2):
                eps = self.drafter.config["rms_norm_eps"]
                worst_drafter = max(worst_drafter, silence(step.logits, step.output, eps))
            drawn = torch.multinomial(seen.logits[:, :-1].flatten(0, 1).softmax(-1).cpu(), 1, generator=generator)
            tokens[:, 1:] = drawn.view(TEXTS, TOKENS - 1)
        return worst_target, worst_drafter



@dataclass(frozen=True)
class LiftedPair:
    """What comes of it."""

    target: LiftedTarget
    drafter: LiftedDrafter


@dataclass(frozen=True)
class LiftOptions:
    """What to lift to; sizes that are None are Llama-3-8B's."""

    sizes: dict[str, int | None]
    draft_vocab_size: int = 32000
    eps: float | None = None
    seed: int = 0
    fill: Fill = Fill.LIFT
    dtype: torch.dtype = torch.bfloat16


def lift(small: SmallPair, options: LiftOptions, device: torch.device) -> LiftedPair:
    """Decides everything; tensors are made when the lifted networks are asked for them."""
    shape = shape_of(small.target.shape, options.sizes)
    hidden, config = small.target.shape.hidden_size, small.target.config
    norms = Norms.match(
        hidden, shape.hidden_size, config["rms_norm_eps"], small.drafter.config["rms_norm_eps"], options.eps
    )
    noise = Noise(options.seed, options.fill, device)
    generator = noise.generator("frame") if options.fill is Fill.LIFT else None
    frame = Frame(shape.hidden_size, hidden, generator, device)
    # The lifted channel behind the norm is alpha / (scale rms).
    target_silence, draft_silence = (silence * frame.scale / norms.alpha for silence in small.silences)
    target = LiftedTarget(small.target, shape, norms, frame, noise, target_silence, options.dtype)
    drafter = LiftedDrafter(
        small.drafter, shape, target.places, norms, frame, noise, options.draft_vocab_size, draft_silence, options.dtype
    )
    return LiftedPair(target, drafter)


def silence(logits: Tensor, last: Tensor, eps: float) -> float:
    """The largest weight that any position of [texts, tokens] asks for; `last` is the stream before the final norm."""
    rms = (last.square().mean(-1) + eps).sqrt()
    return MARGIN * float(((SILENCE - logits.logsumexp(-1)) * rms).max())
