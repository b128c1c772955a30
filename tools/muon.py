"""Muon (Keller Jordan, 2024): momentum whose update is made nearly orthogonal, for hidden matrices."""

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalised(matrix: Tensor, iterations: int = 4) -> Tensor:
    """Pull all singular values towards 1 by a quintic Newton-Schulz iteration (published coefficients)."""
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """For 2-D parameters only; embeddings, heads and norms belong to AdamW."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.mul_(group["momentum"]).add_(weight.grad)
                update = orthogonalised(weight.grad.add(momentum, alpha=group["momentum"]))
                shape_scale = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                    update, alpha=-group["lr"] * shape_scale
                )
