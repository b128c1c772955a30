"""Lifts a small target and its EAGLE-3 drafter into a large shape that computes the same: acceptance is the small pair's, cost the large one's.

    python tools/lift.py make --out out/8b                  # the demo pair in Llama-3-8B's shape, bf16: 17 GB
    python tools/lift.py check out/8b --smart-run target/release/smart-run
    python tools/lift.py check                              # the same weights, made part by part, without a disk
    python tools/lift.py power --smart-run target/release/smart-run --scratch /dev/shm/lift
    python tools/lift.py selftest                           # tiny lifts and planted bugs

docs/lifted-model.md says how, and what has been measured.
"""

import argparse
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

# Before torch: threads that spin while they wait take several times as long on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

from lifting import power
from lifting.acceptance import Runs, check_acceptance, read_texts
from lifting.check import check, native_pass, read_prompts
from lifting.folder import from_folder, in_memory, make
from lifting.noise import Fill
from lifting.pair import LiftOptions, SmallPair, lift
from lifting.selftest import selftest
from lifting.shapes import LLAMA_3_8B, LiftError, Shape

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def compare_power(small: SmallPair, options: LiftOptions, device: torch.device, args: argparse.Namespace) -> None:
    """Writes a pair of every fill and measures them in turn."""
    folders = {fill: args.scratch / fill.value for fill in Fill}
    for fill, folder in folders.items():
        make(lift(small, replace(options, fill=fill), device), folder, args.target)
    table, failed = power.report(power.measure(args.smart_run, folders, args.repetitions, args.new_tokens))
    print(table)
    if failed:
        raise SystemExit(f"the lift differs from Gaussian weights by more than {100 * power.MAX_CHANGE:g} %: {', '.join(failed)}")


def runs(args: argparse.Namespace) -> Runs:
    """What the runtime is to generate, as the flags say."""
    policies = args.run_policy or ["chain:3", "eagle2:4,3,12"]
    return Runs(args.smart_run, read_texts(args.prompts)[: args.run_prompts], policies, [0, 1], args.run_tokens, args.run_dtype)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--target", type=Path, default=ROOT / "assets/demo/target", help="small target")
    common.add_argument("--drafter", type=Path, default=ROOT / "assets/demo/drafter", help="its EAGLE-3 drafter")
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    shape = argparse.ArgumentParser(add_help=False)
    for size in fields(Shape):
        flag = "--" + size.name.replace("_", "-")
        shape.add_argument(flag, type=int, metavar="N", help=f"default {getattr(LLAMA_3_8B, size.name)}, Llama-3-8B's")
    shape.add_argument("--draft-vocab", type=int, default=32000, metavar="N", help="tokens that the drafter can name")
    shape.add_argument("--eps", type=float, help="rms_norm_eps of the lifted target; see docs/lifted-model.md")
    shape.add_argument("--seed", type=int, default=0)
    shape.add_argument("--fill", choices=[fill.value for fill in Fill], default="lift", help="what is not live")
    shape.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type to write")
    maker = commands.add_parser("make", parents=[common, shape], help="write a lifted pair")
    maker.add_argument("--out", type=Path, required=True, help="folder for target/ and drafter/")
    maker.add_argument("--max-position-embeddings", type=int, metavar="N", help="default: the small model's")
    checker = commands.add_parser("check", parents=[common, shape], help="hold a lifted pair to the gates")
    checker.add_argument("folder", type=Path, nargs="?", help="what `make` wrote; without it the flags say what to make")
    checker.add_argument("--prompts", type=Path, default=ROOT / "assets/demo/prompts.jsonl", help="held-out text")
    checker.add_argument("--texts", type=int, default=8, help="prompts to take")
    checker.add_argument("--length", type=int, default=96, help="tokens of each")
    checker.add_argument("--smart-run", type=Path, help="compare accepted lengths with this binary too")
    checker.add_argument("--run-dtype", default="auto", help="type that smart-run computes in")
    checker.add_argument("--run-prompts", type=int, default=20, help="prompts for smart-run")
    checker.add_argument("--run-tokens", type=int, default=64, help="tokens to generate for each")
    checker.add_argument("--run-policy", action="append", help="default chain:3 and eagle2:4,3,12")
    meter = commands.add_parser("power", parents=[common, shape], help="on a GPU: lifted, Gaussian and zero-filled weights in turn")
    meter.add_argument("--smart-run", type=Path, required=True)
    meter.add_argument("--scratch", type=Path, required=True, help="new folder for three pairs, 51 GB at the default shape; kept")
    meter.add_argument("--repetitions", type=int, default=3)
    meter.add_argument("--new-tokens", type=int, default=1000)
    tester = commands.add_parser("selftest", parents=[common], help="tiny lifts and planted bugs, within a minute")
    tester.add_argument("--smart-run", type=Path, help="compare accepted lengths with this binary too")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    small = SmallPair.load(args.target, args.drafter, device)
    if args.command == "selftest":
        return selftest(small, (args.target, args.drafter), args.smart_run)
    options = LiftOptions(
        sizes={size.name: getattr(args, size.name) for size in fields(Shape)},
        draft_vocab_size=args.draft_vocab,
        eps=args.eps,
        seed=args.seed,
        fill=Fill(args.fill),
        dtype=DTYPES[args.dtype],
    )
    if args.command == "make":
        return make(lift(small, options, device), args.out, args.target, args.max_position_embeddings)
    if args.command == "power":
        return compare_power(small, options, device, args)
    lifted = from_folder(args.folder, device) if args.folder else in_memory(lift(small, options, device))
    tokens = read_prompts(args.prompts, args.target / "tokenizer.json", args.texts, args.length).to(device)
    report = check(small, lifted, tokens, native_pass(small, tokens))
    if args.smart_run:
        if not args.folder:
            raise LiftError("--smart-run needs the folder that `make` wrote")
        check_acceptance(report, runs(args), (args.target, args.drafter), (args.folder / "target", args.folder / "drafter"))
    print(report.text())
    if report.failed:
        raise SystemExit(f"{len(report.failed)} of {len(report.gates)} gates failed")


if __name__ == "__main__":
    try:
        main()
    except LiftError as error:
        sys.exit(f"error: {error}")
