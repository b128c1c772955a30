"""Two workers of the demo pair behind NVIDIA Dynamo's frontend: routing by prefix, migration, drain, guided decoding, cancellation, metrics.

    (cd worker && cargo build) && python3 tools/check_worker.py [--python PYTHON] [--worker BINARY] [--etcd] [--logs FOLDER] [--require]

PYTHON is an interpreter with the package `ai-dynamo` (docs/scale-out.md says how to get one); without it the check is skipped, and says
so, or fails with --require. Everything listens on the loopback address and ends with the script, after at most ten minutes. Processes find
each other through files in a temporary folder and tell of their caches over ZeroMQ; with --etcd through `etcd` and over `nats-server`,
which have to be installed. On the host driver: no GPU is needed.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
DEADLINE_S = 600
# Of one answer, or one wait.
PATIENCE_S = 90
# Files of processes that have died are found again by others' heartbeats.
DISCOVERY_S = 40


class CheckError(Exception):
    """Something is not as it should be."""


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise CheckError(what)


def wait_until(what: str, holds, patience: float = PATIENCE_S):
    """What `holds` returns once that is true."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if found := holds():
                return found
        time.sleep(0.05)
    raise CheckError(f"not within {patience:.0f} s: {what}")


def free_port() -> int:
    """One that nobody listens on. Dynamo holds its system port in 16 bits with a sign."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            port = random.randrange(15000, 1 << 15)
            probe.bind((LOOPBACK, port))
            return port


def fetch(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Process:
    """A child with its log; it never outlives the script."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], logs: Path):
        self.name, self.log = name, logs / f"{name}.log"
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def is_running(self) -> bool:
        return self.child.poll() is None

    def send(self, number: int) -> None:
        self.child.send_signal(number)

    def wait(self, patience: float) -> int:
        try:
            return self.child.wait(patience)
        except subprocess.TimeoutExpired:
            raise CheckError(f"{self.name} runs on {patience:.0f} s after it was told to end") from None

    def end(self) -> None:
        if self.is_running():
            self.child.kill()
        self.child.wait()


class Worker(Process):
    """A worker, and what it says of itself."""

    def __init__(self, name: str, binary: Path, environment: dict[str, str], logs: Path, *more: str):
        self.port = free_port()
        demo = ROOT / "assets/demo"
        command = [str(binary), "--model", str(demo / "target"), "--draft", str(demo / "drafter")]
        command += ["--served-name", "demo", "--device", "host", "--max-sequences", "4", "--endpoint-types", "completions", *more]
        super().__init__(name, command, {**environment, "DYN_SYSTEM_PORT": str(self.port)}, logs)

    def metrics(self) -> dict[str, float]:
        """Values by name, labels in it."""
        status, text = fetch(self.port, "/metrics")
        expect(status == 200, f"{self.name} answers {status} at /metrics")
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def requests(self) -> int:
        return int(self.metrics()["smart_run_sequences_total"])

    def running(self) -> int:
        return int(self.metrics()["smart_run_sequences_running"])

    def is_ready(self) -> bool:
        expect(self.is_running(), f"{self.name} has ended: see {self.log}")
        return fetch(self.port, "/health")[0] == 200


class Frontend(Process):
    """Dynamo's frontend, asked as a client would."""

    def __init__(self, python: str, environment: dict[str, str], logs: Path):
        self.port = free_port()
        command = [python, "-m", "dynamo.frontend", "--http-host", LOOPBACK, "--http-port", str(self.port)]
        command += ["--router-mode", "kv", "--migration-limit", "3"]
        super().__init__("frontend", command, environment, logs)

    def is_serving(self) -> bool:
        expect(self.is_running(), f"the frontend has ended: see {self.log}")
        status, text = fetch(self.port, "/v1/models")
        return status == 200 and any(model["id"] == "demo" for model in json.loads(text)["data"])

    def post(self, prompt: str, most: int, **more) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        body = {"model": "demo", "prompt": prompt, "max_tokens": most, "temperature": 0, **more}
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PATIENCE_S)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def complete(self, prompt: str, most: int, **more) -> dict:
        connection, response = self.post(prompt, most, **more)
        text = response.read().decode()
        connection.close()
        expect(response.status == 200, f"the frontend answers {response.status}: {text}")
        return json.loads(text)

    def stream(self, prompt: str, most: int, **more):
        """Pieces of text as they come. Closing it closes the connection."""
        connection, response = self.post(prompt, most, stream=True, **more)
        try:
            if response.status != 200:
                raise CheckError(f"the frontend answers {response.status}: {response.read().decode()}")
            for line in response:
                if line.startswith(b"event: error"):
                    raise CheckError(f"the stream ends in an error: {response.read().decode()}")
                data = line.decode().strip().removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if line.startswith(b"data:"):
                    for choice in json.loads(data).get("choices", []):
                        yield choice.get("text") or ""
        finally:
            response.close()
            connection.close()

    def migrations(self) -> float:
        """Requests that were started anew so far."""
        lines = fetch(self.port, "/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("dynamo_frontend_model_migration_total"))


def prompts() -> list[str]:
    lines = (ROOT / "assets/demo/prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


class Check:
    """The processes, and what is checked of them."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.binary, self.logs = arguments.worker, arguments.logs or folder
        self.logs.mkdir(parents=True, exist_ok=True)
        hosts = ["DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST"]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DYN_")},
            **dict.fromkeys(hosts, LOOPBACK),
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(folder / "discovery"),
            "DYN_EVENT_PLANE": "zmq",
            "DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT": "60",
            "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0.2",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
        }
        self.processes: list[Process] = []
        if arguments.etcd:
            self.start_services(folder)
        self.workers: list[Worker] = []
        self.frontend = Frontend(arguments.python, self.environment, self.logs)
        self.processes.append(self.frontend)
        self.prompts = prompts()
        self.end = time.monotonic() + DEADLINE_S

    def start_services(self, folder: Path) -> None:
        """etcd and NATS in place of files and ZeroMQ."""
        clients, peers, nats = (free_port() for _ in range(3))
        url, peer = f"http://{LOOPBACK}:{clients}", f"http://{LOOPBACK}:{peers}"
        etcd = ["etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url]
        etcd += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self.processes.append(Process("etcd", etcd, self.environment, self.logs))
        command = ["nats-server", "-a", LOOPBACK, "-p", str(nats), "-js", "-sd", str(folder / "nats")]
        self.processes.append(Process("nats", command, self.environment, self.logs))
        wait_until("etcd answers", lambda: fetch(clients, "/health")[0] == 200)
        self.environment |= {"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": url, "DYN_EVENT_PLANE": "nats"}
        self.environment |= {"NATS_SERVER": f"nats://{LOOPBACK}:{nats}"}

    def start_worker(self, *more: str) -> Worker:
        worker = Worker(f"worker{len(self.processes)}", self.binary, self.environment, self.logs, *more)
        self.processes.append(worker)
        self.workers.append(worker)
        wait_until(f"{worker.name} is ready", worker.is_ready)
        return worker

    def settle(self) -> None:
        """Waits until requests reach every worker and none that has gone."""
        wait_until("the frontend knows the model", self.frontend.is_serving)

        def reaches_all() -> bool:
            before = [worker.requests() for worker in self.workers]
            for _ in range(4 * len(self.workers)):
                # Texts that nobody has seen before go to whoever has less to do.
                self.frontend.complete(f"# {time.monotonic_ns()}\n" * 8, 2)
            return all(worker.requests() > count for worker, count in zip(self.workers, before))

        wait_until("requests reach every worker", reaches_all, DISCOVERY_S)

    def who_runs(self, besides: tuple = ()) -> Worker:
        busy = lambda: next((it for it in self.workers if it not in besides and it.running() > 0), None)
        return wait_until("a worker runs the request", busy, 20)

    def route_by_prefix(self) -> str:
        """Six prompts, each sent twice, the second time in another order, so that taking turns would not do."""
        holders = []
        for prompt in self.prompts[:6]:
            before = [worker.requests() for worker in self.workers]
            first = self.frontend.complete(prompt, 8)
            counts = [worker.requests() - count for worker, count in zip(self.workers, before)]
            expect(sorted(counts) == [0, 1], f"one worker serves a request: {counts}")
            holders.append((counts.index(1), first["choices"][0]["text"]))
        expect({holder for holder, _ in holders} == {0, 1}, "new prompts are spread over both workers")
        time.sleep(1)
        for prompt, (holder, text) in reversed(list(zip(self.prompts, holders))):
            before = self.workers[holder].requests()
            again = self.frontend.complete(prompt, 8)
            expect(self.workers[holder].requests() == before + 1, "a prompt goes to the worker that has read it")
            expect(again["choices"][0]["text"] == text, "the answer is the same")
            cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
            expect(cached >= 16, f"its prefix is found: {cached} tokens")
        return "6 of 6 prompts went back to the worker that holds them"

    def survive_a_kill(self, **sampling) -> str:
        prompt, most = self.prompts[10], 400
        whole = self.frontend.complete(prompt, most, ignore_eos=True, **sampling)["choices"][0]["text"]
        migrations = self.frontend.migrations()
        text, killed = "", None
        for piece in self.frontend.stream(prompt, most, ignore_eos=True, **sampling):
            text += piece
            if killed is None and len(text) > len(whole) // 8:
                killed = self.who_runs()
                killed.send(signal.SIGKILL)
                seen = len(text)
        expect(killed is not None, "a worker was killed in mid-stream")
        expect(text == whole, f"the text is whole:\n{text!r}\ninstead of\n{whole!r}")
        started_anew = self.frontend.migrations() - migrations
        # More than once where the first attempt meets the dead worker again, before discovery has noticed.
        expect(started_anew >= 1, "the frontend started the request anew")
        killed.wait(10)
        self.workers.remove(killed)
        self.start_worker()
        self.settle()
        return f"killed after {seen} of {len(whole)} characters, and the client got all of them"

    def drain(self) -> str:
        prompt, most = self.prompts[11], 1200
        whole = self.frontend.complete(prompt, most, ignore_eos=True)["choices"][0]["text"]
        migrations = self.frontend.migrations()
        text, ending = "", None
        for piece in self.frontend.stream(prompt, most, ignore_eos=True):
            text += piece
            if ending is None and len(text) > len(whole) // 8:
                ending = self.who_runs()
                ending.send(signal.SIGTERM)
        expect(text == whole, "a worker that is told to end lets its text end")
        expect(self.frontend.migrations() == migrations, "it was not started anew elsewhere")
        status = ending.wait(60)
        expect(status == 0, f"{ending.name} ends with status {status}: see {ending.log}")
        self.workers.remove(ending)
        # One that has no time to drain hands its text over.
        hasty = self.start_worker("--drain-seconds", "0")
        self.settle()
        for prompt in self.prompts[12:20]:
            before = hasty.requests()
            whole = self.frontend.complete(prompt, 400, ignore_eos=True)["choices"][0]["text"]
            if hasty.requests() > before:
                break
        else:
            raise CheckError("no prompt went to the new worker")
        migrations = self.frontend.migrations()
        text, told = "", False
        for piece in self.frontend.stream(prompt, 1600, ignore_eos=True):
            text += piece
            if not told:
                told = True
                expect(self.who_runs() is hasty, "the worker that has read the prompt runs it")
                hasty.send(signal.SIGTERM)
        expect(text.startswith(whole) and len(text) > len(whole), "the text is whole")
        started_anew = self.frontend.migrations() - migrations
        expect(started_anew >= 1, "the rest of it came from elsewhere")
        expect(hasty.wait(60) == 0, f"{hasty.name} ends well: see {hasty.log}")
        self.workers.remove(hasty)
        self.start_worker()
        self.settle()
        return "a text ended on the worker that was told to end; without time to drain it ended on another"

    def guide(self) -> str:
        properties = {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": 0, "maximum": 99}}
        schema = {"type": "object", "properties": properties, "required": ["name", "count"], "additionalProperties": False}
        values = []
        for seed in range(3):
            answer = self.frontend.complete("result = ", 200, guided_json=schema, temperature=0.9, seed=seed)
            values.append(json.loads(answer["choices"][0]["text"]))
            valid = values[-1].keys() == properties.keys() and isinstance(values[-1]["name"], str)
            expect(valid and 0 <= values[-1]["count"] < 100, f"an answer is valid: {values[-1]}")
        return f"three answers are valid, as {json.dumps(values[0])}"

    def cancel(self) -> str:
        def cancelled() -> float:
            return sum(worker.metrics()['smart_run_sequences_ended_total{outcome="cancelled"}'] for worker in self.workers)

        before = cancelled()
        stream = self.frontend.stream(self.prompts[30], 1800, ignore_eos=True)
        next(stream)
        runner = self.who_runs()
        stream.close()
        start = time.monotonic()
        wait_until("the place of a client that went is free", lambda: runner.running() == 0, 10)
        took = time.monotonic() - start
        expect(cancelled() == before + 1, "the request was cancelled and did not run to its end")
        return f"the place was free {took * 1000:.0f} ms after the client went"

    def refuse(self) -> str:
        connection, response = self.frontend.post(self.prompts[0], 8, min_tokens=4)
        text = response.read().decode()
        connection.close()
        expect(400 <= response.status < 500 and "min_tokens" in text, f"what is not supported is named: {response.status} {text}")
        return f"min_tokens: {response.status}"

    def scrape(self) -> str:
        for worker in self.workers:
            values = worker.metrics()
            for name in ["smart_run_emitted_tokens_total", "smart_run_rounds_total", "smart_run_pages", "smart_run_up"]:
                expect(values.get(name, 0) > 0, f"{worker.name} counts {name}")
            text = fetch(worker.port, "/metrics")[1]
            expect("dynamo_component_" in text, f"{worker.name} tells Dynamo's own metrics")
            used = [line for line in text.splitlines() if line.startswith("dynamo_component_total_blocks")]
            expect(bool(used), f"{worker.name} tells the router's load")
        expect("dynamo_frontend_requests_total" in fetch(self.frontend.port, "/metrics")[1], "so does the frontend")
        return "both workers and the frontend"

    def run(self) -> None:
        self.start_worker()
        self.start_worker()
        self.settle()
        parts = [
            ("routing", self.route_by_prefix),
            ("guided decoding", self.guide),
            ("cancellation", self.cancel),
            ("refusal", self.refuse),
            ("metrics", self.scrape),
            ("migration, greedy", self.survive_a_kill),
            ("migration, sampled", lambda: self.survive_a_kill(temperature=0.8, seed=7)),
            ("drain", self.drain),
        ]
        for name, part in parts:
            expect(time.monotonic() < self.end, f"ten minutes are over before {name}")
            start = time.monotonic()
            print(f"{name}: {part()} ({time.monotonic() - start:.1f} s)", flush=True)

    def close(self) -> None:
        for process in self.processes:
            process.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter that has ai-dynamo [default: this one]")
    parser.add_argument("--worker", type=Path, default=ROOT / "worker/target/debug/smart-worker", help="the worker's binary")
    parser.add_argument("--etcd", action="store_true", help="through etcd and NATS instead of files and ZeroMQ")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    parser.add_argument("--require", action="store_true", help="fail instead of skipping")
    arguments = parser.parse_args()
    probe = subprocess.run([arguments.python, "-c", "import dynamo.frontend"], capture_output=True, check=False, timeout=60)
    missing = []
    if probe.returncode != 0:
        missing.append(f"{arguments.python} has no package ai-dynamo")
    if not arguments.worker.exists():
        missing.append(f"there is no {arguments.worker}: cd worker && cargo build")
    if arguments.etcd:
        missing += [f"{name} is not installed" for name in ["etcd", "nats-server"] if shutil.which(name) is None]
    if missing:
        print(("failed: " if arguments.require else "skipped: ") + "; ".join(missing))
        return int(arguments.require)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(arguments, Path(folder))
        try:
            check.run()
        except CheckError as error:
            print(f"failed: {error}")
            for process in check.processes:
                print(f"--- {process.name}\n" + "\n".join(line[:300] for line in process.log.read_text(errors="replace").splitlines()[-8:]))
            return 1
        finally:
            check.close()
    print("all is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
