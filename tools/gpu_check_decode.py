"""Plain decoding by PyTorch, compiled and in a CUDA graph, of the shape that a model folder says: what our plain pass is compared with.

    python3 tools/gpu_check_decode.py MODEL_DIR RESULTS.jsonl [--context 1024] [--batch 1] [--modes layers,default,max-autotune-no-cudagraphs] [--seconds 120]

A line a mode and batch size; the first line says what a step must read. Modes come in order while there is time, as some compile for minutes.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TextIO


def measure(config: dict, batch: int, context: int, mode: str) -> dict:
    import torch

    from peers.decode import decode
    from peers.timing import time_peer

    torch.manual_seed(1)
    start = time.monotonic()
    peer = decode(config, batch, context, mode)
    peer.launch(0)
    peer.check()
    seconds = time.monotonic() - start
    return time_peer(peer) | {"note": peer.note, "compile_s": seconds, "torch": torch.__version__}


def report(out: TextIO, row: dict) -> None:
    print(json.dumps(row), file=out, flush=True)
    print(", ".join(f"{key} {value}" for key, value in row.items() if not isinstance(value, dict)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with a Llama's config.json")
    parser.add_argument("results", type=Path)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", default="1", help="batch sizes, separated by commas")
    parser.add_argument("--modes", default="layers,default,max-autotune-no-cudagraphs", help="of torch.compile, or layers: each compiled alone")
    parser.add_argument("--seconds", type=float, default=120, help="no mode is begun after so long")
    arguments = parser.parse_args()
    try:
        config = json.loads((arguments.model / "config.json").read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.model}/config.json: {error}")
    begin = time.monotonic()
    batches = [int(batch) for batch in arguments.batch.split(",")]
    with arguments.results.open("w") as out:
        try:
            from peers.decode import read_bytes
        except ImportError as error:
            report(out, {"who": "PyTorch", "reason": f"{arguments.model.name}: {error}"})
            raise SystemExit(77) from error
        for batch in batches:
            shape = {"batch": batch, "context": arguments.context}
            bytes_ = read_bytes(config, batch, arguments.context)
            report(out, {"who": "shape", "model": arguments.model.name, **shape, "bytes": bytes_})
        for mode in arguments.modes.split(","):
            for batch in batches:
                row = {"who": "PyTorch", "batch": batch, "context": arguments.context, "mode": mode}
                if time.monotonic() - begin >= arguments.seconds:
                    report(out, row | {"reason": "no time left"})
                    continue
                try:
                    report(out, row | measure(config, batch, arguments.context, mode))
                except Exception as error:  # whatever a version of PyTorch cannot compile is a row that says so
                    report(out, row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


if __name__ == "__main__":
    main()
