"""Turns what `gpu-check/run.sh` has left in a folder into tables for docs/ and README: Markdown on standard output.

    python3 tools/gpu_check_tables.py gpu-check/results

Every table says which GPU, driver, commit and command it is of. Ratios are the other's median over the mean of our two medians
around it: above 1 ours is faster. What was skipped, and what failed, is listed; a number that is missing was not measured.
"""

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

PEERS = ["cuBLASLt", "torch.matmul", "torch", "SDPA", "FlexAttention"]


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


def ceilings(shapes: dict[str, Shape], source: str) -> None:
    rows = []
    for name, shape in shapes.items():
        if shape_of(shape)["family"] != "ceilings":
            continue
        us = shape.median()
        if us is None:
            sizes = shape_of(shape)
            us = shape.peers["torch.matmul"]["median_us"]
            rate = f"{2e-6 * sizes['m'] * sizes['n'] * sizes['k'] / us:.1f} TFLOP/s"
        else:
            gigabytes = shape.ours[0]["gb_per_s"]
            rate = f"{gigabytes:.0f} GB/s" if gigabytes else ""
        rows.append([name, number(us), rate])
    table("Ceilings", source, ["what", "us", "rate"], rows)

    def us(start: str, end: str = "") -> float | None:
        found = [s.median() for name, s in shapes.items() if name.startswith(start) and name.endswith(end)]
        return found[0] if found else None

    plain, whole = us("read of", "in a chain"), us("read of", "share of one launch")
    programmatic = us("read of", "in a chain, programmatic edges")
    rows = []
    for what, chain in (("plain", plain), ("programmatic edges", programmatic)):
        if chain and whole:
            rows.append([f"gap between two launches of a graph that read, {what}", number(chain - whole)])
    table("Derived", source, ["what", "us"], rows)


def kernels(folder: Path) -> None:
    shapes, missing = gather(lines_of(folder / "kernels.jsonl"))
    if not shapes and not missing:
        return
    source = origin(folder / "kernels.txt")
    ceilings(shapes, source)
    families: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        families[shape_of(shape)["family"]][name] = shape
    for family, members in families.items():
        if family == "ceilings":
            continue
        peers = [peer for peer in PEERS if any(peer in shape.peers for shape in members.values())]
        header = ["shape", "us", "p10", "p90", "GB/s", "% read", "TFLOP/s", "second turn"]
        header += [column for peer in peers for column in (f"{peer} us", "ratio")]
        rows = []
        for name, shape in members.items():
            if not shape.ours:
                continue
            first = shape.ours[0]
            read = first.get("read_gb_per_s")
            share = 100 * first["gb_per_s"] / read if read else None
            row = [name, number(shape.median()), number(first["p10_us"]), number(first["p90_us"])]
            row += [number(first["gb_per_s"], 0), number(share, 1), number(first["tflop_per_s"], 1), number(shape.drift(), 3)]
            for peer in peers:
                other = shape.peers.get(peer)
                row += [number(other["median_us"] if other else None), number(shape.ratio(peer))]
            rows.append(row)
        table(f"Kernels: {family}", source, header, rows)
    ratios(families, source)
    layer = lambda sizes: (f"{sizes['rows']} rows", f"{sizes['model']} {sizes['layer']}")
    instructions("Linear layers", "layers", families["linear"], layer, source)
    for wide in ("mma", "wgmma"):
        for without in ("narrow tiles", "no clusters"):
            instructions("Linear layers", "layers", families["linear"], layer, source, (f"{wide}, {without}", wide))
    nodes = lambda sizes: (f"{sizes['nodes']} nodes", json.dumps(sizes | {"instructions": None}))
    instructions("Attention", "shapes", families["attention"], nodes, source)
    if missing:
        print(f"\n### Notes, and what was not measured\n\n{source}\n")
        for line in missing:
            print(f"- {line}")


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def ratios(families: dict[str, dict[str, Shape]], source: str) -> None:
    """Of linear layers and attention for each of our families of kernels apart."""
    groups: dict[str, dict[str, Shape]] = defaultdict(dict)
    for family, members in families.items():
        for name, shape in members.items():
            groups[" ".join(filter(None, [family, shape_of(shape).get("instructions")]))][name] = shape
    rows = []
    for family, members in groups.items():
        for peer in PEERS:
            found = sorted((r, name) for name, shape in members.items() if (r := shape.ratio(peer)))
            if not found:
                continue
            mean = geometric_mean(ratio for ratio, _ in found)
            middle = found[len(found) // 2][0]
            rows.append(
                [family, peer, str(len(found)), number(mean), number(middle), number(found[0][0]), found[0][1]]
            )
    table(
        "Ratios: others' time over ours", source,
        ["family", "who", "shapes", "geometric mean", "median", "least", "at"], rows,
    )  # fmt: skip


def instructions(
    title: str, what: str, members: dict[str, Shape], place: Callable[[dict], tuple[str, str]], source: str,
    both: tuple[str, str] = ("mma", "wgmma"),
) -> None:  # fmt: skip
    """Both instructions, at each number of rows or nodes: whether, and from where on, the second is worth choosing. `place` says where a shape
    belongs, and what shape it is but for the instructions."""
    times: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    names: dict[tuple[str, str], str] = {}
    for name, shape in members.items():
        sizes, us = shape_of(shape), shape.median()
        if us and "instructions" in sizes:
            width, same = place(sizes)
            times[width][same][sizes["instructions"]] = us
            if sizes["instructions"] == both[1]:
                names[width, same] = name.removesuffix(f" {both[1]}")
    rows = []
    for width in sorted(times, key=lambda width: int(width.split()[0])):
        found = {same: us[both[0]] / us[both[1]] for same, us in times[width].items() if set(both) <= us.keys()}
        if found:
            least = min(found, key=found.__getitem__)
            mean = geometric_mean(found.values())
            rows.append([width, str(len(found)), number(mean), number(found[least]), names[width, least]])
    table(
        f"{title}: time by {both[0]} over time by {both[1]}", source,
        ["width", what, "geometric mean", "least", "at"], rows,
    )  # fmt: skip


def end_to_end(folder: Path) -> None:
    reports = lines_of(folder / "end-to-end.jsonl")
    source = origin(folder / "end-to-end.txt")
    by_text: dict[str, list[tuple[dict, dict]]] = defaultdict(list)
    for report in reports:
        for cell in report["cells"]:
            by_text[f"{report['model']}, {cell['text']}"].append((report, cell))
    for text, cells in by_text.items():
        rows = []
        for report, cell in cells:
            outcome, speed = cell["outcome"], cell["tokens_per_second"]
            ratio = lambda key: number((cell.get(key) or {}).get("mean"))
            emitted = outcome["tokens"] / outcome["sequence_rounds"] if outcome["sequence_rounds"] else None
            role = "" if cell["role"] == "policy" else cell["role"]
            rows.append([
                f"B={cell['batch']} {cell['player']}", role, number(speed["mean"], 1),
                f"{number(speed['least'], 1)} to {number(speed['most'], 1)}", ratio("speedup"),
                ratio("against_best_static"), number(emitted),
            ])  # fmt: skip
        first = cells[0][0]
        detail = f"{source}; {first['device']}, {first['driver']}, {first['dtype']}, {first['max_new_tokens']} tokens a request"
        header = ["batch and policy", "role", "tokens/s", "least to most", "over plain", "over best static", "tokens a round"]
        table(f"End to end: {text}", detail, header, rows)


def summary(folder: Path) -> None:
    """The last lines of each report."""
    for report in sorted(folder.glob("*.txt")):
        text = report.read_text()
        found = re.search(r"^== summary.*?(?=^tables:|\Z)", text, re.MULTILINE | re.DOTALL)
        print(f"\n### {report.stem}\n\n{origin(report)}\n\n```")
        print(found.group(0).strip() if found else "The run was cut off: there is no summary.")
        print("```")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="results of gpu-check/run.sh")
    for folder in parser.parse_args().folders:
        summary(folder)
        kernels(folder)
        end_to_end(folder)


if __name__ == "__main__":
    main()
