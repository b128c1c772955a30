"""Records of drawings that the vision-language pair of tests/golden/msd_llava describes, one file a drawing, for `smart-run replay`.

    cargo build --release
    python tools/record_pictures.py --temperature 1 --pictures 60 --out records/pictures-t1
    target/release/smart-run replay records/pictures-t1/*.jsonl --costs l40s/llava-1.5-7b/eagle1 --rivals --out pictures.html

The drawings are held out: no answer among them was trained on. The seed of a drawing is its number. A drawing that has its record
already is left alone.
"""

import argparse
import random
import subprocess
from pathlib import Path

from vision_data import example

ROOT = Path(__file__).resolve().parent.parent
PAIR = ROOT / "tests/golden/msd_llava"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/smart-run")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    for number in range(args.pictures):
        drawn = example(rng, held_out=True)
        picture, record = args.out / f"{number:03}.png", args.out / f"{number:03}.jsonl"
        partial = args.out / f"{number:03}.partial"
        if record.exists():
            continue
        drawn.picture.save(picture)
        command = [args.binary, "generate", "--model", PAIR / "target", "--draft", PAIR / "drafter"]
        command += ["--image", picture, "--prompt", drawn.prompt, "--temperature", str(args.temperature)]
        command += ["--seed", str(number), "--max-new-tokens", "60", "--record", partial]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        partial.rename(record)


if __name__ == "__main__":
    main()
