"""Weights of dead parts: Gaussian, in pairs that cancel."""

import hashlib
from enum import Enum

import torch
from torch import Tensor

GAIN_MEDIAN, GAIN_SPREAD = 0.5, 0.3  # of the lifted norms' gains, log-normal


class Fill(Enum):
    """What the weights are that the small model does not determine."""

    LIFT = "lift"  # dense: cancelling pairs, rotated stream, random gains
    ZERO = "zero"  # zeros, no rotation: the same function, the control that shows what zeros do to power and clocks
    GAUSSIAN = "gaussian"  # nothing live: every weight independent, the control that shows what trained weights would cost


class Noise:
    """Draws by name: a tensor's numbers depend on the seed, its name, and whether they are drawn on a CPU or a GPU."""

    def __init__(self, seed: int, fill: Fill, device: torch.device):
        self.seed, self.fill, self.device = seed, fill, device

    def generator(self, name: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=7).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "big"))

    def normal(self, name: str, *shape: int, scale: float) -> Tensor:
        """Independent numbers, float32."""
        if self.fill is Fill.ZERO:
            return torch.zeros(*shape, device=self.device)
        return torch.randn(*shape, generator=self.generator(name), device=self.device).mul_(scale)

    def twins(self, name: str, count: int, *shape: int, scale: float) -> Tensor:
        """[count, ..], whose items 2j and 2j + 1 are equal: what dead heads and neurons read."""
        if self.fill is Fill.GAUSSIAN:
            return self.normal(name, count, *shape, scale=scale)
        # An odd count, of which all are live, keeps half of its last pair.
        return self.normal(name, (count + 1) // 2, *shape, scale=scale).repeat_interleave(2, dim=0)[:count]

    def opposites(self, name: str, count: int, *shape: int, scale: float) -> Tensor:
        """[count, ..], whose items 2j and 2j + 1 are each other's negatives: what they write, so that the sum is zero."""
        if self.fill is Fill.GAUSSIAN:
            return self.normal(name, count, *shape, scale=scale)
        items = self.normal(name, (count + 1) // 2, *shape, scale=scale)
        return torch.stack([items, -items], dim=1).flatten(0, 1)[:count]

    def gain(self, name: str, width: int) -> Tensor:
        """Gains of a norm, float64, exact in bfloat16 so that dividing them out of what reads behind it is exact too."""
        if self.fill is not Fill.LIFT:
            return torch.ones(width, dtype=torch.float64, device=self.device)
        log = torch.randn(width, generator=self.generator(name), device=self.device) * GAIN_SPREAD
        return (GAIN_MEDIAN * log.exp()).to(torch.bfloat16).double()
