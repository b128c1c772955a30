"""The rows of benches/kernels, asked for one by one: a process that measures when it is told to, and waits otherwise."""

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

ARGUMENTS = ["--ignored", "--exact", "--nocapture", "--test-threads=1", "times_on_request"]


class Gone(Exception):
    """The process ended, or said nothing for too long."""


class Ours:
    """`SMART_DEVICE` says where it runs; `patience` is how long an answer may take."""

    def __init__(self, executable: Path, patience: float) -> None:
        self.patience = patience
        self.process = subprocess.Popen(
            [executable, *ARGUMENTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.answers: queue.Queue[dict | None] = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        self.ready = self.answer()

    def listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            # The test harness has lines of its own.
            if line.startswith("{"):
                self.answers.put(json.loads(line))
        self.answers.put(None)

    def answer(self, patience: float | None = None) -> dict:
        patience = patience or self.patience
        try:
            answer = self.answers.get(timeout=patience)
        except queue.Empty:
            # Or its kernel would go on beside whatever is measured next.
            self.kill()
            raise Gone(f"no answer within {patience:.0f} s") from None
        if answer is None:
            raise Gone(f"it ended with status {self.process.wait()}")
        return answer

    def say(self, request: str) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Gone("it ended") from None

    def several(self, request: str, patience: float) -> Iterator[dict]:
        """`list` or `ceilings`."""
        self.say(request)
        while not (answer := self.answer(patience)).get("end"):
            yield answer

    def time(self, name: str) -> dict:
        self.say(f"time {name}")
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass  # the driver does not let it go
