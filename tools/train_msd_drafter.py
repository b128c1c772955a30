"""Distil an MSD drafter for the vision-language target of tests/golden/msd_llava, on what the target says of training pictures, in bf16.

    python tools/train_msd_drafter.py --target tests/golden/msd_llava/target --out tests/golden/msd_llava/drafter

As train_drafter.py: several unrolled steps, each fed with its own output. Only predictions of answers count.
"""

import argparse
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlavaForConditionalGeneration

import msd
import training_loop
import vision_data
from eagle3 import DrafterConfig
from train_drafter import ADAM_RATE, MUON_RATE, STEP_WEIGHT, UNROLL, WARMUP, unrolled_over
from train_vision_target import greedy_answers, held_out_examples, load_target
from vision_data import EOS, IMAGE, Example

TEXTS = 1536
BATCH = 24


def drafter_config(target: LlavaForConditionalGeneration) -> DrafterConfig:
    """A drafter layer of the target's own shape."""
    shape = target.config.text_config
    return DrafterConfig(
        vocab_size=shape.vocab_size,
        draft_vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_norm_eps,
        rope_theta=shape.rope_parameters["rope_theta"],
    )


def spoken(
    target: LlavaForConditionalGeneration, tokenizer: Tokenizer, examples: list[Example]
) -> list[tuple[Example, list[int], int]]:
    """Each example with its prompt and the target's own greedy answer as tokens, and the length of the prompt."""
    answers = greedy_answers(target, tokenizer, examples)
    return [(example, prompt + answer, len(prompt)) for example, (prompt, answer) in zip(examples, answers)]


def steps_over(
    target: LlavaForConditionalGeneration, drafter: msd.Drafter, texts: list[tuple[Example, list[int], int]]
) -> tuple[Tensor, Tensor]:
    """`unrolled_over` on texts with pictures, padded on the right."""
    longest = max(len(ids) for _, ids, _ in texts) + UNROLL + 1
    ids = torch.tensor([ids + [EOS] * (longest - len(ids)) for _, ids, _ in texts])
    # Position p predicts token p + 1: from the prompt's last to the one before the end.
    counted = torch.tensor([[start - 1 <= p < len(ids) - 1 for p in range(longest)] for _, ids, start in texts])
    with torch.no_grad():
        pixels = vision_data.pixel_values([example.picture for example, _, _ in texts])
        visual = torch.cat(target.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output)
        embeddings = target.get_input_embeddings()(ids).masked_scatter((ids == IMAGE)[..., None], visual)
        features = target.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        logits = target.lm_head(features)
    return unrolled_over(drafter, features, embeddings, logits, UNROLL, ids == IMAGE, counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="folder that train_vision_target.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    training_loop.add_arguments(parser, minutes=8)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    tokenizer = Tokenizer.from_file(str(args.target / "tokenizer.json"))
    target = load_target(args.target)
    rng = random.Random(args.seed + 2000)
    if args.threads:
        torch.set_num_threads(args.threads)
    texts = spoken(target, tokenizer, [vision_data.example(rng, False) for _ in range(TEXTS)])
    print(f"{len(texts)} answers", flush=True)
    budget = training_loop.set_up(args)
    drafter = msd.Drafter(drafter_config(target), target.lm_head.weight, is_qwen=False)
    weights = STEP_WEIGHT ** torch.arange(UNROLL)

    def next_loss() -> Tensor:
        losses, _ = steps_over(target, drafter, rng.sample(texts, BATCH))
        return (weights * losses).sum()

    def save() -> None:
        limits = dict(max_position_embeddings=target.config.text_config.max_position_embeddings)
        msd.save_drafter(args.out, drafter, torch.bfloat16, target.get_input_embeddings().weight, **limits)

    def report(step: int, loss: float) -> None:
        if step % 25 == 0:
            print(f"step {step}, {100 * budget.used(step):.0f} %: loss {loss:.3f}", flush=True)
        if step % 200 == 199:
            save()

    training_loop.train(
        drafter, training_loop.optimizers(drafter, lambda name: True, MUON_RATE, ADAM_RATE), next_loss, budget, WARMUP, report
    )
    save()
    with torch.no_grad():
        _, agreement = steps_over(target, drafter, spoken(target, tokenizer, held_out_examples(48)))
    shares = [round(share, 3) for share in agreement.tolist()]
    print("held-out agreement with the target's first choice, by draft step:", shares)


if __name__ == "__main__":
    main()
