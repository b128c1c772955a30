"""Runs tests of the carried executable, whatever becomes of some of them: a fault on a GPU spoils everything that its process does afterwards,
and a kernel may never end.

    python3 tools/gpu_check_tests.py gpu-check/gpu_check --seconds 130 --stall 25 kernels::rope,kernels::draft kernels::

Tests run one by one, a process for those of each filter that no filter before it has. Behind one that failed, and one that said nothing for so
long, the rest goes on in another process. The exit status is 0 if all passed, 124 if time ran out before all had their turn, else 1.
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


def listed(executable: Path, filters: list[str]) -> list[list[str]]:
    """Names of the tests by filter, each where it comes first."""
    groups: list[list[str]] = []
    for parts in filters or [""]:
        command = [executable, "--list", "--format", "terse", *filter(None, parts.split(","))]
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.splitlines()
        known = {name for group in groups for name in group}
        names = [line.removesuffix(": test") for line in lines if line.endswith(": test")]
        groups.append([name for name in names if name not in known])
    return [group for group in groups if group]


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
    parser.add_argument("filters", nargs="*", help="parts of the names of tests, several separated by commas")
    parser.add_argument("--seconds", type=float, default=130, help="for all of them")
    parser.add_argument("--stall", type=float, default=25, help="for one that says nothing")
    args = parser.parse_intermixed_args()
    executable, deadline = args.executable.resolve(), time.monotonic() + args.seconds
    groups = listed(executable, args.filters)
    if not groups:
        print(f"no test is named {' or '.join(args.filters)}")
        return 1
    passed, problems, missed = 0, {}, 0
    for left in groups:
        while left and time.monotonic() < deadline:
            run = Run(executable, left)
            problem = run.go_on(args.stall, deadline)
            run.end()
            passed += sum(outcome != "FAILED" for outcome in run.outcomes.values())
            if problem is not None and run.current is not None:
                problems[run.current] = problem
                print(f"\n{run.current}: {problem}; on with the tests behind it", flush=True)
            done = set(run.outcomes) | set(problems)
            if not done & set(left) and time.monotonic() < deadline:
                problems[left[0]] = f"its process ended before it, status {run.process.returncode}"
                done.add(left[0])
            left = [name for name in left if name not in done]
        missed += len(left)
    print(f"\n{passed} tests passed or left out, {len(problems)} did not pass, {missed} not reached", flush=True)
    for name, problem in problems.items():
        print(f"  {name}: {problem}", flush=True)
    return 1 if problems else 124 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
