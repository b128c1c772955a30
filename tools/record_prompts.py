"""Records of many prompts, one file a prompt, for `smart-run replay`.

    cargo build --release
    python3 tools/record_prompts.py --temperature 1 --prompts 40 --new-tokens 100 --out records/t1
    target/release/smart-run replay records/t1/*.jsonl --rivals --out t1.html

With `-- --uncoupled` behind them, records of sampled text hold the target's probabilities of what was drafted, and `replay --oracle` plays them.

The prompts are those of a JSON Lines file with `prompt` or `turns` (its first turn); the seed of a prompt is its number. A prompt
that has its record already is left alone, so that an interrupted run goes on where it stopped.
"""

import argparse
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prompts(path: Path) -> list[str]:
    """The prompts of a JSON Lines file."""
    objects = [json.loads(line) for line in path.read_text().splitlines()]
    return [item["prompt"] if "prompt" in item else item["turns"][0] for item in objects]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/smart-run")
    parser.add_argument("--file", type=Path, default=ROOT / "assets/demo/prompts.jsonl")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("arguments", nargs="*", help="more for generate, after --: -- --model DIR --draft DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(prompts(args.file)[: args.prompts]):
        record, partial = args.out / f"{number:03}.jsonl", args.out / f"{number:03}.partial"
        if record.exists():
            continue
        command = [args.binary, "generate", "--prompt", prompt, "--temperature", str(args.temperature), "--ignore-eos"]
        command += ["--seed", str(number), "--max-new-tokens", str(args.new_tokens), "--record", partial, *args.arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        partial.rename(record)


if __name__ == "__main__":
    main()
