"""Tokens/s of several policies over the demo pair's held-out prompts, one process per prompt and policy.

    cargo build --release && python3 tools/compare_policies.py [--prompts 20] [--new-tokens 200] [--device host]
"""

import argparse
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLICIES = ["plain", "chain:1", "chain:2", "chain:3", "chain:4", "eagle2:4,2,8", "eagle2:10,5,60", "smart-paper", "smart"]


def stats(binary: Path, prompt: str, policy: str, temperature: float, args: argparse.Namespace) -> dict:
    """The `stats` object of one generation."""
    command = [binary, "generate", "--prompt", prompt, "--policy", policy, "--temperature", str(temperature)]
    command += ["--max-new-tokens", str(args.new_tokens), "--ignore-eos", "--device", args.device, "--format", "json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["stats"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/smart-run")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    lines = (ROOT / "assets/demo/prompts.jsonl").read_text().splitlines()[: args.prompts]
    prompts = [json.loads(line)["prompt"] for line in lines]
    for temperature in (0.0, 0.7):
        plain = None
        for policy in POLICIES:
            runs = [stats(args.binary, prompt, policy, temperature, args) for prompt in prompts]
            # The first token comes from the prompt's pass, which is not decoding.
            speed = sum(r["emitted_tokens"] - 1 for r in runs) / sum(r["total_ms"] - r["prefill_ms"] for r in runs) * 1e3
            rounds = sum(r["rounds"] for r in runs)
            accepted, nodes = (sum(r[key] * r["rounds"] for r in runs) / rounds for key in ("mean_accepted_len", "mean_nodes"))
            plain = plain or speed
            print(f"T={temperature:<4} {policy:16}{speed:9.0f} tokens/s {speed / plain:5.2f}x{accepted:7.2f} accepted{nodes:7.1f} nodes", flush=True)


if __name__ == "__main__":
    main()
