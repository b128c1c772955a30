#!/usr/bin/env python3
"""What the lanes of a warp make memory move, by kernel and instruction, from a run of kernels as PTX (kernels/README.md):

    PTX_FLAGS=-lineinfo tools/compile_ptx.sh target/ptx-lines
    SIMT_PTX=target/ptx-lines SIMT_PTX_COUNTS=counts.jsonl cargo test --test kernels tree_attention
    tools/ptx_counts.py counts.jsonl [--ptx target/ptx-lines] [--kernel PART] [--worst 20]

Of global memory sectors of 32 bytes, of shared memory wavefronts of 128; `least` is what the bytes need that were touched. An instruction's
source is shown where the PTX has it: the line of the primitive, and the line that called it.
"""

import argparse
import collections
import json
import pathlib
import re
import sys

LOC = re.compile(r"\s*\.loc\s+(\d+) (\d+) \d+(?:.*inlined_at (\d+) (\d+))?")
FILE = re.compile(r'\s*\.file\s+(\d+) "(?:.*/)?([^"/]+)"')


class Sources:
    """Where in the sources a line of PTX comes from."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}

    def of(self, file, line):
        if file not in self.files:
            path = self.folder / file if self.folder else None
            self.files[file] = path.read_text().splitlines() if path and path.is_file() else []
        text = self.files[file]
        found = next((m for m in map(LOC.match, reversed(text[:line])) if m), None)
        if not found:
            return f"{file}:{line}"
        names = dict(m.groups() for m in map(FILE.match, text) if m)
        places = [found.group(1, 2), found.group(3, 4)]
        return " < ".join(f"{names.get(number, '?')}:{at}" for number, at in places if number)


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=pathlib.Path)
    parser.add_argument("--ptx", type=pathlib.Path, help="the folder that SIMT_PTX named, for lines of sources")
    parser.add_argument("--kernel", default="", help="only kernels with this in their name")
    parser.add_argument("--worst", type=int, default=20, help="so many instructions (20)")
    arguments = parser.parse_args()
    try:
        lines = [json.loads(line) for line in arguments.counts.read_text().splitlines()]
    except (OSError, ValueError) as error:
        sys.exit(f"{arguments.counts}: {error}")
    lines = [line for line in lines if arguments.kernel in line["kernel"]]

    sums = collections.defaultdict(lambda: [0, 0, 0])
    for line in lines:
        for i, key in enumerate(["requests", "moved", "least"]):
            sums[line["kernel"], line["space"]][i] += line[key]
    rows = [(kernel, space, *sum, f"{sum[1] / sum[2]:.2f}") for (kernel, space), sum in sorted(sums.items())]
    print(*table(["kernel", "memory", "requests", "moved", "least", "moved / least"], rows), sep="\n")

    sources = Sources(arguments.ptx)
    worst = sorted(lines, key=lambda line: line["least"] - line["moved"])[: arguments.worst]
    rows = [
        (line["kernel"], line["space"], f"`{line['instruction']}`", sources.of(line["file"], line["line"]), line["requests"],
         line["moved"], line["least"])
        for line in worst if line["moved"] > line["least"]
    ]
    print()
    print(*table(["kernel", "memory", "instruction", "source", "requests", "moved", "least"], rows), sep="\n")


if __name__ == "__main__":
    main()
