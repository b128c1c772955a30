"""Measures our kernels and those of others at the same shapes, on the same GPU, in turn.

    python3 tools/gpu_check_kernels.py gpu-check/gpu_check RESULTS/kernels.jsonl --seconds 420

`gpu-check/run.sh kernels` runs it. Ceilings come first, then rows by rank: ours, each peer, ours again, so that a GPU that
grows slower or faster is seen. Ours live in a process that only waits while a peer is measured, and the other way round. Every
measurement is a JSON line that is written at once: `who` measured, `turn` 0 or 1 of ours. What was not reached in time is
counted in the last line. Without PyTorch only ours are measured.
"""

import argparse
import gc
import itertools
import json
import time
from pathlib import Path

from peers.ours import Gone, Ours

# Processes with our kernels that may end over a row, each with that one left out.
MOST_LOST = 6
# Seconds that a row may take, its first launch and its oracle on the CPU with it, and all ceilings.
ROW_PATIENCE, CEILINGS_PATIENCE = 40.0, 90.0
# Share of the time that FlexAttention may take in all: each shape is compiled for itself, and that is slow.
FLEX_SHARE = 0.28
ARITHMETIC = [(8192, 8192, 8192)] + [(m, 28672, 4096) for m in (64, 128, 256, 512)]


class Kernels:
    """The process with our kernels, and after a row that ended it another: what it has done to the GPU's memory spoils what follows in it."""

    def __init__(self, executable: Path) -> None:
        self.executable, self.lost = executable, 0
        # What rows are related to, which a process that has measured no ceilings does not know.
        self.rates: dict[str, float] = {}
        self.process = Ours(executable, ROW_PATIENCE)
        self.fatal: set[str] = set()

    def start_again(self) -> None:
        self.lost += 1
        self.process.kill()
        self.process = Ours(self.executable, ROW_PATIENCE)

    def time(self, name: str) -> dict:
        if name in self.fatal:
            return {"case": name, "error": "it ended its process before"}
        try:
            row = self.process.time(name)
            self.rates |= {key: row[key] for key in ("copy_gb_per_s", "read_gb_per_s") if row.get(key)}
            return row | self.rates
        except Gone as gone:
            self.fatal.add(name)
            self.start_again()
            return {"case": name, "error": str(gone)}


class Record:
    def __init__(self, path: Path) -> None:
        self.file = path.open("a")
        self.count = 0

    def add(self, who: str, row: dict) -> None:
        self.file.write(json.dumps({"who": who} | row) + "\n")
        self.file.flush()
        self.count += 1
        time_text = f"{row['median_us']:10.2f} us" if "median_us" in row else row.get("reason", row.get("error", ""))
        print(f"{row.get('case', ''):<62} {who:<14} {time_text}", flush=True)


class Peers:
    """Who else has a kernel for a shape; nobody, if PyTorch is missing."""

    def __init__(self, record: Record, flex_seconds: float) -> None:
        self.record = record
        self.flex_left = flex_seconds
        self.torch = None
        try:
            import torch
        except ImportError as error:
            record.add("peers", {"reason": f"SKIPPED: {error}"})
            return
        from peers import attention, cublaslt, timing, torch_peers

        self.torch, self.timing = torch, timing
        self.torch_peers = torch_peers
        torch.manual_seed(0)
        gpu = torch.cuda.get_device_name() if timing.on_gpu() else "no GPU: PyTorch on the CPU"
        record.add("peers", {"reason": f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {gpu}"})
        self.by_family = {
            "linear": [("cuBLASLt", cublaslt.linear), ("torch.matmul", torch_peers.linear)],
            "attention": [("SDPA", attention.dense_bias), ("FlexAttention", attention.flex)],
            "sample": [("torch", torch_peers.sample)],
            "topk": [("torch", torch_peers.topk)],
        }

    def of(self, shape: dict) -> list:
        if self.torch is None:
            return []
        return self.by_family.get(shape["family"], []) or self.by_family.get(shape.get("kernel", ""), [])

    def measure(self, who: str, build, cases: list[str], shape: dict) -> None:
        """Measured once, written for each of the cases that are this shape."""
        if who == "FlexAttention" and self.flex_left <= 0:
            return
        start = time.monotonic()
        row: dict = {"shape": shape}
        try:
            peer = build(shape)
            peer.launch(0)
            peer.check()
            row |= self.timing.time_peer(peer) | {"note": peer.note}
        except self.timing.Skipped as skipped:
            row["reason"] = f"SKIPPED: {skipped}"
        except Exception as error:  # of code that is not ours, whatever it may be
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        if who == "FlexAttention":
            self.flex_left -= time.monotonic() - start
        for case in cases:
            self.record.add(who, {"case": case} | row)
        peer = None
        gc.collect()
        if self.timing.on_gpu():
            self.torch.cuda.empty_cache()


def by_shape(entries: list[dict]) -> list[list[dict]]:
    """Rows of one shape that differ in our instructions alone stand together: whoever else has a kernel for it is measured once."""
    shape = lambda entry: entry["shape"] | {"instructions": None}
    return [list(group) for _, group in itertools.groupby(entries, key=shape)]


def in_turns(groups: list[list[dict]]) -> list[list[dict]]:
    """By rank, and within a rank a row of each family in turn: whenever the time is over, every family has had its share."""
    ordered = []
    for _, same in itertools.groupby(groups, key=lambda group: group[0]["rank"]):
        families: dict[str, list] = {}
        for group in same:
            families.setdefault(group[0]["shape"]["family"], []).append(group)
        turns = itertools.zip_longest(*families.values())
        ordered += [group for turn in turns for group in turn if group is not None]
    return ordered


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executable", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=float, default=420, help="after so many seconds no row is begun")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--most", type=int, help="so many rows of a family at the most")
    args = parser.parse_args()
    begun = time.monotonic()
    record = Record(args.results)
    failures = 0
    ours = Kernels(args.executable.resolve())
    ceilings = 0
    try:
        for row in ours.process.several("ceilings", CEILINGS_PATIENCE):
            record.add("ours", row | ({"case": row["skipped"]} if "skipped" in row else {}))
            if (kind := row.get("shape", {}).get("kind")) in ("copy", "read"):
                ours.rates[f"{kind}_gb_per_s"] = max(ours.rates.get(f"{kind}_gb_per_s", 0.0), row["gb_per_s"])
            ceilings += 1
    except Gone as gone:
        record.add("ours", {"case": f"ceilings behind the first {ceilings}", "error": str(gone)})
        failures += 1
        ours.start_again()
    peers = Peers(record, FLEX_SHARE * args.seconds)
    if peers.torch is not None:
        scale = 1 if peers.timing.on_gpu() else 32
        for m, n, k in ARITHMETIC:
            shape = {"family": "ceilings", "kind": "matmul", "m": m // scale, "n": n // scale, "k": k // scale}
            case = "matmul {m} x {n} x {k}".format(**shape)
            peers.measure("torch.matmul", peers.torch_peers.matmul, [case], shape)
    seen: dict[str, int] = {}
    missed = 0
    entries = [entry for entry in ours.process.several("list", ROW_PATIENCE) if args.only in entry["name"]]
    for group in in_turns(by_shape(entries)):
        shape, names = group[0]["shape"], [entry["name"] for entry in group]
        family = shape["family"]
        seen[family] = seen.get(family, 0) + 1
        if args.most and seen[family] > args.most:
            continue
        if time.monotonic() - begun > args.seconds or ours.lost >= MOST_LOST:
            missed += len(group)
            continue
        for turn in (0, 1):
            for entry in group:
                row = ours.time(entry["name"]) | {"turn": turn, "rank": entry["rank"]}
                failures += "error" in row
                record.add("ours", row)
            for who, build in peers.of(shape) if turn == 0 else []:
                peers.measure(who, build, names, shape)
            if turn == 0 and not peers.of(shape):
                break  # nobody was measured in between
    record.add("end", {"reason": f"{missed} rows not reached", "missed": missed, "failures": failures})
    ours.process.close()
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Gone as gone:
        raise SystemExit(f"the process with our kernels: {gone}")
