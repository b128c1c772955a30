"""Distil an EAGLE-3 drafter for the demo target, in the layout of the EAGLE authors' checkpoints, in bf16.

    python tools/train_drafter.py --target out/target --out out/drafter

The drafter learns the target's distribution over several unrolled steps, each fed with its own output of the
step before, as when drafting (EAGLE-3's training-time test). 15 minutes on 2 CPU cores: its first choice is
the target's 65 times in 100 on held-out files, at every step.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

import demo_data
import training_loop
from eagle3 import Drafter, DrafterConfig, Variant, save_drafter

BATCH, LENGTH = 6, 256
UNROLL = 5  # draft steps that are trained
STEP_WEIGHT = 0.9  # of each step relative to the one before
DRAFT_VOCAB_SIZE = 1024
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 1e-3, 40
HELD_OUT_BATCHES = 10


def new_drafter(
    target: LlamaForCausalLM, config: DrafterConfig, stream: Tensor, variant: Variant = Variant()
) -> Drafter:
    """An untrained drafter of the most frequent tokens of the stream, its head taken from the target's."""
    drafter = Drafter(config, variant)
    counts = torch.bincount(stream, minlength=config.vocab_size)
    kept = counts.topk(config.draft_vocab_size).indices.sort().values
    drafter.set_draft_vocabulary(kept)
    drafter.lm_head.weight.data.copy_(target.lm_head.weight[kept])
    return drafter


def unrolled_steps(
    target: LlamaForCausalLM, drafter: Drafter, windows: Tensor, unroll: int
) -> tuple[Tensor, Tensor]:
    """Loss and agreement with the target's first choice, each [unroll]; windows [batch, length + unroll + 1]."""
    with torch.no_grad():
        seen = target(windows, output_hidden_states=True, use_cache=False)
        embeddings = target.model.embed_tokens(windows)
    features = drafter.target_features(seen.hidden_states)
    return unrolled_over(drafter, features, embeddings, seen.logits, unroll)


def unrolled_over(
    drafter: Drafter,
    features: Tensor,
    embeddings: Tensor,
    target_logits: Tensor,
    unroll: int,
    is_visual: Tensor | None = None,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement, each [unroll], from what the target makes of windows: [batch, length + unroll + 1, ..] all.

    At step s, row t of a layer stands for drafting s tokens beyond token t: its feature is its own output
    of step s - 1, its token t + 1 + s, its position t + s; it looks at the true pairs up to t (the keys of
    step 0) and at its own keys of the later steps. `is_visual` marks the tokens that are part of a picture, for drafters
    that take those apart; `counted` marks the positions whose predictions matter (default: all).
    """
    length = embeddings.size(1) - unroll - 1
    layers = [drafter.midlayer, *drafter.later_layers]
    feature = drafter.first_features(features[:, :length])
    kept = drafter.target_ids(torch.arange(drafter.config.draft_vocab_size, device=embeddings.device))
    is_future = torch.ones(length, length, device=embeddings.device).triu(1).bool()

    # Of every layer, step by step.
    keys, values = [[] for _ in layers], [[] for _ in layers]
    losses, agreements = [], []
    for step in range(unroll):
        positions = torch.arange(length) + step
        shifted = slice(1 + step, 1 + step + length)
        taken_apart = () if is_visual is None else (is_visual[:, shifted],)
        residual, z = layers[0].enter(feature, embeddings[:, shifted], *taken_apart)
        for i, layer in enumerate(layers):
            if i > 0:
                residual, z = layer.enter(residual)
            query, key, value = layer.project(z, positions)
            keys[i].append(key)
            values[i].append(value)
            text_scores = (query @ keys[i][0].transpose(-1, -2)).masked_fill(is_future, -math.inf)
            own_scores = [(query * key).sum(-1, keepdim=True) for key in keys[i][1:]]
            weights = torch.softmax(
                torch.cat([text_scores, *own_scores], dim=-1) / math.sqrt(query.size(-1)), dim=-1
            )
            attended = weights[..., :length] @ values[i][0]
            for j, value in enumerate(values[i][1:]):
                attended = attended + weights[..., length + j, None] * value
            residual = layer.finish(residual, attended)
        feature = drafter.next_features(residual)

        logits = drafter.logits(residual)
        wanted = target_logits[:, shifted]
        first_choice = wanted.argmax(dim=-1)
        # Rows whose first choice the drafter cannot even name teach it nothing useful.
        useful = drafter.t2d[first_choice] if counted is None else drafter.t2d[first_choice] & counted[:, shifted]
        cross_entropy = -(wanted[..., kept].softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1)
        losses.append((cross_entropy * useful).sum() / useful.sum())
        agrees = (kept[logits.argmax(dim=-1)] == first_choice).float()
        agreements.append(agrees.mean() if counted is None else agrees[counted[:, shifted]].mean())
    return torch.stack(losses), torch.stack(agreements)


def distil(
    target: LlamaForCausalLM,
    drafter: Drafter,
    next_windows: Callable[[], Tensor],
    budget: training_loop.Budget,
    unroll: int = UNROLL,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the drafter on windows [batch, length + unroll + 1] of tokens."""
    weights = STEP_WEIGHT ** torch.arange(unroll)

    def next_loss() -> Tensor:
        losses, _ = unrolled_steps(target, drafter, next_windows(), unroll)
        return (weights.to(losses.device) * losses).sum()

    steppers = training_loop.optimizers(drafter, lambda name: "lm_head" not in name, MUON_RATE, ADAM_RATE)
    training_loop.train(drafter, steppers, next_loss, budget, WARMUP, report)


def demo_config(target: LlamaForCausalLM) -> DrafterConfig:
    """A drafter layer of the target's own shape."""
    shape = target.config
    return DrafterConfig(
        vocab_size=shape.vocab_size,
        draft_vocab_size=DRAFT_VOCAB_SIZE,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_norm_eps,
        rope_theta=shape.rope_parameters["rope_theta"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="folder that train_target.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    training_loop.add_arguments(parser, minutes=15)
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(args.target / "tokenizer.json"))
    stream, held_out = (demo_data.token_stream(tokenizer, texts) for texts in demo_data.standard_library())
    target = LlamaForCausalLM.from_pretrained(args.target, attn_implementation="sdpa", dtype=torch.float32)
    target = target.to(args.device).eval().requires_grad_(False)

    budget = training_loop.set_up(args)
    drafter = new_drafter(target, demo_config(target), stream).to(args.device)
    generator = torch.Generator().manual_seed(args.seed)

    def windows(tokens: Tensor) -> Tensor:
        return demo_data.random_windows(tokens, BATCH, LENGTH + UNROLL + 1, generator).to(args.device)

    def save() -> None:
        limits = dict(max_position_embeddings=target.config.max_position_embeddings)
        tokens = dict(bos_token_id=demo_data.BOS, eos_token_id=demo_data.EOS, pad_token_id=demo_data.EOS)
        save_drafter(args.out, drafter, torch.bfloat16, **limits, **tokens)

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step}, {100 * budget.used(step):.0f} %: loss {loss:.3f}", flush=True)
        if step % 500 == 499:
            save()

    distil(target, drafter, lambda: windows(stream), budget, report=report)
    save()
    with torch.no_grad():
        agreement = (
            sum(
                unrolled_steps(target, drafter, windows(held_out), UNROLL)[1] for _ in range(HELD_OUT_BATCHES)
            )
            / HELD_OUT_BATCHES
        )
    print(
        "held-out agreement with the target's first choice, by draft step:",
        [round(share, 3) for share in agreement.tolist()],
    )


if __name__ == "__main__":
    main()
