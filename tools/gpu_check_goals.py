"""How far what was measured is from what we are after: one line a goal. A part of gpu_check_tables.py.

A goal without a measurement is a line without a number. Goals speak of an H200 and of Llama-3.1-8B's shapes unless they say otherwise.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from gpu_check_results import Shape, decode_steps, gather, geometric_mean, lines_of, number, origin, shape_of, table

# Bytes of keys and values from which on attention should be as fast as memory.
LARGE_CACHE = 64e6


class Goals:
    """Rows of the table."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def add(self, what: str, value: float | None, goal: str, is_met: Callable[[float], bool], detail: str = "") -> None:
        met = "" if value is None else "yes" if is_met(value) else "no"
        self.rows.append([what, number(value, 3), goal, met, detail])

    def least(self, what: str, values: dict[str, float], goal: float) -> None:
        """All are to reach `goal`."""
        worst = min(values, key=values.__getitem__, default=None)
        detail = f"least of {len(values)}: {worst}" if worst else ""
        self.add(what, values.get(worst), f"at least {goal}", lambda value: value >= goal, detail)

    def most(self, what: str, values: dict[str, float], goal: float) -> None:
        """None is to exceed `goal`."""
        worst = max(values, key=values.__getitem__, default=None)
        detail = f"most of {len(values)}: {worst}" if worst else ""
        self.add(what, values.get(worst), f"at most {goal}", lambda value: value <= goal, detail)


def share_of(shape: Shape, ceiling: str) -> float | None:
    """Bytes a second over those of a ceiling, copy or read."""
    first = shape.ours[0] if shape.ours else {}
    return first["gb_per_s"] / first[ceiling] if first.get(ceiling) else None


def decoding(goals: Goals, folder: Path, copy: float | None) -> None:
    steps = [step for step in decode_steps(folder) if step.batch == 1]
    rates = {f"context {step.context}": step.bytes / us / 1e3 / copy for step in steps if copy and (us := step.ours_us())}
    goals.least("plain decoding, batch 1, over copy bandwidth", rates, 0.90)
    peers = {mode: us / ours for step in steps if (ours := step.ours_us()) for mode, us in step.peers.items()}
    goals.least("plain decoding, batch 1: time of PyTorch, compiled and in a graph, over ours", peers, 1.0)


def linear(goals: Goals, shapes: dict[str, Shape]) -> None:
    """By instructions, as a process has one kind for all widths."""
    kinds: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        sizes = shape_of(shape)
        if sizes["family"] == "linear" and shape.ours:
            kinds[sizes.get("instructions", "")][name] = shape
    for kind in ("mma", "mma, bulk copies", "wgmma"):
        few = {name: shape for name, shape in kinds[kind].items() if shape_of(shape)["rows"] <= 64}
        ratios = {name: ratio for name, shape in few.items() if (ratio := shape.ratio("cuBLASLt"))}
        goals.least(f"linear by {kind}, up to 64 rows: time of the best of cuBLASLt over ours", ratios, 0.95)
        missed = [
            name for name, ratio in ratios.items() if ratio < 1.10 and (share_of(few[name], "read_gb_per_s") or 0) < 0.95
        ]  # fmt: skip
        goals.add(
            f"linear by {kind}, up to 64 rows: shapes neither 1.10 times as fast nor at 0.95 of the read ceiling",
            float(len(missed)) if ratios else None, "0", lambda value: value == 0, ", ".join(missed[:3]),
        )  # fmt: skip
        times: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for shape in kinds[kind].values():
            sizes = shape_of(shape)
            times[sizes["model"], sizes["layer"]][sizes["rows"]] = shape.median()
        growth = {" ".join(layer): us[128] / us[1] for layer, us in times.items() if {1, 128} <= us.keys()}
        goals.most(f"linear by {kind}: time of 128 rows over that of 1", growth, 1.08)


def attention(goals: Goals, shapes: dict[str, Shape]) -> None:
    # The fastest of PyTorch's products, TFLOP/s.
    rates = [2e-6 * sizes["m"] * sizes["n"] * sizes["k"] / shape.peers["torch.matmul"]["median_us"] for shape in shapes.values()
             if (sizes := shape_of(shape))["family"] == "ceilings" and "torch.matmul" in shape.peers]  # fmt: skip
    matmul = max(rates, default=None)
    trees: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        sizes = shape_of(shape)
        whole = sizes["family"] == "attention" and sizes["instructions"] in ("mma", "wgmma")
        if whole and sizes["nodes"] == 60 and shape.ours:
            trees[sizes["instructions"]][name] = shape
    for kind, members in trees.items():
        large = {name: share for name, shape in members.items()
                 if cache_bytes(shape_of(shape)) >= LARGE_CACHE and (share := share_of(shape, "read_gb_per_s"))}  # fmt: skip
        goals.least(f"attention by {kind}, 60 nodes, K/V of 64 MB and more, over the read ceiling", large, 0.90)
        # With key heads that few query heads share this is the same; with others products bound it (docs/2026-11-30-tree-attention.md).
        nearer = {name: max(share, products / matmul) for name, share in large.items()
                  if matmul and (products := members[name].ours[0]["tflop_per_s"])}  # fmt: skip
        goals.least(f"attention by {kind}, the same over the nearer of the read and the matmul ceiling", nearer, 0.65)
        for peer, goal in (("FlexAttention", 2.0), ("SDPA", 5.0)):
            ratios = {name: ratio for name, shape in members.items() if (ratio := shape.ratio(peer))}
            goals.least(f"attention by {kind}, 60 nodes: time of {peer} over ours", ratios, goal)
        alike: dict[str, dict[str, float]] = defaultdict(dict)
        for shape in members.values():
            sizes = shape_of(shape)
            same = {key: value for key, value in sizes.items() if key not in ("tree", "parents")}
            alike[str(same)][sizes["tree"]] = shape.median()
        costs = {tree: us / both["Chain"] for both in alike.values() if "Chain" in both
                 for tree, us in both.items() if tree != "Chain"}  # fmt: skip
        goals.most(f"attention by {kind}, 60 nodes: time of a tree over that of a chain", costs, 1.03)


def cache_bytes(sizes: dict) -> float:
    return 2.0 * 2 * 128 * sizes["kv_heads"] * sizes["sequences"] * sizes["context"]


def rounds(goals: Goals, folder: Path) -> None:
    """Of whole runs: what SMART brings, and how well rounds were predicted."""
    cells = [cell for report in lines_of(folder / "end-to-end.jsonl") for cell in report["cells"] if cell["player"] == "smart"]
    where = lambda cell: f"batch {cell['batch']}, {cell['text']}"
    part = lambda key, field: {where(cell): cell[key][field] for cell in cells if cell.get(key)}
    static, plain = part("against_best_static", "mean"), part("speedup", "mean")
    goals.least("SMART over the best static tree, lower bound", part("against_best_static", "low"), 0.99)
    mean = geometric_mean(static.values()) if static else None
    goals.add("SMART over the best static tree, geometric mean", mean, "at least 1.03", lambda value: value >= 1.03)
    goals.least("SMART over plain decoding", plain, 0.99)
    goals.least("SMART over plain decoding at batch 64", only(plain, "batch 64,"), 1.15)
    outcomes = {where(cell): cell["outcome"] for cell in cells}
    sums = {name: [sum(column) for column in zip(*outcome["predictions"])] for name, outcome in outcomes.items() if outcome["predictions"]}
    achieved = {name: predicted / taken for name, (predicted, taken) in sums.items() if taken}
    goals.least("time that the cost table predicts of rounds over the time they took", achieved, 0.92)
    errors = {name: error for name, outcome in outcomes.items() if (error := outcome.get("prediction_error_p95")) is not None}
    goals.most("error of a round's predicted time, 95th percentile", errors, 0.03)


def only(values: dict[str, float], begin: str) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith(begin)}


def passes(goals: Goals, folder: Path) -> None:
    """Of the profiles: how well what was fitted to the first foretells the passes of the second, and what a level of the drafter takes."""
    profiles = [row for path in sorted(folder.glob("profile-*.json")) for row in lines_of(path)]
    key = lambda point: (point["kind"], point["tokens"], point["sequences"], point["context"])
    errors = []
    if len(profiles) == 2:
        first, second = profiles
        fitted = {key(point): us for point, us in zip(first["table"]["points"], first["fitted_us"])}
        seen = {key(point): point["us"] for point in second["table"]["points"] if point["kind"] != "draft"}
        errors = sorted(abs(fitted[pass_] / us - 1) for pass_, us in seen.items() if fitted.get(pass_))
    fit = errors[round(0.95 * (len(errors) - 1))] if errors else None
    goals.add("error of costs fitted to one sweep over the target passes of the next, 95th percentile", fit, "at most 0.03",
              lambda value: value <= 0.03, f"of {len(errors)}" if errors else "")  # fmt: skip
    points = [point for profile in profiles for point in profile["table"]["points"]]
    levels = {f"{p['tokens']} rows, context {p['context']}": p["us"] for p in points
              if p["kind"] == "draft" and p["sequences"] == 1 and p["tokens"] <= 10}  # fmt: skip
    goals.most("a level of the drafter at batch 1, up to 10 rows, us", levels, 205)
    idle = [profile["sweep"]["idle_level"] for profile in profiles if (profile.get("sweep") or {}).get("idle_level")]
    behind = {f"turn {turn}": level["prefetched_us"] for turn, level in enumerate(idle, 1)}
    goals.most("a level of 8 rows that finds the device idle, as a round's does, us", behind, 205)


def goals(folder: Path) -> None:
    """The table, if the folder has any measurement."""
    shapes, _ = gather(lines_of(folder / "kernels.jsonl"))
    found = Goals()
    copy = next((row["copy_gb_per_s"] for shape in shapes.values() for row in shape.ours if row.get("copy_gb_per_s")), None)
    decoding(found, folder, copy)
    linear(found, shapes)
    attention(found, shapes)
    passes(found, folder)
    rounds(found, folder)
    if any(row[1] for row in found.rows):
        sources = [origin(report) for name in ("kernels", "end-to-end") if (report := folder / f"{name}.txt").is_file()]
        table("Goals", "; ".join(sources), ["what", "measured", "goal", "met", "where"], found.rows)
