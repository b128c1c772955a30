"""Acceptance as the runtime has it: `smart-run generate` with the small pair and with the lifted one, on the same prompts."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lifting.check import MAX_ACCEPTANCE_CHANGE, Report
from lifting.shapes import LiftError


@dataclass(frozen=True)
class Runs:
    """What to generate. The policy's trees must not depend on times: these differ between the pairs."""

    binary: Path
    prompts: list[str]
    policies: list[str]
    temperatures: list[float]
    new_tokens: int
    dtype: str  # auto, bf16, f16 or f32


def read_texts(path: Path) -> list[str]:
    """The prompts of a JSON Lines file."""
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


def check_acceptance(
    report: Report, runs: Runs, native: tuple[Path, Path], lifted: tuple[Path, Path], limit: float = MAX_ACCEPTANCE_CHANGE
) -> None:
    """Mean accepted lengths over all rounds of all prompts, by policy and temperature; pairs are (target, drafter)."""
    for policy in runs.policies:
        for temperature in runs.temperatures:
            small, large = (generate(runs, *pair, policy, temperature) for pair in (native, lifted))
            lengths = [accepted(answers) for answers in (small, large)]
            name = f"runtime, {runs.dtype}, {policy}, T = {temperature:g}: accepted {lengths[0]:.4f} -> {lengths[1]:.4f}"
            report.below(name, abs(lengths[1] / lengths[0] - 1), limit)
            # Where a likeliest token was a near tie the texts part, and then accept differently: the others tell the drafters alone.
            same = [(a, b) for a, b in zip(small, large) if a["token_ids"] == b["token_ids"]]
            lengths = [accepted(answers) for answers in zip(*same)]
            told = f"; there {lengths[0]:.4f} -> {lengths[1]:.4f}" if same else ""
            rounds = sum(answer["stats"]["rounds"] for answer in large)
            print(f"{name} over {rounds} rounds; {len(same)} of {len(small)} texts are the same{told}", flush=True)


def accepted(answers: Sequence[dict]) -> float:
    """Accepted tokens a round."""
    rounds = [answer["stats"]["rounds"] for answer in answers]
    return sum(n * answer["stats"]["mean_accepted_len"] for n, answer in zip(rounds, answers)) / sum(rounds)


def generate(runs: Runs, target: Path, drafter: Path, policy: str, temperature: float) -> list[dict]:
    """An answer a prompt; the seed of a prompt is its number."""
    answers = []
    for number, prompt in enumerate(runs.prompts):
        command = [runs.binary, "generate", "--model", target, "--draft", drafter, "--prompt", prompt, "--seed", number]
        command += ["--policy", policy, "--temperature", temperature, "--max-new-tokens", runs.new_tokens]
        command += ["--dtype", runs.dtype, "--ignore-eos", "--format", "json"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            raise LiftError(f"{runs.binary} generate failed on {target}: {done.stderr.strip()}")
        answers.append(json.loads(done.stdout))
    return answers
