"""Make tests/golden/eagle1_*/: what the published EAGLE-1 layer drafts under the EAGLE-2 tree, and how much of it is accepted.

    python tools/make_eagle1_goldens.py [--out tests/golden]

As make_eagle3_goldens.py, for `eagle1.Drafter`. `eagle1_random`: distilled for some seconds on samples of the random target
tests/golden/llama31_gqa, with a bias in fc and, as its authors leave it out, no `bias` in config.json. `eagle1_demo`: distilled for a quarter of an hour
on the corpus of the demo target in assets/demo, without a bias or a copy of the embedding; stored in bfloat16, computed in float32.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import demo_data
import eagle1
import make_eagle3_goldens as goldens
import train_drafter
from eagle3 import DrafterConfig
from training_loop import Budget

RANDOM_DRAFTER = DrafterConfig(**vars(goldens.RANDOM_DRAFTER) | {"draft_vocab_size": 160})
DEMO_PROMPTS = 3
DEMO_MINUTES, DEMO_BATCH, DEMO_LENGTH = 15, 6, 256


def make_random(folder: Path, target: LlamaForCausalLM) -> None:
    """The random pair."""
    print("eagle1_random", flush=True)
    torch.manual_seed(0)
    texts = goldens.sampled_texts(target)
    drafter = eagle1.Drafter(RANDOM_DRAFTER, target.lm_head.weight)
    torch.nn.init.normal_(drafter.midlayer.fc.bias, std=0.1)
    budget = Budget(minutes=0, steps=goldens.RANDOM_STEPS)
    train_drafter.distil(target, drafter, lambda: goldens.random_windows(texts), budget)
    drafter.requires_grad_(False)
    extra = dict(bias=None, rope_theta=None, max_position_embeddings=512)
    embedding = target.model.embed_tokens.weight
    eagle1.save_drafter(folder / "drafter", drafter, torch.float32, embedding, **extra)
    reloaded = eagle1.load_drafter(folder / "drafter", target.lm_head.weight)
    assert torch.equal(reloaded.midlayer.fc.bias, drafter.midlayer.fc.bias)

    generator = torch.Generator().manual_seed(0)
    vocab = RANDOM_DRAFTER.vocab_size
    prompts = lambda length: (torch.randint(vocab, (length,), generator=generator).tolist() for _ in range(100))  # noqa: E731
    generations = [goldens.first_clear(target, drafter, prompts(length)) for length in goldens.RANDOM_PROMPT_LENGTHS]
    facts = dict(target="../llama31_gqa", drafters=["drafter"])
    goldens.write_expected(folder, facts, generations, [{} for _ in generations])


def make_demo(folder: Path, demo: Path) -> None:
    """A trained drafter for the demo target, on held-out prompts."""
    print("eagle1_demo", flush=True)
    target = goldens.load_target(demo / "target")
    tokenizer = Tokenizer.from_file(str(demo / "target" / "tokenizer.json"))
    stream, _ = (demo_data.token_stream(tokenizer, texts) for texts in demo_data.standard_library())
    generator = torch.Generator().manual_seed(0)
    length = DEMO_LENGTH + train_drafter.UNROLL + 1
    torch.manual_seed(0)
    config = DrafterConfig(**vars(train_drafter.demo_config(target)) | {"draft_vocab_size": target.config.vocab_size})
    drafter = eagle1.Drafter(config, target.lm_head.weight, fc_bias=False)

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"  step {step}: loss {loss:.3f}", flush=True)

    windows = lambda: demo_data.random_windows(stream, DEMO_BATCH, length, generator)  # noqa: E731
    train_drafter.distil(target, drafter, windows, Budget(minutes=DEMO_MINUTES, steps=None), report=report)
    limits = dict(max_position_embeddings=target.config.max_position_embeddings)
    eagle1.save_drafter(folder / "drafter", drafter, torch.bfloat16, **limits)
    # What is stored is what is computed with.
    drafter = eagle1.load_drafter(folder / "drafter", target.lm_head.weight)

    lines = [json.loads(line) for line in (demo / "prompts.jsonl").read_text().splitlines()]
    prompts = {line["id"]: tokenizer.encode(line["prompt"]).ids for line in lines}
    ids = iter(prompts)
    generations, names = [], []
    for _ in range(DEMO_PROMPTS):
        generations.append(goldens.first_clear(target, drafter, (prompts[i] for i in ids)))
        names.append(dict(prompt_id=next(i for i in prompts if prompts[i] == generations[-1].prompt_ids)))
    facts = dict(target="../../../assets/demo/target", drafters=["drafter"])
    goldens.write_expected(folder, facts, generations, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("tests/golden"), help="folder that receives a folder a case"
    )
    parser.add_argument("--demo", type=Path, default=Path("assets/demo"), help="the demo pair")
    parser.add_argument("--only", choices=["random", "demo"], help="one case alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.only != "demo":
        make_random(args.out / "eagle1_random", goldens.load_target(args.out / "llama31_gqa"))
    if args.only != "random":
        make_demo(args.out / "eagle1_demo", args.demo)


if __name__ == "__main__":
    main()
