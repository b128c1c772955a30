"""Train the demo target: a 9 M parameter Llama on Python's standard library, and its tokenizer, in bf16.

    python tools/train_target.py --out out/target

38 minutes on 2 CPU cores reach 2.64 nats a token on held-out files. The geometry is fixed:
assets/demo/MODEL_CARD.md says why.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import demo_data
import training_loop

BATCH, LENGTH = 8, 384
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 3e-3, 60
HELD_OUT_BATCHES = 6

# Written to config.json as it stands.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": demo_data.VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 3.2e-4,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": demo_data.BOS,
    "eos_token_id": demo_data.EOS,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": demo_data.SPECIAL_TOKENS[demo_data.BOS],
    "eos_token": demo_data.SPECIAL_TOKENS[demo_data.EOS],
    "model_max_length": CONFIG["max_position_embeddings"],
    "clean_up_tokenization_spaces": False,
}


def new_model() -> LlamaForCausalLM:
    """The untrained target, in float32."""
    config = LlamaConfig.from_dict({**CONFIG, "torch_dtype": "float32"})
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def next_token_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Mean nats a token."""
    logits = model(windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: Tensor, device: str) -> float:
    """The loss on windows that are the same at every call."""
    generator = torch.Generator().manual_seed(1)
    losses = [
        next_token_loss(
            model, demo_data.random_windows(stream, BATCH, LENGTH + 1, generator).to(device)
        ).item()
        for _ in range(HELD_OUT_BATCHES)
    ]
    return sum(losses) / len(losses)


def save(folder: Path, model: LlamaForCausalLM) -> None:
    """bf16 weights (the tied head is stored once) and the configuration files."""
    tensors = {
        name: t.to("cpu", torch.bfloat16).contiguous()
        for name, t in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": demo_data.BOS, "eos_token_id": demo_data.EOS},
        "tokenizer_config.json": TOKENIZER_CONFIG,
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    training_loop.add_arguments(parser, minutes=38)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    train_texts, held_out_texts = demo_data.standard_library()
    tokenizer = demo_data.train_tokenizer(train_texts)
    tokenizer.save(str(args.out / "tokenizer.json"))
    stream, held_out = demo_data.token_stream(tokenizer, train_texts), demo_data.token_stream(
        tokenizer, held_out_texts
    )
    print(f"{len(train_texts)} files, {len(stream)} tokens to train on", flush=True)
    print(f"{len(held_out_texts)} files, {len(held_out)} tokens held out", flush=True)

    budget = training_loop.set_up(args)
    model = new_model().to(args.device)
    generator = torch.Generator().manual_seed(args.seed)

    def next_loss() -> Tensor:
        return next_token_loss(
            model, demo_data.random_windows(stream, BATCH, LENGTH + 1, generator).to(args.device)
        )

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step}, {100 * budget.used(step):.0f} %: loss {loss:.3f}", flush=True)
        if step % 500 == 499:
            save(args.out, model)

    steppers = training_loop.optimizers(model, lambda name: "embed_tokens" not in name, MUON_RATE, ADAM_RATE)
    training_loop.train(model, steppers, next_loss, budget, WARMUP, report)
    save(args.out, model)
    print(f"held-out loss {held_out_loss(model, held_out, args.device):.3f} nats a token")


if __name__ == "__main__":
    main()
