"""Make tests/golden/msd_llava/expected.* and tests/golden/msd_qwen2_vl/: what MSD drafters draft under the EAGLE-2 tree, and how much of it is accepted.

    python tools/make_msd_goldens.py [--out tests/golden] [--only llava|qwen2_vl]

As make_eagle1_goldens.py, for `msd.Drafter`; msd.py says how pairs are shifted around pictures. `msd_llava`: the pair that train_vision_target.py and
train_msd_drafter.py wrote, on held-out pictures, each answered to its end. `msd_qwen2_vl`: a drafter with Qwen's layer for the random target
tests/golden/qwen2_vl, distilled for some seconds on samples of it, in float32. check_msd_goldens.py compares both with layers of transformers.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

import make_eagle3_goldens as goldens
import msd
import train_vision_target
import training_loop
import vision_data
from eagle3 import DrafterConfig
from eagle3_reference import draft_tree, generate
from make_vision_goldens import draw_prompts
from train_drafter import ADAM_RATE, MUON_RATE, STEP_WEIGHT, UNROLL, WARMUP, unrolled_over
from vision_cases import CASES, IMAGE_ID, TEXT_IDS, VISION_END_ID, VISION_START_ID
from vision_pictures import image_processor, look_at

PER_KIND = 2  # prompts of msd_llava for each kind of picture
TRIES = 100
MIN_EFFECT = 0.01  # of taking pictures apart on the logits that the first tree grows from, relative to the largest

QWEN_PROMPTS = ("text", "exact", "two", "long")
QWEN_NEW_TOKENS = 48
QWEN_STEPS, QWEN_BATCH, QWEN_TEXTS, QWEN_SAID = 300, 12, 96, 64
QWEN_DRAFTER = DrafterConfig(
    vocab_size=128,
    draft_vocab_size=128,
    hidden_size=128,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
)


@dataclass(frozen=True)
class Seen:
    """A picture as the target's arguments, and what the target makes of it."""

    pixels: dict[str, Tensor]
    features: Tensor  # [tokens, hidden]


@dataclass(frozen=True)
class Question:
    """A prompt with pictures."""

    facts: dict  # what expected.json says of it first
    prompt_ids: list[int]  # one placeholder a picture
    pictures: list[Seen]
    image_id: int

    def expanded_ids(self) -> list[int]:
        """One placeholder a feature."""
        counts = iter(len(picture.features) for picture in self.pictures)
        return [i for token in self.prompt_ids for i in [token] * (next(counts) if token == self.image_id else 1)]

    def visual(self) -> dict[int, Tensor]:
        """What stands at the positions of pictures."""
        places = [t for t, token in enumerate(self.expanded_ids()) if token == self.image_id]
        return dict(zip(places, [row for picture in self.pictures for row in picture.features], strict=True))


@torch.no_grad()
def see(target: PreTrainedModel, question: Question, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Logits [len, vocab] and features (after the final norm) [len, hidden] of a text that begins with the question."""
    batch = torch.tensor([ids])
    found = dict(input_ids=batch)
    if question.pictures:
        for key in question.pictures[0].pixels:
            found[key] = torch.cat([picture.pixels[key] for picture in question.pictures])
        if "image_grid_thw" in found:
            found["mm_token_type_ids"] = (batch == question.image_id).int()
    hidden = target.model(**found, use_cache=False).last_hidden_state[0]
    return target.lm_head(hidden), hidden


def answer(target: PreTrainedModel, drafter: msd.Drafter, question: Question, num_new: int | None) -> goldens.Generation:
    """Let the target answer, to its end-of-sequence token if `num_new` is not given, then draft along the answer.

    The last round is not cut short: the text goes on beyond the answer.
    """
    ids = question.expanded_ids()
    start = len(ids)
    while num_new is None or len(ids) < start + num_new + goldens.SHAPE.depth + 2:
        ids.append(int(see(target, question, ids)[0][-1].argmax()))
        if num_new is None and ids[-1] == vision_data.EOS:
            num_new = len(ids) - start
    logits, features = see(target, question, ids)
    logits = logits[start - 1 : -1]
    best = logits.topk(2).values
    margin = float((best[:, 0] - best[:, 1]).min())
    table = target.get_input_embeddings().weight
    rounds = generate(drafter, table, features, ids, start, num_new, goldens.SHAPE, question.visual())
    if question.pictures:  # as EAGLE-1 would: fc on the placeholder's own embedding
        plain = draft_tree(drafter, table, features[:start], ids[: start + 1], goldens.SHAPE)
        parted = rounds[0].tree.text_logits[-1]
        effect = (plain.text_logits[-1] - parted).abs().max() / parted.abs().max()
        assert effect > MIN_EFFECT, f"taking pictures apart changes the logits by {effect} only"
    said = ids[start : start + num_new]
    return goldens.Generation(question.prompt_ids, said, logits[0].clone(), features[:start], margin, rounds)


def first_clear(
    target: PreTrainedModel, drafter: msd.Drafter, questions: Iterator[Question], num_new: int | None
) -> tuple[Question, goldens.Generation]:
    """The first question without a close decision, and its answer."""
    for question in questions:
        generation = answer(target, drafter, question, num_new)
        problem = generation.problem(eos=None)
        if problem is None:
            accepted = [len(turn.accepted) for turn in generation.rounds]
            print(f"  {question.facts}: accepted {accepted}", flush=True)
            return question, generation
        print(f"  skipped {question.facts}: {problem}", flush=True)
    raise SystemExit("no prompt is left")


def write(folder: Path, facts: dict, found: list[tuple[Question, goldens.Generation]]) -> None:
    """The layout of the EAGLE cases, and what pictures add to it."""
    names = [
        question.facts | dict(new_tokens=len(generation.greedy_ids), expanded_ids=question.expanded_ids())
        for question, generation in found
    ]
    generations = [generation for _, generation in found]
    goldens.write_expected(folder, facts, generations, names, new_tokens=None)
    tensors = load_file(folder / "expected.safetensors")
    for i, (question, generation) in enumerate(found):
        tensors[f"prefill_logits.{i}"] = generation.rounds[0].tree.text_logits.clone()
    save_file(tensors, folder / "expected.safetensors")
    lengths = [len(turn.accepted) for generation in generations for turn in generation.rounds]
    print(f"  mean accepted length {sum(lengths) / len(lengths):.3f} over {len(lengths)} rounds", flush=True)


def make_llava(folder: Path) -> None:
    """The trained pair on held-out pictures; writes those and prompts.jsonl too."""
    print("msd_llava", flush=True)
    target = train_vision_target.load_target(folder / "target")
    drafter = msd.load_drafter(folder / "drafter", target.lm_head.weight)
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder / "target")
    rng, numbers = random.Random(5), iter(range(TRIES))
    scratch = folder / "scratch.png"

    def questions(kind: str, number: int) -> Iterator[Question]:
        for _ in range(TRIES):
            example = vision_data.example(rng, True, kind)
            example.picture.save(scratch, optimize=True)
            pixels = dict(processor(images=[Image.open(scratch)], return_tensors="pt"))
            with torch.no_grad():
                features = target.model.get_image_features(**pixels, return_dict=True).pooler_output[0]
            facts = dict(picture=f"{kind}{number}.png", prompt=example.prompt, wanted=example.answer)
            yield Question(facts, tokenizer.encode(example.prompt).ids, [Seen(pixels, features)], vision_data.IMAGE)

    found, lines = [], []
    for kind in vision_data.DRAWN:
        for number in range(PER_KIND):
            question, generation = first_clear(target, drafter, questions(kind, number), None)
            picture, prompt, wanted = (question.facts.pop(key) for key in ("picture", "prompt", "wanted"))
            scratch.rename(folder / picture)
            said = tokenizer.decode(generation.greedy_ids)
            line = dict(id=next(numbers), picture=picture, prompt=prompt, wanted=f" {wanted}", said=said)
            lines.append(json.dumps(line) + "\n")
            question.facts.update(prompt_id=line["id"], picture=picture)
            found.append((question, generation))
    scratch.unlink(missing_ok=True)
    (folder / "prompts.jsonl").write_text("".join(lines))
    write(folder, dict(target="target", drafters=["drafter"]), found)


def qwen_texts(
    target: PreTrainedModel, pictures: dict[str, Seen], generator: torch.Generator
) -> list[tuple[Tensor, Seen, int]]:
    """What the random target says after pictures: rows of tokens, their picture, and the length of their prompts."""
    found = []
    for picture in pictures.values():
        text = lambda length: torch.randint(TEXT_IDS, (QWEN_TEXTS, length), generator=generator)  # noqa: E731
        place = [VISION_START_ID] + [IMAGE_ID] * len(picture.features) + [VISION_END_ID]
        prompts = torch.cat([text(5), torch.tensor(place).expand(QWEN_TEXTS, -1), text(9)], dim=1)
        rows = target.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            mm_token_type_ids=(prompts == IMAGE_ID).int(),
            pixel_values=picture.pixels["pixel_values"].repeat(QWEN_TEXTS, 1),
            image_grid_thw=picture.pixels["image_grid_thw"].repeat(QWEN_TEXTS, 1),
            do_sample=True,
            temperature=0.7,
            top_k=0,
            max_new_tokens=QWEN_SAID,
            suppress_tokens=list(range(TEXT_IDS, target.config.text_config.vocab_size)),
        )
        found.append((rows, picture, prompts.size(1)))
    return found


def distil_qwen(target: PreTrainedModel, drafter: msd.Drafter, texts: list[tuple[Tensor, Seen, int]]) -> None:
    """Train the drafter on what follows the prompts."""
    weights = STEP_WEIGHT ** torch.arange(UNROLL)

    def next_loss() -> Tensor:
        all_rows, picture, start = texts[int(torch.randint(len(texts), ()))]
        rows = all_rows[torch.randint(len(all_rows), (QWEN_BATCH,))]
        with torch.no_grad():
            is_visual = rows == IMAGE_ID
            embeddings = target.get_input_embeddings()(rows)
            embeddings = embeddings.masked_scatter(is_visual[..., None], picture.features.repeat(QWEN_BATCH, 1))
            grid = picture.pixels["image_grid_thw"].repeat(QWEN_BATCH, 1)
            positions, _ = target.model.get_rope_index(rows, mm_token_type_ids=is_visual.int(), image_grid_thw=grid)
            seen = target.model.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
            features = seen.last_hidden_state
            logits = target.lm_head(features)
        counted = (torch.arange(rows.size(1)) >= start - 1).expand_as(rows)
        losses, _ = unrolled_over(drafter, features, embeddings, logits, UNROLL, is_visual, counted)
        return (weights * losses).sum()

    steppers = training_loop.optimizers(drafter, lambda name: True, MUON_RATE, ADAM_RATE)
    training_loop.train(drafter, steppers, next_loss, training_loop.Budget(minutes=0, steps=QWEN_STEPS), WARMUP)


def make_qwen(goldens_folder: Path) -> None:
    """A drafter of Qwen's kind for the random target."""
    print("msd_qwen2_vl", flush=True)
    folder, target_folder = goldens_folder / "msd_qwen2_vl", goldens_folder / "qwen2_vl"
    case = next(case for case in CASES if case.name == "qwen2_vl")
    target = AutoModelForImageTextToText.from_pretrained(target_folder, attn_implementation="eager", dtype=torch.float32)
    target = target.eval().requires_grad_(False)
    processor = image_processor(case, case.preprocessor)
    seen = {}
    for name in case.pictures:
        looked = look_at(case, target, processor, Image.open(target_folder / f"{name}.png"))
        seen[name] = Seen(looked.pixels, looked.features)

    torch.manual_seed(0)
    drafter = msd.Drafter(QWEN_DRAFTER, target.lm_head.weight, is_qwen=True)
    for name, weight in drafter.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(weight, std=0.3)
        elif "layernorm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    distil_qwen(target, drafter, qwen_texts(target, seen, torch.Generator().manual_seed(0)))
    drafter.requires_grad_(False)
    scaling = {"type": "mrope", "mrope_section": case.text["rope_parameters"]["mrope_section"]}
    extra = dict(rope_scaling=scaling, max_position_embeddings=512)
    msd.save_drafter(folder / "drafter", drafter, torch.float32, target.get_input_embeddings().weight, **extra)
    reloaded = msd.load_drafter(folder / "drafter", target.lm_head.weight)
    assert torch.equal(reloaded.midlayer.self_attn.k_proj.bias, drafter.midlayer.self_attn.k_proj.bias)

    tokens = {name: len(picture.features) for name, picture in seen.items()}

    def questions(wanted: str) -> Iterator[Question]:
        for seed in range(TRIES):
            prompts = draw_prompts(case, tokens, torch.Generator().manual_seed(1000 + seed))
            prompt = next(prompt for prompt in prompts if prompt.name == wanted)
            facts = dict(name=wanted, pictures=[f"../qwen2_vl/{name}.png" for name in prompt.pictures])
            yield Question(facts, prompt.prompt_ids, [seen[name] for name in prompt.pictures], IMAGE_ID)

    found = [first_clear(target, drafter, questions(name), QWEN_NEW_TOKENS) for name in QWEN_PROMPTS]
    write(folder, dict(target="../qwen2_vl", drafters=["drafter"]), found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder that receives a folder a case")
    parser.add_argument("--only", choices=["llava", "qwen2_vl"], help="one case alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.only != "qwen2_vl":
        make_llava(args.out / "msd_llava")
    if args.only != "llava":
        make_qwen(args.out)


if __name__ == "__main__":
    main()
