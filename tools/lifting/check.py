"""The gates that a lifted pair must pass before anything is measured with it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from eagle3 import Drafter
from lifting.forward import Pass, run_drafter, run_target
from lifting.network import Parts
from lifting.pair import SmallPair
from lifting.shapes import LiftError

MAX_KL, MIN_AGREEMENT, MAX_UNUSED, MAX_ZEROS = 1e-3, 0.995, 1e-4, 1e-6
MAX_ACCEPTANCE_CHANGE = 0.02
DRAFT_STEPS = 3


@dataclass
class Report:
    """Gates by name: what was measured, and whether that is good enough."""

    gates: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def below(self, name: str, value: float, limit: float) -> None:
        """A NaN is not below."""
        self.gates[name] = f"{value:.3g} (limit {limit:g})", value < limit

    def above(self, name: str, value: float, limit: float) -> None:
        self.gates[name] = f"{100 * value:.2f} % (limit {100 * limit:g} %)", value > limit

    @property
    def failed(self) -> list[str]:
        return [name for name, (_, passed) in self.gates.items() if not passed]

    def text(self) -> str:
        return "\n".join(f"{'ok    ' if ok else 'FAILED'}  {name:48} {value}" for name, (value, ok) in self.gates.items())


@dataclass(frozen=True)
class Lifted:
    """A lifted pair to check: made on the way or from a folder."""

    target: Parts
    target_config: dict
    drafter: Drafter
    taps: list[int]


class Counting:
    """Parts that count their zero weights as they pass."""

    def __init__(self, parts: Parts):
        self.source, self.zeros, self.weights = parts, 0, 0

    def parts(self):
        for part in self.source.parts():
            for tensor in part.values():
                self.count(tensor)
            yield part

    def count(self, tensor: Tensor) -> None:
        self.zeros += tensor.numel() - int(torch.count_nonzero(tensor))
        self.weights += tensor.numel()


def native_pass(small: SmallPair, tokens: Tensor) -> Pass:
    """What the small target makes of texts [texts, tokens]."""
    return run_target(small.target, small.target.config, tokens, small.drafter.taps)


def check(small: SmallPair, lifted: Lifted, tokens: Tensor, native: Pass) -> Report:
    """All gates that plain PyTorch can see, over texts [texts, tokens]: weights as they are stored, arithmetic in float32. `native` is
    what the small target makes of them."""
    report = Report()
    counting = Counting(lifted.target)
    large = run_target(counting, lifted.target_config, tokens, lifted.taps)
    used = small.target.shape.vocab_size
    compare(report, "target", native.logits, large.logits, used)
    check_drafter(report, small.drafter.drafter, native, lifted.drafter, large)
    for parameter in lifted.drafter.parameters():
        counting.count(parameter)
    report.below("zero weights", counting.zeros / counting.weights, MAX_ZEROS)
    return report


def compare(report: Report, name: str, native: Tensor, large: Tensor, used: int) -> None:
    """Distributions of the same tokens; `large` has more of them, from `used` on, that should never be drawn."""
    divergence, agreement, unused, count = 0.0, 0, 0.0, 0
    for a, b in zip(native, large):  # a text at a time: 128256 logits a position add up
        a, b = a.log_softmax(-1), b.log_softmax(-1)
        divergence += float((a.exp() * (a - b[:, :used])).sum())
        agreement += int((a.argmax(-1) == b.argmax(-1)).sum())
        unused = max([unused, float(b[:, used:].exp().sum(-1).max())]) if b.size(-1) > used else unused
        count += len(a)
    report.below(f"{name}: KL(small || lifted), nats", divergence / count, MAX_KL)
    report.above(f"{name}: same likeliest token", agreement / count, MIN_AGREEMENT)
    report.below(f"{name}: probability of unused tokens, at most", unused, MAX_UNUSED)


def check_drafter(report: Report, native: Drafter, target: Pass, large: Drafter, large_target: Pass) -> None:
    """Draft distributions and how often the first choice is the target's, step by step, each with its own target."""
    steps = zip(run_drafter(native, target, DRAFT_STEPS), run_drafter(large, large_target, DRAFT_STEPS))
    used = native.config.draft_vocab_size
    for step, (a, b) in enumerate(steps, start=1):
        compare(report, f"drafter, step {step}", a.logits, b.logits, used)
        hits = [hit_rate(d, s.logits, t.logits[:, step:]) for d, s, t in ((native, a, target), (large, b, large_target))]
        report.below(f"drafter, step {step}: change of hits", abs(hits[1] / hits[0] - 1), MAX_ACCEPTANCE_CHANGE)


def hit_rate(drafter: Drafter, drafted: Tensor, target: Tensor) -> float:
    """How often the drafter's first choice is its target's."""
    return float((drafter.target_ids(drafted.argmax(-1)) == target.argmax(-1)).float().mean())


def read_prompts(path: Path, tokenizer: Path, num_texts: int, length: int) -> Tensor:
    """The first `num_texts` prompts of a JSON Lines file that have `length` tokens, cut to that."""
    texts = []
    encode = None
    for line in path.read_text().splitlines():
        item = json.loads(line)
        if "prompt_token_ids" in item:
            ids = item["prompt_token_ids"]
        else:
            if encode is None:
                from tokenizers import Tokenizer  # not where prompts come as ids

                encode = Tokenizer.from_file(str(tokenizer)).encode
            ids = encode(item["prompt"]).ids
        if len(ids) >= length and len(texts) < num_texts:
            texts.append(ids[:length])
    if len(texts) < num_texts:
        raise LiftError(f"{path}: {len(texts)} prompts have {length} tokens or more: --texts should not be above that")
    return torch.tensor(texts)
