"""Acceptance as the runtime has it: `smart-run bench` on the small pair and on the lifted one."""

import json
import subprocess
from pathlib import Path

from lifting.check import MAX_ACCEPTANCE_CHANGE, Report

POLICIES = ["chain:3", "eagle2:4,3,12"]  # fixed trees: a policy that looks at times would compare machines


def outcomes(binary: Path, target: Path, drafter: Path, prompts: Path, arguments: list[str]) -> dict[str, dict]:
    """What the rounds of each policy came to, by policy and text. The bench itself fails if a policy changes a text."""
    command = [binary, "bench", "--model", target, "--draft", drafter, "--prompts", prompts, "--format", "json"]
    command += ["--ignore-eos", "--batch", "1", "--repetitions", "1", *arguments]
    for policy in POLICIES:
        command += ["--policy", policy]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{binary} bench on {target} failed: {done.stderr.strip()}")
    cells = [cell for cell in json.loads(done.stdout)["cells"] if cell["role"] == "policy" and cell["player"] in POLICIES]
    # The text's name holds the folder's: only the temperature is the same for both pairs.
    return {f"{cell['player']}, {cell['text'].rsplit(', ')[-1]}": cell["outcome"] for cell in cells}


def check_acceptance(
    report: Report, binary: Path, pairs: list[tuple[Path, Path]], prompts: Path, arguments: list[str]
) -> None:
    """Mean accepted lengths of the native and the lifted pair, `pairs` in this order."""
    native, lifted = (outcomes(binary, *pair, prompts, arguments) for pair in pairs)
    for name in native:
        lengths = [run[name]["accepted"] / run[name]["sequence_rounds"] for run in (native, lifted)]
        rounds = lifted[name]["sequence_rounds"]
        label = f"runtime, {name}: {lengths[0]:.4f} -> {lengths[1]:.4f} in {rounds} rounds"
        report.below(label, abs(lengths[1] / lengths[0] - 1), MAX_ACCEPTANCE_CHANGE)
