"""Train the vision-language target of tests/golden/msd_llava: a LLaVA of 2 M parameters that describes small drawings, in bf16.

    python tools/train_vision_target.py --out tests/golden/msd_llava/target

All parts are trained together from nothing; the loss counts the answers only. The last step measures what share of held-out pictures is described
word for word, and what remains of it when the pictures are blank.
"""

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

import training_loop
import vision_data
from vision_cases import published_name
from vision_data import BOS, CELL, EOS, IMAGE, MEAN, SIDE, SPECIAL_TOKENS, STD, Example

BATCH = 16
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 3e-3, 50
FEATURES = (SIDE // CELL) ** 2
ROPE_THETA = 10000.0
MAX_LENGTH = 512
HELD_OUT = 300  # pictures, a third of each kind
ANSWER_BATCH = 64
LONGEST = 64  # tokens of an answer

TEXT = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 64,
    "hidden_size": 192,
    "intermediate_size": 512,
    "max_position_embeddings": MAX_LENGTH,
    "model_type": "llama",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16",
}
VISION = {
    "hidden_size": 128,
    "image_size": SIDE,
    "intermediate_size": 384,
    "model_type": "clip_vision_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "patch_size": CELL,
    "projection_dim": 128,
    "vocab_size": 1000,
}
# Written to config.json with the two above, as the published LLaVA-1.5 has it.
CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_seq_length": FEATURES,
    "image_token_index": IMAGE,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
FILES = {
    "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS},
    "tokenizer_config.json": {
        "add_bos_token": True,
        "bos_token": SPECIAL_TOKENS[BOS],
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL_TOKENS[EOS],
        "model_max_length": MAX_LENGTH,
        "pad_token": SPECIAL_TOKENS[EOS],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    },
    "preprocessor_config.json": {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(STD),
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIDE},
    },
    "processor_config.json": {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": CELL,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    },
}


def config(vocab_size: int) -> dict:
    """config.json."""
    return CONFIG | dict(text_config=TEXT | dict(vocab_size=vocab_size), vision_config=VISION)


def new_model(vocab_size: int) -> LlavaForConditionalGeneration:
    """The untrained target, in float32."""
    text, vision = (dict(part) for part in (TEXT, VISION))
    text |= dict(vocab_size=vocab_size, rope_parameters=dict(rope_type="default", rope_theta=ROPE_THETA))
    text.pop("torch_dtype")
    outer = {key: value for key, value in CONFIG.items() if key not in ("torch_dtype", "architectures", "model_type")}
    model = LlavaForConditionalGeneration._from_config(
        LlavaConfig(text_config=text, vision_config=vision, **outer), attn_implementation="sdpa", dtype=torch.float32
    )
    # transformers starts a tower with tiny numbers, as if it had been trained already.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.patch_embedding.weight, std=0.04)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.3)
    # Features are taken before the last layer: nothing ever reaches it.
    tower = model.model.vision_tower
    for unused in (tower.encoder.layers[-1], tower.post_layernorm):
        unused.requires_grad_(False)
    return model


def batch_of(tokenizer: Tokenizer, examples: list[Example]) -> dict[str, Tensor]:
    """The model's arguments for texts with their answers, padded on the right; other labels than the answers' are -100."""
    rows, labels = [], []
    for example in examples:
        prompt = vision_data.prompt_tokens(tokenizer, example.prompt, FEATURES)
        answer = tokenizer.encode(f" {example.answer}", add_special_tokens=False).ids + [EOS]
        rows.append(prompt + answer)
        labels.append([-100] * len(prompt) + answer)
    longest = max(map(len, rows))
    return dict(
        input_ids=torch.tensor([row + [EOS] * (longest - len(row)) for row in rows]),
        pixel_values=vision_data.pixel_values([example.picture for example in examples]),
        labels=torch.tensor([row + [-100] * (longest - len(row)) for row in labels]),
    )


def answer_loss(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Mean nats a token of the answers. Padding comes last and no earlier token sees it."""
    hidden = model.model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], use_cache=False)[0]
    wanted = batch["labels"][:, 1:]
    logits = model.lm_head(hidden[:, :-1][wanted != -100])
    return F.cross_entropy(logits, wanted[wanted != -100])


@torch.no_grad()
def greedy_answers(
    model: LlavaForConditionalGeneration, tokenizer: Tokenizer, examples: list[Example], blank: bool = False
) -> list[tuple[list[int], list[int]]]:
    """The tokens of every prompt and of the model's answer to it; `blank` shows a white sheet instead of the picture."""
    white = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    prompts = [vision_data.prompt_tokens(tokenizer, example.prompt, FEATURES) for example in examples]
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    answers: dict[int, list[int]] = {}
    for length, group in by_length.items():
        for start in range(0, len(group), ANSWER_BATCH):
            part = group[start : start + ANSWER_BATCH]
            ids = torch.tensor([prompts[i] for i in part])
            pixels = vision_data.pixel_values([white if blank else examples[i].picture for i in part])
            mask = torch.ones_like(ids)
            rows = model.generate(
                input_ids=ids, attention_mask=mask, pixel_values=pixels, do_sample=False, max_new_tokens=LONGEST
            )
            for i, row in zip(part, rows[:, length:].tolist()):
                answers[i] = row[: row.index(EOS) + 1] if EOS in row else row
    return [(prompt, answers[i]) for i, prompt in enumerate(prompts)]


def exact_answers(
    model: LlavaForConditionalGeneration, tokenizer: Tokenizer, examples: list[Example], blank: bool = False
) -> dict[str, float]:
    """The share of answers that are right word for word, by kind and of all."""
    right: dict[str, list[bool]] = {}
    for example, (_, answer) in zip(examples, greedy_answers(model, tokenizer, examples, blank)):
        is_right = tokenizer.decode(answer) == f" {example.answer}" and answer[-1] == EOS
        for kind in (example.kind, "all"):
            right.setdefault(kind, []).append(is_right)
    return {kind: round(sum(found) / len(found), 3) for kind, found in right.items()}


def held_out_examples(count: int) -> list[Example]:
    """The same at every call."""
    rng = random.Random(1)
    kinds = list(vision_data.DRAWN)
    return [vision_data.example(rng, True, kinds[i % len(kinds)]) for i in range(count)]


def save(folder: Path, model: LlavaForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """bf16 weights under the published names, and the configuration files."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "language_model.model.", 1).removeprefix("model.")
        name = "language_model.lm_head.weight" if name == "lm_head.weight" else name
        state[published_name(name)] = tensor.to("cpu", torch.bfloat16).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in (FILES | {"config.json": config(tokenizer.get_vocab_size())}).items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def load_target(folder: Path) -> LlavaForConditionalGeneration:
    """The target in float32, whatever it is stored in."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--start", type=Path, help="folder of an earlier run whose weights to go on from")
    training_loop.add_arguments(parser, minutes=25)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    tokenizer = vision_data.new_tokenizer()
    budget = training_loop.set_up(args)
    model = new_model(tokenizer.get_vocab_size())
    if args.start is not None:
        model.load_state_dict(load_target(args.start).state_dict())
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters, {tokenizer.get_vocab_size()} words", flush=True)
    rng = random.Random(args.seed + 1000)

    def next_loss() -> Tensor:
        return answer_loss(model, batch_of(tokenizer, [vision_data.example(rng, False) for _ in range(BATCH)]))

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step}, {100 * budget.used(step):.0f} %: loss {loss:.4f}", flush=True)
        if step % 250 == 249:
            save(args.out, model, tokenizer)

    hidden = lambda name: not any(part in name for part in ("embed", "lm_head"))  # noqa: E731
    training_loop.train(model, training_loop.optimizers(model, hidden, MUON_RATE, ADAM_RATE), next_loss, budget, WARMUP, report)
    save(args.out, model, tokenizer)
    model = load_target(args.out)
    examples = held_out_examples(HELD_OUT)
    print("held-out pictures described exactly:", exact_answers(model, tokenizer, examples))
    print("the same with blank pictures:", exact_answers(model, tokenizer, examples, blank=True))


if __name__ == "__main__":
    main()
