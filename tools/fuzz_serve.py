"""Drives `smart-run serve` with requests that schemathesis makes of the server's own OpenAPI document, sound ones and broken ones.

    cargo build && python tools/fuzz_serve.py [--binary PATH] [--seconds N] [--examples N] [--seed N]

Starts the demo pair with a chat template and an API key on a free port of the loopback, on the host driver. All of schemathesis' checks run,
but for one: that every request that fits its schema is accepted. What a schema cannot tell (token ids beyond the vocabulary, expressions,
fields that need one another) is refused; `fuzz_serve_checks.py` looks at how. Exit code 0 if nothing was found. Needs
`pip install -r tools/fuzz-requirements.txt`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY = "sesame"
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} <tool_call>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
# Longer than any request takes here, and the model to load.
PATIENCE_SECONDS = 60


def chat_model(folder: Path) -> Path:
    """The demo target with a chat template that teaches calls of tools."""
    model = folder / "demo"
    shutil.copytree(ROOT / "assets/demo/target", model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    return model


def start(binary: Path, model: Path) -> tuple[subprocess.Popen, str]:
    """A server that is ready, and its address."""
    command = [binary, "serve", "--model", model, "--draft", ROOT / "assets/demo/drafter", "--device", "host", "--policy", "eagle2:4,3,12"]
    # A small context, so that answers without a limit end soon.
    command += ["--port", "0", "--max-context", "96", "--log", "quiet", "--api-key", KEY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().removeprefix("listening on ").strip()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/ready")
            return process, address
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                sys.exit("the server does not get ready")
            time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target/debug/smart-run")
    parser.add_argument("--seconds", type=int, default=240, help="time for the whole run")
    parser.add_argument("--examples", type=int, default=200, help="random requests an endpoint")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, address = start(args.binary, chat_model(Path(folder)))
        try:
            command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
            command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--header", f"Authorization: Bearer {KEY}"]
            command += ["--max-examples", str(args.examples), "--max-time", str(args.seconds), "--seed", str(args.seed)]
            command += ["--request-timeout", str(PATIENCE_SECONDS), "--continue-on-failure", "--no-color", "--warnings", "off"]
            # Whoever looks for "token" in a name to hide secrets would hide counts.
            command += ["--output-sanitize", "false"]
            checks = {"SCHEMATHESIS_HOOKS": "fuzz_serve_checks", "PYTHONPATH": str(ROOT / "tools")}
            found = subprocess.run(command, env=os.environ | checks, cwd=folder).returncode
            server.terminate()
            code = server.wait(PATIENCE_SECONDS)
        finally:
            server.kill()
    if code != 0:
        print(f"the server ended with exit code {code}")
    return 1 if found or code else 0


if __name__ == "__main__":
    sys.exit(main())
