"""What `gpu-check/run.sh` has left in a folder, as numbers, and how tables of it look. A part of gpu_check_tables.py."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def lines_of(path: Path) -> list[dict]:
    """What a killed run has left of its last line is no row."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def origin(report: Path) -> str:
    """GPU, driver, commit and command of a report."""
    text = report.read_text() if report.is_file() else ""

    def first(pattern: str, missing: str) -> str:
        found = re.search(pattern, text, re.MULTILINE)
        return found.group(1).strip() if found else missing

    gpu = first(r"^(.*), \d+\.\d+[.\d]*, \d+ MiB,", "no GPU named")
    if "SMART_DEVICE=host" in text:
        gpu = "host driver: a dry run that says nothing about any GPU"
    driver = first(r"^.*, (\d+\.\d+[.\d]*), \d+ MiB,", "none")
    commit, command = first(r"^commit (.*)$", "unknown"), first(r"^command: (.*)$", "unknown")
    when = first(r"^run (\S+) on", "unknown")
    return f"{gpu}; driver {driver}; commit {commit}; {when}; `{command}`"


def table(title: str, source: str, header: list[str], rows: Iterable[list[str]]) -> None:
    rows = list(rows)
    if not rows:
        return
    print(f"\n### {title}\n\n{source}\n")
    print("| " + " | ".join(header) + " |")
    print("|---" + "|---:" * (len(header) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


class Shape:
    """All measurements of one row."""

    def __init__(self) -> None:
        self.ours: list[dict] = []
        self.peers: dict[str, dict] = {}

    def median(self) -> float | None:
        times = [row["median_us"] for row in self.ours]
        return sum(times) / len(times) if times else None

    def drift(self) -> float | None:
        """The second turn over the first."""
        return self.ours[1]["median_us"] / self.ours[0]["median_us"] if len(self.ours) == 2 else None

    def ratio(self, peer: str) -> float | None:
        ours, row = self.median(), self.peers.get(peer)
        return row["median_us"] / ours if row and ours else None


def gather(rows: list[dict]) -> tuple[dict[str, Shape], list[str]]:
    """By name, and what was not measured."""
    shapes: dict[str, Shape] = defaultdict(Shape)
    causes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        who = row.get("who", "ours")
        if "median_us" not in row:
            cause = row["error"] if "error" in row else row.get("reason", "")
            causes[who, cause].append(row.get("case", ""))
        elif who == "ours":
            shapes[row["case"]].ours.append(row)
        else:
            shapes[row["case"]].peers[who] = row
    missing = []
    for (who, cause), names in causes.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        shown = ", ".join(filter(None, names[:3]))
        missing.append(f"{who}{': ' + shown + more if shown else ''}: {cause}")
    return shapes, missing


def shape_of(shape: Shape) -> dict:
    return (shape.ours or list(shape.peers.values()))[0]["shape"]


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


class DecodeStep:
    """A plain decoding step of one batch size and context."""

    def __init__(self, row: dict, ours: list[float]) -> None:
        self.batch, self.context, self.bytes = row["batch"], row["context"], row["bytes"]
        self.ours = ours
        # Microseconds by what compiled it.
        self.peers: dict[str, float] = {}

    def ours_us(self) -> float | None:
        return sum(self.ours) / len(self.ours) if self.ours else None


def decode_steps(folder: Path) -> list[DecodeStep]:
    """Of gpu_check_decode.py, and of the profiles before and after it: the target pass of as many rows as sequences."""
    profiles = [json.loads(path.read_text()) for path in sorted(folder.glob("profile-*.json"))]

    def ours(batch: int, context: int) -> list[float]:
        wanted = lambda point: (point["tokens"], point["sequences"], point["context"]) == (batch, batch, context)
        points = [[p for p in profile["table"]["points"] if p["kind"] != "draft" and wanted(p)] for profile in profiles]
        # A plain pass may have been measured for itself, or as the narrowest of verification passes.
        return [min(point["us"] for point in found) for found in points if found]

    rows = lines_of(folder / "decode.jsonl")
    steps = [DecodeStep(row, ours(row["batch"], row["context"])) for row in rows if row["who"] == "shape"]
    for row in rows:
        for step in steps:
            if "median_us" in row and (row["batch"], row["context"]) == (step.batch, step.context):
                step.peers[row["mode"]] = row["median_us"]
    return steps
