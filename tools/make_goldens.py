"""Make tests/golden/<case>/: tiny random targets, and the logits and greedy tokens of transformers for them.

    python tools/make_goldens.py [--out tests/golden] [--case NAME]...

Everything is float32 on the CPU with eager attention and without a K/V cache, so the expected numbers depend
on no kernel choice. A case is redrawn with the next seed until every greedy decision is clear (see
`Expected.is_clear`): a correct runtime then must produce the same tokens whatever the order of its sums. The
file format is described in tests/golden/README.md.
"""

import argparse
import itertools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from golden_files import versions, write_json

PROMPT_LENGTHS = (1, 7, 33, 150)
ALL_POSITIONS_LENGTH = 33  # the prompt whose logits are kept at every position
NEW_TOKENS = 48
MIN_MARGIN = 1e-3  # between the best and the second best logit, at every step
MIN_DISTINCT = 12  # different tokens in each generation: a constant loop proves little
LOGIT_SPREAD = 3.0  # standard deviation of the logits


@dataclass(frozen=True)
class Case:
    """A model shape, and how its checkpoint is written."""

    name: str
    config: dict
    model_type: str = "llama"
    shards: int = 1
    # What the transformers-4 file says besides, and the only keys it has (None: all that transformers 4 wrote).
    older_config: dict = field(default_factory=dict)
    older_keys: tuple[str, ...] | None = None


# The keys of published Vicuna configs, which transformers 4.28 wrote.
LEGACY_KEYS = (
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
)

def rope(theta: float, rope_type: str = "default", **more: float) -> dict:
    """Rotary parameters as transformers 5 writes them."""
    return dict(rope_type=rope_type, rope_theta=theta, **more)


# "Trained" on 64 positions: all three bands of frequencies (kept, blended, divided) occur.
LLAMA3_BANDS = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)


def shape(**changes: object) -> dict:
    """The config of a small model, changed where a case is about something else."""
    common = dict(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters=rope(1000000.0),
        tie_word_embeddings=False,
    )
    return common | changes


CASES = (
    Case(
        "llama2_mha",
        shape(
            vocab_size=192,
            intermediate_size=112,
            num_hidden_layers=3,
            rms_norm_eps=1e-5,
            rope_parameters=rope(10000.0),
        ),
    ),
    Case(
        # Seven layers: the three layers an EAGLE-3 drafter listens to (2, L/2, L-3) are then all different.
        "llama31_gqa",
        shape(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=7,
            num_attention_heads=4,
            head_dim=32,
            rms_norm_eps=1e-5,
            rope_parameters=rope(500000.0, rope_type="llama3", factor=8.0, **LLAMA3_BANDS),
        ),
    ),
    Case(
        "tied_head",
        shape(
            hidden_size=96,
            intermediate_size=112,
            num_key_value_heads=1,
            head_dim=64,
            rope_parameters=rope(10000.0, rope_type="linear", factor=2.0),
            tie_word_embeddings=True,
        ),
    ),
    Case(
        "head_dim128",
        shape(
            vocab_size=176,
            hidden_size=48,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=128,
            rms_norm_eps=1e-5,
            rope_parameters=rope(500000.0),
        ),
        shards=2,
    ),
    Case(
        "vicuna_16k",
        shape(
            num_attention_heads=2, rms_norm_eps=1e-5, rope_parameters=rope(10000.0, rope_type="linear", factor=4.0)
        ),
        older_keys=LEGACY_KEYS,
    ),
    Case(
        "llama32_tied",
        shape(
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            rms_norm_eps=1e-5,
            rope_parameters=rope(500000.0, rope_type="llama3", factor=32.0, **LLAMA3_BANDS),
            tie_word_embeddings=True,
        ),
    ),
    Case(
        "qwen2",
        shape(num_hidden_layers=3, num_key_value_heads=1, tie_word_embeddings=True, use_sliding_window=False),
        model_type="qwen2",
        # Published configs name a window that is not used.
        older_config=dict(sliding_window=16, max_window_layers=2),
    ),
    Case(
        "qwen3",
        shape(hidden_size=48, num_attention_heads=4, head_dim=32),
        model_type="qwen3",
    ),
    Case(
        # The first layer sees everything, the others 40 keys.
        "qwen3_windows",
        shape(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_key_value_heads=1,
            head_dim=32,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=40,
            max_window_layers=1,
        ),
        model_type="qwen3",
    ),
    Case(
        # "Trained" on 64 positions: pairs that are kept, blended and divided; the longer prompts and generations are beyond it.
        "qwen2_yarn",
        shape(
            num_key_value_heads=1,
            use_sliding_window=False,
            rope_parameters=rope(10000.0, rope_type="yarn", factor=8.0, original_max_position_embeddings=64),
        ),
        model_type="qwen2",
    ),
    Case(
        "mistral_window",
        shape(
            hidden_size=48,
            num_attention_heads=4,
            head_dim=32,
            rms_norm_eps=1e-5,
            rope_parameters=rope(10000.0),
            sliding_window=24,
        ),
        model_type="mistral",
    ),
)

# What every case shares. No end-of-sequence token: a generation always has NEW_TOKENS tokens.
COMMON = dict(max_position_embeddings=512, bos_token_id=None, eos_token_id=None, pad_token_id=None)


@dataclass(frozen=True)
class Expected:
    """What the model says about one prompt."""

    prompt_ids: list[int]
    greedy_ids: list[int]
    prompt_logits: torch.Tensor  # [prompt, vocab]
    min_margin: float

    def is_clear(self) -> bool:
        """Whether the greedy tokens are beyond doubt, and varied enough to prove something."""
        return self.min_margin > MIN_MARGIN and len(set(self.greedy_ids)) >= MIN_DISTINCT


def random_model(case: Case, seed: int) -> PreTrainedModel:
    """A model of spread logits and selective attention, unlike with transformers' small initial weights."""
    generator = torch.Generator().manual_seed(seed)
    config = AutoConfig.for_model(case.model_type, **case.config, **COMMON, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.eval().requires_grad_(False)
    for name, weight in model.named_parameters():  # a tied head is listed once, as the embedding
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith(".bias"):
            weight.copy_(0.5 * noise)
        elif weight.dim() == 1:
            weight.copy_(1.0 + 0.2 * noise)
        elif "embed_tokens" in name and not config.tie_word_embeddings:
            weight.copy_(noise)
        else:
            weight.copy_(noise * gain(name) / weight.shape[1] ** 0.5)
    return model


def gain(name: str) -> float:
    """How much larger than its input a matrix makes its output."""
    if "lm_head" in name or "embed_tokens" in name:
        return LOGIT_SPREAD
    if "o_proj" in name or "down_proj" in name:
        return 3.0  # layers outweigh the embedding, else a tied head repeats its last token for ever
    if "q_proj" in name or "k_proj" in name:
        return 1.5  # selective attention
    return 1.0


def greedy(model: PreTrainedModel, prompt_ids: list[int]) -> Expected:
    """Extend the prompt by NEW_TOKENS tokens, running the whole text again for each."""
    ids, margins = list(prompt_ids), []
    for step in range(NEW_TOKENS):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        if step == 0:
            prompt_logits = logits.contiguous()
        best, second = logits[-1].topk(2).values.tolist()
        margins.append(best - second)
        ids.append(int(logits[-1].argmax()))
    return Expected(prompt_ids, ids[len(prompt_ids) :], prompt_logits, min(margins))


def transformers4_config(case: Case, config: dict) -> dict:
    """The same configuration as transformers 4 spells it, and with it the published checkpoints."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] == "linear":
        old["rope_scaling"] = {"type": "linear", "factor": rope["factor"]}  # the key before transformers 4.45
    old["torch_dtype"] = config["dtype"]
    old["transformers_version"] = "4.46.0"
    if old.get("head_dim") == old["hidden_size"] // old["num_attention_heads"]:
        del old["head_dim"]
    if case.model_type == "llama" and old["num_key_value_heads"] == old["num_attention_heads"]:
        del old["num_key_value_heads"]
    old.update(case.older_config)
    return {key: value for key, value in old.items() if case.older_keys is None or key in case.older_keys}


def write_case(
    folder: Path, case: Case, seed: int, model: PreTrainedModel, expected: list[Expected]
) -> None:
    """Checkpoint, the configuration in both spellings, and the expected numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    size = sum(weight.numel() * 4 for weight in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // case.shards + 4096 if case.shards > 1 else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.transformers4.json").write_text(
        json.dumps(transformers4_config(case, config), indent=2) + "\n"
    )

    tensors = {f"last_logits.{len(e.prompt_ids)}": e.prompt_logits[-1].clone() for e in expected}
    for e in expected:
        if len(e.prompt_ids) == ALL_POSITIONS_LENGTH:
            tensors[f"all_logits.{ALL_POSITIONS_LENGTH}"] = e.prompt_logits
    save_file(tensors, folder / "expected.safetensors")
    prompts = [
        dict(
            length=len(e.prompt_ids),
            min_margin=round(e.min_margin, 6),
            prompt_ids=e.prompt_ids,
            greedy_ids=e.greedy_ids,
        )
        for e in expected
    ]
    write_json(
        folder / "expected.json", dict(case=case.name, seed=seed, versions=versions(), prompts=prompts)
    )


def check_reload(folder: Path, expected: Expected) -> None:
    """Both spellings of the configuration, read back by transformers, must give the very same logits."""
    written = folder / "config.json"
    new_spelling = written.read_text()
    try:
        for spelling in (new_spelling, (folder / "config.transformers4.json").read_text()):
            written.write_text(spelling)
            model = AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32
            ).eval()
            with torch.no_grad():
                logits = model(torch.tensor([expected.prompt_ids]), use_cache=False).logits[0]
            assert torch.equal(logits, expected.prompt_logits), f"{folder}: reloading changed the logits"
    finally:
        written.write_text(new_spelling)


def make_case(case: Case, folder: Path) -> None:
    """Redraw weights and prompts until all decisions are clear, then write the case."""
    for seed in itertools.count():
        model = random_model(case, seed)
        generator = torch.Generator().manual_seed(seed)
        vocab = case.config["vocab_size"]
        prompts = [torch.randint(vocab, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]
        expected = [greedy(model, prompt) for prompt in prompts]
        if all(e.is_clear() for e in expected):
            break
    write_case(folder, case, seed, model, expected)
    check_reload(folder, expected[-1])
    distinct = [len(set(e.greedy_ids)) for e in expected]
    margin = min(e.min_margin for e in expected)
    print(f"{case.name}: seed {seed}, smallest margin {margin:.4f}, distinct tokens {distinct}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("tests/golden"), help="folder that receives a folder a case"
    )
    parser.add_argument(
        "--case", action="append", choices=[case.name for case in CASES], help="only this case"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for case in CASES:
        if args.case is None or case.name in args.case:
            make_case(case, args.out / case.name)


if __name__ == "__main__":
    main()
