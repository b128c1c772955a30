"""Make tests/golden/medusa_*/: what Medusa heads draft under the EAGLE-2 tree, and how much of it is accepted.

    python tools/make_medusa_goldens.py [--out tests/golden]

As make_eagle1_goldens.py, for `medusa.Heads`. `medusa_random`: four heads distilled for some seconds on samples of the random target
tests/golden/llama31_gqa, in the authors' file and as safetensors; both configs say two heads, as the authors' do whatever the file
holds. `medusa_demo`: three heads of two blocks distilled for some minutes on the corpus of the demo target, in bfloat16. Their last layers
are the target's head, which the file holds once: `torch.save` keeps what shares memory together.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

import demo_data
import make_eagle3_goldens as goldens
import training_loop
from medusa import Heads, draft_tree, load_heads, load_named, save_heads
from training_loop import Budget

HEAD_WEIGHT = 0.8  # of each head's loss relative to the one before: the paper's
WARMUP, MUON_RATE, ADAM_RATE = 40, 0.02, 1e-3
RANDOM_HEADS, RANDOM_LAYERS = 4, 1
DEMO_HEADS, DEMO_LAYERS, DEMO_PROMPTS = 3, 2, 3
DEMO_BATCH, DEMO_LENGTH = 4, 128


def distil(
    target: LlamaForCausalLM,
    heads: Heads,
    next_windows: Callable[[], Tensor],
    budget: Budget,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train all heads on the target's own distributions over windows [batch, length + heads + 1]."""

    def next_loss() -> Tensor:
        windows = next_windows()
        length = windows.size(1) - len(heads) - 1
        with torch.no_grad():
            seen = target(windows, output_hidden_states=True, use_cache=False)
        features = heads.target_features(seen.hidden_states)[:, :length]
        loss = torch.zeros(())
        for i in range(len(heads)):
            # The state at t drew token t + 1, the root; head i guesses what the state at t + 1 + i draws.
            wanted = seen.logits[:, 1 + i : 1 + i + length].softmax(dim=-1)
            cross_entropy = -(wanted * heads.logits(i, features).log_softmax(dim=-1)).sum(dim=-1)
            loss = loss + HEAD_WEIGHT**i * cross_entropy.mean()
        return loss

    steppers = training_loop.optimizers(heads, lambda name: "lm_heads" not in name, MUON_RATE, ADAM_RATE)
    training_loop.train(heads, steppers, next_loss, budget, WARMUP, report)
    heads.requires_grad_(False)


def head_tensors(heads: Heads) -> Callable[[goldens.Generation], dict[str, Tensor]]:
    """What is kept of a generation's first round: the feature at the prompt's last token, and every head's scores after it."""

    def kept(generation: goldens.Generation) -> dict[str, Tensor]:
        feature = generation.features[-1:]
        scores = torch.cat([heads.logits(i, feature) for i in range(len(heads))])
        return {"target_logits": generation.prompt_logits, "features": feature.clone(), "head_logits": scores}

    return kept


def make_random(folder: Path, target: LlamaForCausalLM) -> None:
    """The random pair, in both kinds of files."""
    print("medusa_random", flush=True)
    torch.manual_seed(0)
    texts = goldens.sampled_texts(target)
    heads = Heads(RANDOM_HEADS, RANDOM_LAYERS, target.lm_head.weight)
    distil(target, heads, lambda: goldens.random_windows(texts), Budget(minutes=0, steps=goldens.RANDOM_STEPS))
    config = dict(medusa_num_heads=2, medusa_num_layers=RANDOM_LAYERS, base_model_name_or_path="../llama31_gqa")
    save_heads(folder / "drafter", heads, torch.float32, **config)
    save_heads(folder / "drafter_safetensors", heads, torch.float32, prefix="medusa_head.", **config)
    reloaded = load_heads(folder / "drafter", RANDOM_HEADS, RANDOM_LAYERS)
    assert torch.equal(reloaded.lm_heads[3], load_named(folder / "drafter_safetensors")["medusa_head.3.1.weight"])

    generator = torch.Generator().manual_seed(0)
    vocab = target.config.vocab_size
    prompts = lambda length: (torch.randint(vocab, (length,), generator=generator).tolist() for _ in range(200))  # noqa: E731
    generations = [
        goldens.first_clear(target, heads, prompts(length), draft_tree) for length in goldens.RANDOM_PROMPT_LENGTHS
    ]
    facts = dict(target="../llama31_gqa", drafters=["drafter", "drafter_safetensors"])
    goldens.write_expected(folder, facts, generations, [{} for _ in generations], kept=head_tensors(heads))


def make_demo(folder: Path, demo: Path, minutes: float) -> None:
    """Trained heads for the demo target, on held-out prompts."""
    print("medusa_demo", flush=True)
    target = goldens.load_target(demo / "target")
    tokenizer = Tokenizer.from_file(str(demo / "target" / "tokenizer.json"))
    stream, _ = (demo_data.token_stream(tokenizer, texts) for texts in demo_data.standard_library())
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    heads = Heads(DEMO_HEADS, DEMO_LAYERS, target.lm_head.weight, shared=True)

    def report(step: int, loss: float) -> None:
        if step % 20 == 0:
            print(f"  step {step}: loss {loss:.3f}", flush=True)

    length = DEMO_LENGTH + DEMO_HEADS + 1
    windows = lambda: demo_data.random_windows(stream, DEMO_BATCH, length, generator)  # noqa: E731
    distil(target, heads, windows, Budget(minutes=minutes), report)
    config = dict(medusa_num_heads=DEMO_HEADS, medusa_num_layers=DEMO_LAYERS, base_model_name_or_path="assets/demo/target")
    save_heads(folder / "drafter", heads, torch.bfloat16, **config)
    # What is stored is what is computed with.
    heads = load_heads(folder / "drafter", DEMO_HEADS, DEMO_LAYERS)

    lines = [json.loads(line) for line in (demo / "prompts.jsonl").read_text().splitlines()]
    prompts = {line["id"]: tokenizer.encode(line["prompt"]).ids for line in lines}
    ids = iter(prompts)
    generations, names = [], []
    for _ in range(DEMO_PROMPTS):
        generations.append(goldens.first_clear(target, heads, (prompts[i] for i in ids), draft_tree))
        names.append(dict(prompt_id=next(i for i in prompts if prompts[i] == generations[-1].prompt_ids)))
    facts = dict(target="../../../assets/demo/target", drafters=["drafter"])
    goldens.write_expected(folder, facts, generations, names, kept=head_tensors(heads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("tests/golden"), help="folder that receives a folder a case"
    )
    parser.add_argument("--demo", type=Path, default=Path("assets/demo"), help="the demo pair")
    parser.add_argument("--only", choices=["random", "demo"], help="one case alone")
    parser.add_argument("--minutes", type=float, default=12, help="training of the demo heads")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.only != "demo":
        make_random(args.out / "medusa_random", goldens.load_target(args.out / "llama31_gqa"))
    if args.only != "random":
        make_demo(args.out / "medusa_demo", args.demo, args.minutes)


if __name__ == "__main__":
    main()
