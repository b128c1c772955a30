"""Whether the lifted weights cost what independent Gaussian ones of the same shapes cost, in time, power and clocks, with a lift among
zeros as the control that should differ. For a machine with an NVIDIA GPU; without one only the times are there.

Three pairs, in turn, several times over: a drift of the machine hits all alike.
"""

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from lifting.noise import Fill

MAX_CHANGE = 0.01
POLICIES = ["plain", "eagle2:10,5,60"]  # one row a pass, and sixty
PROMPT = "def read_lines(path):\n"
QUERY = ["nvidia-smi", "--query-gpu=power.draw,clocks.sm,clocks.mem", "--format=csv,noheader,nounits", "--loop-ms=50"]


@dataclass
class Samples:
    """What was measured of one fill under one policy."""

    step_ms: list[float] = field(default_factory=list)  # a run each: time of a target pass
    watts: list[float] = field(default_factory=list)
    sm_mhz: list[float] = field(default_factory=list)
    mem_mhz: list[float] = field(default_factory=list)


class PowerMeter:
    """nvidia-smi's readings while the block runs, as (time, watts, SM clock, memory clock); none where there is no nvidia-smi."""

    def __enter__(self) -> "PowerMeter":
        self.readings, self.process = [], None
        try:
            self.process = subprocess.Popen(QUERY, stdout=subprocess.PIPE, text=True)
        except OSError:
            return self
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        return self

    def _read(self) -> None:
        for line in self.process.stdout:
            try:
                self.readings.append((time.monotonic(), *(float(part) for part in line.split(","))))
            except ValueError:
                continue  # "[N/A]": this card does not say

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.thread.join()


def measure(binary: Path, folders: dict[Fill, Path], repetitions: int, new_tokens: int) -> dict[tuple[str, Fill], Samples]:
    """`repetitions` rounds over all fills and policies, and one before them that does not count."""
    samples = {(policy, fill): Samples() for policy in POLICIES for fill in folders}
    for repetition in range(repetitions + 1):
        for (policy, fill), kept in samples.items():
            folder = folders[fill]
            command = [binary, "generate", "--model", folder / "target", "--draft", folder / "drafter", "--prompt", PROMPT]
            command += ["--policy", policy, "--max-new-tokens", new_tokens, "--ignore-eos", "--format", "json"]
            with PowerMeter() as meter:
                done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
                end = time.monotonic()
            if done.returncode:
                raise SystemExit(f"{binary} generate failed on {folder}: {done.stderr.strip()}")
            stats = json.loads(done.stdout)["stats"]
            print(f"{repetition} {fill.value} {policy}: {stats}", flush=True)
            if repetition == 0:
                continue
            kept.step_ms.append(stats["verify_ms"] / stats["rounds"])
            # The process ends with the text; loading came before it, and the ends of the text are not steady.
            span = stats["total_ms"] / 1000
            for when, watts, sm_mhz, mem_mhz in meter.readings:
                if end - 0.9 * span < when < end - 0.2 * span:
                    kept.watts.append(watts)
                    kept.sm_mhz.append(sm_mhz)
                    kept.mem_mhz.append(mem_mhz)
    return samples


def report(samples: dict[tuple[str, Fill], Samples]) -> tuple[str, list[str]]:
    """A table, and which means of the lift differ from the Gaussian fill's by more than MAX_CHANGE."""
    lines, failed = ["policy | fill | ms a target pass | W | SM MHz | memory MHz", "|".join([" --- "] * 6)], []
    for (policy, fill), kept in samples.items():
        base, cells = samples[policy, Fill.GAUSSIAN], []
        for name in vars(kept):
            values, others = getattr(kept, name), getattr(base, name)
            if not values or not others:
                cells.append("not read")
                continue
            change = mean(values) / mean(others) - 1
            cells.append(f"{mean(values):.4g} ({100 * change:+.2f} %)")
            if fill is Fill.LIFT and abs(change) > MAX_CHANGE:
                failed.append(f"{policy}: {name}")
        lines.append(" | ".join([policy, fill.value, *cells]))
    return "\n".join(lines), failed
