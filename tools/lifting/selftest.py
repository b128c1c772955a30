"""A tiny lift of a pair that must pass every gate, and planted bugs that must not.

It is tiny in everything but what is tested: dead heads in live groups, dead groups, dead layers, unused tokens, and heads twice as wide
as the small model's, so that the rotary pairs and the scale of the queries count.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lifting.acceptance import Runs, check_acceptance, read_texts
from lifting.check import Lifted, Report, check, native_pass, read_prompts
from lifting.folder import from_folder, in_memory, make
from lifting.network import Parts
from lifting.noise import Fill
from lifting.pair import LiftedPair, LiftOptions, SmallPair, lift
from lifting.shapes import LiftError, Norms, shape_of, spread

ROOT = Path(__file__).resolve().parents[2]
TEXTS, LENGTH = 3, 64
RUNTIME_CHANGE = 0.1  # of so few rounds: one text that turns elsewhere counts for much, and unused tokens for more


def tiny(small: SmallPair) -> LiftOptions:
    """A shape that has every kind of dead part."""
    shape = small.target.shape
    sizes = {
        "hidden_size": shape.hidden_size + 64,
        "intermediate_size": shape.intermediate_size + 128,
        "num_hidden_layers": shape.num_hidden_layers + 2,
        "num_attention_heads": (shape.num_key_value_heads + 1) * (shape.group + 2),
        "num_key_value_heads": shape.num_key_value_heads + 1,
        "head_dim": 2 * shape.head_dim,
        "vocab_size": shape.vocab_size + 904,
    }
    return LiftOptions(sizes, draft_vocab_size=small.drafter.drafter.config.draft_vocab_size + 300, dtype=torch.float32)


@dataclass(frozen=True)
class Held:
    """A target that stays in memory."""

    held: list[dict[str, Tensor]]

    def parts(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.held)


@dataclass(frozen=True)
class Edited:
    """A target whose tensors a planted bug has changed."""

    source: Parts
    edit: Callable[[str, Tensor], Tensor]

    def parts(self) -> Iterator[dict[str, Tensor]]:
        for part in self.source.parts():
            yield {name: self.edit(name, tensor) for name, tensor in part.items()}


def planted_bugs(small: SmallPair, pair: LiftedPair, lifted: Lifted) -> dict[str, Lifted]:
    """The pair with one thing wrong each."""
    live = pair.target.places[len(pair.target.places) // 2]

    def edited(where: str, change: Callable[[Tensor], Tensor]) -> Lifted:
        edit = lambda name, tensor: change(tensor) if where in name else tensor
        return replace(lifted, target=Edited(lifted.target, edit))

    small_eps = small.target.config["rms_norm_eps"]
    shifted = [tap + 1 for tap in lifted.taps]
    unsilenced = lift(small, tiny(small), lifted.drafter.fc.weight.device)
    unsilenced.target.silence = 0.0
    return {
        "a norm's gain not divided out": edited(f"layers.{live}.input_layernorm", torch.ones_like),
        "the norm's mean square not matched": replace(lifted, target_config=lifted.target_config | {"rms_norm_eps": small_eps}),
        "queries without the scale of wider heads": edited("q_proj", lambda tensor: tensor / 2**0.5),
        "taps off by one": replace(lifted, taps=shifted),
        "a pair that does not cancel": edited(f"layers.{pair.target.big.num_hidden_layers - 2}.mlp.down_proj", torch.abs),
        "unused tokens with the logit zero": replace(lifted, target=unsilenced.target),
    }


def in_runtime(
    small: SmallPair, folder: Path, native_folders: tuple[Path, Path], binary: Path, device: torch.device
) -> tuple[bool, list[str]]:
    """Whether acceptance survives a lift that is hardly wider than the small pair, where rounding of the stream is felt most."""
    options = tiny(small)
    sizes = options.sizes | {"head_dim": small.target.shape.head_dim}
    make(lift(small, replace(options, sizes=sizes, dtype=torch.bfloat16), device), folder, native_folders[0])
    prompts = read_texts(ROOT / "assets/demo/prompts.jsonl")[:8]
    runs = Runs(binary, prompts, ["eagle2:4,3,12"], [0], 32, "bf16")
    report = Report()
    check_acceptance(report, runs, native_folders, (folder / "target", folder / "drafter"), limit=RUNTIME_CHANGE)
    return not report.failed, report.failed


def selftest(small: SmallPair, native_folders: tuple[Path, Path], binary: Path | None) -> None:
    """Prints a line a check, and fails if one does. `native_folders` are the small pair's; `binary` is a smart-run to ask as well."""
    small_target = native_folders[0]
    start, device, failures = time.perf_counter(), small.drafter.drafter.d2t.device, []

    def expect(name: str, passed: bool, detail: object = "") -> None:
        print(f"{'ok    ' if passed else 'FAILED'}  {name}  {detail}", flush=True)
        if not passed:
            failures.append(name)

    expect("layers are spread evenly", spread(8, 32) == [0, 4, 9, 13, 18, 22, 27, 31])
    norms = Norms.match(256, 4096, 3.2e-4, 3.2e-4, 1e-5)
    expect("Llama-3's eps leaves a constant of 0.2024", abs(norms.alpha / 0.2024 - 1) < 2**-8 and abs(norms.drafter_eps / 1e-5 - 1) < 2**-7)
    for field, size in {"hidden_size": small.target.shape.hidden_size, "num_attention_heads": 8, "intermediate_size": 14337}.items():
        try:
            shape_of(small.target.shape, {field: size})
            expect(f"{field} of {size} is refused", False)
        except LiftError as error:
            expect(f"{field} of {size} is refused", field in str(error) or "query heads" in str(error))

    tokens = read_prompts(ROOT / "assets/demo/prompts.jsonl", small_target / "tokenizer.json", TEXTS, LENGTH).to(device)
    options = tiny(small)
    pair = lift(small, options, device)
    lifted = replace(in_memory(pair), target=Held(list(pair.target.parts())))
    native = native_pass(small, tokens)
    report = check(small, lifted, tokens, native)
    expect("a lift passes its gates", not report.failed, report.failed or report.gates["target: KL(small || lifted), nats"][0])
    for name, broken in planted_bugs(small, pair, lifted).items():
        failed = check(small, broken, tokens, native).failed
        expect(f"planted: {name}", bool(failed), f"{len(failed)} gates fail")

    zero = in_memory(lift(small, replace(options, fill=Fill.ZERO), device))
    failed = check(small, zero, tokens, native).failed
    expect("a lift among zeros computes the same, and fails as not dense", failed == ["zero weights"], failed)
    gaussian = lift(small, replace(options, fill=Fill.GAUSSIAN), device)
    described = [[(n, t.shape, t.dtype) for part in p.target.parts() for n, t in part.items()] for p in (pair, gaussian)]
    described += [[(n, t.shape, t.dtype) for n, t in p.drafter.tensors().items()] for p in (pair, gaussian)]
    expect("Gaussian weights have the same names, shapes and types", described[0] == described[1] and described[2] == described[3])

    with tempfile.TemporaryDirectory() as folder:
        make(lift(small, options, device), Path(folder), small_target)
        read = from_folder(Path(folder), device)
        equal = all(
            a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
            for a, b in zip(read.target.parts(), lifted.target.parts(), strict=True)
        )
        expect("what is made again from the seed, written and read is the same", equal)
        expect("configs survive", (read.target_config, read.taps) == (lifted.target_config, lifted.taps))
        same = (torch.equal(a, b) for a, b in zip(read.drafter.state_dict().values(), lifted.drafter.state_dict().values()))
        expect("so does the drafter", all(same))
    other = next(lift(small, replace(options, seed=1), device).target.parts())["model.embed_tokens.weight"]
    expect("another seed gives others", not torch.equal(other, next(lifted.target.parts())["model.embed_tokens.weight"]))
    if binary:
        with tempfile.TemporaryDirectory() as folder:
            expect("the runtime in bfloat16 accepts as much", *in_runtime(small, Path(folder), native_folders, binary, device))
    print(f"{time.perf_counter() - start:.0f} s")
    if failures:
        raise SystemExit(f"{len(failures)} checks failed")
