"""The loop both demo models are trained with: warm-up, plateau, linear decay over the last 60 %."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from muon import Muon

DECAY_SHARE = 0.6
FINAL_RATE = 0.02  # of the plateau's


@dataclass
class Budget:
    """How long to train: wall time, or a number of steps if given (then a machine repeats itself)."""

    minutes: float
    steps: int | None = None
    started: float = field(default_factory=time.monotonic)

    def used(self, step: int) -> float:
        """The share of the budget that is gone, from 0 to 1."""
        if self.steps is not None:
            return step / self.steps
        return (time.monotonic() - self.started) / (60 * self.minutes)


def optimizers(
    model: nn.Module, is_hidden: Callable[[str], bool], muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices whose name `is_hidden`, AdamW for embeddings, heads and norms."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    hidden = [weight for name, weight in trained if weight.dim() == 2 and is_hidden(name)]
    others = [weight for name, weight in trained if weight.dim() != 2 or not is_hidden(name)]
    return [
        Muon(hidden, lr=muon_rate),
        torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: nn.Module,
    steppers: list[torch.optim.Optimizer],
    next_loss: Callable[[], Tensor],
    budget: Budget,
    warmup: int,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Minimise `next_loss` (a fresh batch each call) until the budget is spent; `report` hears of steps."""
    groups = [(group, group["lr"]) for stepper in steppers for group in stepper.param_groups]
    step = 0
    while (used := budget.used(step)) < 1.0:
        scale = min(1.0, (step + 1) / warmup) * min(1.0, (1.0 - used) / DECAY_SHARE + FINAL_RATE)
        for group, rate in groups:
            group["lr"] = rate * scale
        model.zero_grad(set_to_none=True)
        loss = next_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        report(step, loss.item())
        step += 1


def add_arguments(parser: argparse.ArgumentParser, minutes: float) -> None:
    """The options of both training scripts."""
    parser.add_argument(
        "--minutes",
        type=float,
        default=minutes,
        help=f"length of the run (default {minutes:g}, enough on 2 CPU cores)",
    )
    parser.add_argument(
        "--steps", type=int, help="length of the run in steps instead: repeatable to the bit on one machine"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def set_up(args: argparse.Namespace) -> Budget:
    """Apply the options of `add_arguments`; the clock of the budget starts here."""
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    return Budget(args.minutes, args.steps)
