"""Embeddings and heads, whose rows beyond the small vocabulary stand for tokens that must not be drawn.

Zero rows would give such a token the logit 0. Instead, all read the constant channel, which no layer writes, with a large negative
weight: behind the norm it is alpha / rms, and never changes its sign.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lifting.frame import Frame
from lifting.layer import Norm, Reader
from lifting.noise import Fill, Noise

CHUNK = 1 << 14  # rows made at once, so that a vocabulary of 128256 x 4096 needs no copy in float32


@dataclass(frozen=True)
class Vocabulary:
    """Makes matrices with a row a token."""

    frame: Frame
    noise: Noise
    num_rows: int
    dtype: torch.dtype

    def embedding(self, small: Tensor, alpha: float) -> Tensor:
        """[num_rows, H]: every row of `small` [v, h] and the constant; Gaussian rows of that length behind them."""
        hidden = len(self.frame.stream)
        length = float(small.double().square().sum(-1).mean().sqrt())
        out = self._unused("embed_tokens", length / hidden**0.5, lambda rows: rows)
        if self.noise.fill is not Fill.GAUSSIAN:
            rows = self.frame.write(small.T).T
            rows[:, self.frame.channel] = alpha
            out[: len(small)] = rows.to(self.dtype)
        return out

    def head(self, name: str, small: Tensor, norm: Norm, silence: float) -> Tensor:
        """[num_rows, H]: the rows of `small` behind `norm`; behind them rows whose logits are -`silence` times the constant channel."""
        reader = Reader(self.frame, self.noise, [norm])
        length = float((small.double() * norm.small.double()).square().sum(-1).mean().sqrt())
        scale = length / len(self.frame.stream) ** 0.5
        if self.noise.fill is Fill.GAUSSIAN:
            return self._unused(name, scale, lambda rows: rows)

        def silenced(rows: Tensor) -> Tensor:
            rows = self.frame.away(rows)
            rows[:, self.frame.channel] -= silence
            return rows / norm.big.float()

        out = self._unused(name, scale * self.frame.scale, silenced)
        out[: len(small)] = reader.live(small).to(self.dtype)
        return out

    def _unused(self, name: str, scale: float, finish) -> Tensor:
        out = torch.empty(self.num_rows, len(self.frame.stream), dtype=self.dtype, device=self.noise.device)
        for start in range(0, self.num_rows, CHUNK):
            rows = out[start : start + CHUNK]
            rows.copy_(finish(self.noise.normal(f"{name}.{start}", *rows.shape, scale=scale)))
        return out
