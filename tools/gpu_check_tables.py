"""Turns what `gpu-check/run.sh` has left in a folder into tables for docs/ and README: Markdown on standard output.

    python3 tools/gpu_check_tables.py gpu-check/results

Every table says which GPU, driver, commit and command it is of. Ratios are the other's median over the mean of our two medians
around it: above 1 ours is faster. What was skipped, and what failed, is listed; a number that is missing was not measured.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from gpu_check_goals import goals
from gpu_check_results import Shape, decode_steps, gather, geometric_mean, lines_of, number, origin, shape_of, table

PEERS = ["cuBLASLt", "torch.matmul", "torch", "SDPA", "FlexAttention"]


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
    instructions("Linear layers", "layers", families["linear"], layer, source, ("mma", "mma, bulk copies"))
    nodes = lambda sizes: (f"{sizes['nodes']} nodes", json.dumps(sizes | {"instructions": None}))
    instructions("Attention", "shapes", families["attention"], nodes, source)
    for way in ("mma", "wgmma"):
        instructions("Attention", "shapes", families["attention"], nodes, source, (f"{way}, no clusters", way))
    if missing:
        print(f"\n### Notes, and what was not measured\n\n{source}\n")
        for line in missing:
            print(f"- {line}")


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


def plain_decoding(folder: Path) -> None:
    """Our plain pass before and after PyTorch's, at one context."""
    source = origin(folder / "end-to-end.txt")
    rows = []
    for step in decode_steps(folder):
        ours, second = step.ours_us(), step.ours[1] / step.ours[0] if len(step.ours) == 2 else None
        for mode, us in step.peers.items() or {"": None}.items():
            rows.append([
                f"B={step.batch}, context {step.context}", number(ours, 1), number(second, 3),
                number(step.bytes / ours / 1e3 if ours else None, 0), mode, number(us, 1), number(us / ours if us and ours else None),
            ])  # fmt: skip
    header = ["plain decoding", "us", "second turn", "GB/s", "PyTorch", "us", "ratio"]
    table("Plain decoding", source, header, rows)


def breakdowns(folder: Path) -> None:
    """Passes taken apart: what each kernel adds, in the order of its launches."""
    for pass_ in (pass_ for profile in lines_of(folder / "breakdown.json") for pass_ in profile["breakdowns"]):
        total = pass_["total_us"]
        rows = [["the start of a graph", "1", number(pass_["start_us"]), "", number(100 * pass_["start_us"] / total, 1), "", ""]]
        for part in pass_["parts"]:
            us, launches = part["us"], part["launches"]
            blocks, cluster = ("x".join(map(str, part[sides])) for sides in ("grid", "cluster"))
            share = number(100 * us / total, 1)
            rows.append([part["kernel"], str(launches), number(us), number(us / launches), share, blocks, cluster])
        network = "drafter" if pass_["kind"] == "draft" else "target"
        title = f"A {network} pass of {pass_['rows']} rows behind {pass_['context']} tokens: {number(total)} us"
        header = ["kernel", "launches", "us", "us each", "% of the pass", "blocks", "cluster"]
        table(title, origin(folder / "end-to-end.txt"), header, rows)


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
        goals(folder)
        kernels(folder)
        plain_decoding(folder)
        breakdowns(folder)
        end_to_end(folder)


if __name__ == "__main__":
    main()
