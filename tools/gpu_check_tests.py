"""Runs tests of the carried executable, whatever becomes of some of them: a fault on a GPU spoils everything that its process does afterwards,
and a kernel may never end.

    python3 tools/gpu_check_tests.py gpu-check/gpu_check --seconds 130 --stall 25 kernels::linear kernels::

Tests run one by one in the order of the filters. Behind one that failed, and one that said nothing for so long, the rest goes on in another
process. The exit status is 0 if all passed, 124 if time ran out before all had their turn, else 1.
"""

import argparse
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

# As libtest writes it; what a test prints comes behind the name, and the outcome then on a line of its own.
BEGUN = re.compile(r"test (\S+)(?: - should panic)? \.\.\. ?(.*)", re.DOTALL)
OUTCOME = re.compile(r"ok|FAILED|ignored.*")


def listed(executable: Path, filters: list[str]) -> list[str]:
    """Names of the tests, those of the first filter first."""
    names: dict[str, None] = {}
    for text in filters or [""]:
        command = [executable, "--list", "--format", "terse", *([text] if text else [])]
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.splitlines()
        names |= dict.fromkeys(line.removesuffix(": test") for line in lines if line.endswith(": test"))
    return list(names)


class Run:
    """A process with the tests that are left, until one does not pass."""

    def __init__(self, executable: Path, names: list[str]) -> None:
        self.process = subprocess.Popen(
            [executable, "--test-threads=1", "--nocapture", "--exact", *names], stdout=subprocess.PIPE, start_new_session=True
        )
        self.pending = ""
        self.current: str | None = None
        self.outcomes: dict[str, str] = {}

    def go_on(self, stall: float, deadline: float) -> str | None:
        """Reads until a test has not passed: why not. None at the end of the process or of the time."""
        assert self.process.stdout
        pipe = self.process.stdout.fileno()
        while True:
            left = min(stall, deadline - time.monotonic())
            if left <= 0:
                return None
            if not select.select([pipe], [], [], left)[0]:
                return f"it said nothing for {stall:.0f} s" if time.monotonic() < deadline else None
            chunk = os.read(pipe, 1 << 16).decode(errors="replace")
            if not chunk:
                return f"its process ended, status {self.process.wait()}" if self.current else None
            sys.stdout.write(chunk)
            sys.stdout.flush()
            *lines, self.pending = (self.pending + chunk).split("\n")
            if any(self.read(line) for line in lines):
                return "FAILED"
            if (begun := BEGUN.fullmatch(self.pending)) is not None:
                self.current = begun[1]

    def read(self, line: str) -> bool:
        """Whether the line says that a test failed."""
        if (begun := BEGUN.fullmatch(line)) is not None:
            self.current, line = begun[1], begun[2]
        if self.current is None or OUTCOME.fullmatch(line) is None:
            return False
        self.outcomes[self.current] = line
        failed = line == "FAILED"
        if not failed:
            self.current = None
        return failed

    def end(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            print(f"process {self.process.pid} does not end", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executable", type=Path)
    parser.add_argument("filters", nargs="*", help="parts of the names of tests")
    parser.add_argument("--seconds", type=float, default=130, help="for all of them")
    parser.add_argument("--stall", type=float, default=25, help="for one that says nothing")
    args = parser.parse_args()
    executable, deadline = args.executable.resolve(), time.monotonic() + args.seconds
    left = listed(executable, args.filters)
    if not left:
        print(f"no test is named {' or '.join(args.filters)}")
        return 1
    passed, problems = 0, {}
    while left and time.monotonic() < deadline:
        run = Run(executable, left)
        problem = run.go_on(args.stall, deadline)
        run.end()
        passed += sum(outcome != "FAILED" for outcome in run.outcomes.values())
        if problem is not None and run.current is not None:
            problems[run.current] = problem
            print(f"\n{run.current}: {problem}; on with the tests behind it", flush=True)
        done = set(run.outcomes) | set(problems)
        if not done & set(left):
            if time.monotonic() < deadline:
                problems[left[0]] = f"its process ended before it, status {run.process.returncode}"
                left = left[1:]
            continue
        left = [name for name in left if name not in done]
    print(f"\n{passed} tests passed or left out, {len(problems)} did not pass, {len(left)} not reached", flush=True)
    for name, problem in problems.items():
        print(f"  {name}: {problem}", flush=True)
    return 1 if problems else 124 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
