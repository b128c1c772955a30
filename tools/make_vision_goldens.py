"""Make tests/golden/{llava,qwen2_vl,llava_next,llava_interleave,qwen2_5_vl}/: tiny random vision-language targets, and what transformers computes.

    python tools/make_vision_goldens.py [--out tests/golden] [--case NAME]... [--check]

Weights are random numbers of bfloat16, computed with in float32 on the CPU with eager attention and without a K/V cache. A case is redrawn with the
next seed until every greedy decision is clear and the pictures matter: a block painted over changes the logits and the tokens, and so
does the order of two pictures. `--check` computes what lies in the folders again, from the files. The format is described in
tests/golden/README.md.
"""

import argparse
import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from golden_files import versions, write_json
from vision_cases import (
    CASES,
    IMAGE_ID,
    TEXT_IDS,
    VISION_END_ID,
    VISION_START_ID,
    VisionCase,
    module_name,
    published_name,
)
from vision_pictures import Picture, arguments, draw_picture, expand, image_processor, look_at

NEW_TOKENS = 48
MIN_MARGIN = 1e-3  # between the best and the second best logit, relative to the largest of all
MIN_DISTINCT = 12  # different tokens in each generation
MIN_EFFECT = 0.05  # of a change to a picture on the last logits, relative to the largest
LOGIT_SPREAD = 3.0  # standard deviation of the logits
BOUNDARY = 256  # a position that one picture lies across
CLOSE = 1e-5  # relative to the largest, when computed again


@dataclass(frozen=True)
class Prompt:
    """Text with pictures."""

    name: str
    pictures: list[str]
    prompt_ids: list[int]  # one placeholder a picture


@dataclass(frozen=True)
class Expected:
    """What the model says about one prompt."""

    prompt: Prompt
    expanded_ids: list[int]
    greedy_ids: list[int]
    logits: Tensor  # [expanded, vocab]
    margin: float  # relative to the largest logit
    positions: Tensor | None  # [3, expanded] of M-RoPE
    rope_delta: int | None

    def is_clear(self) -> bool:
        """Whether the greedy tokens are beyond doubt, and varied enough to prove something."""
        return self.margin > MIN_MARGIN and len(set(self.greedy_ids)) >= MIN_DISTINCT


def random_model(case: VisionCase, seed: int) -> PreTrainedModel:
    """A model whose layers, pictures and attention all weigh in."""
    generator = torch.Generator().manual_seed(seed)
    config = AutoConfig.for_model(case.model_type, text_config=case.text, vision_config=case.vision, **case.more)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model = model.eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith(".bias"):
            values = 0.3 * noise
        elif "class_embedding" in name or "image_newline" in name or "embed_tokens" in name:
            values = noise
        elif "position_embedding" in name:
            values = 0.5 * noise
        elif weight.dim() == 1:
            values = 1.0 + 0.2 * noise
        else:
            values = noise * gain(name) / weight[0].numel() ** 0.5
        if "lm_head" in name:
            values[TEXT_IDS:] /= 16  # never the best
        weight.copy_(values.bfloat16())
    return model


def gain(name: str) -> float:
    """How much larger than its input a matrix makes its output."""
    if "lm_head" in name:
        return LOGIT_SPREAD
    if any(part in name for part in ("o_proj", "down_proj", "out_proj", "attn.proj", "fc2")):
        return 3.0  # layers outweigh what enters them
    if any(part in name for part in ("q_proj", "k_proj", "attn.qkv")):
        return 1.5  # selective attention
    return 1.0


def last_logits(model: PreTrainedModel, prompt: Prompt, pictures: list[Picture]) -> Tensor:
    """The scores after a prompt."""
    return model(**arguments(expand(prompt.prompt_ids, pictures), pictures), use_cache=False).logits[0, -1]


def greedy(model: PreTrainedModel, prompt: Prompt, pictures: list[Picture]) -> Expected | None:
    """Extend the prompt by NEW_TOKENS tokens, running everything again for each; None at a decision that is not clear."""
    expanded = expand(prompt.prompt_ids, pictures)
    ids, margins = list(expanded), []
    for step in range(NEW_TOKENS):
        logits = model(**arguments(ids, pictures), use_cache=False).logits[0]
        if step == 0:
            prompt_logits = logits.contiguous()
        best, second = logits[-1].topk(2).values.tolist()
        margins.append((best - second) / float(logits[-1].abs().max()))
        if margins[-1] < MIN_MARGIN:
            return None
        ids.append(int(logits[-1].argmax()))
    positions = delta = None
    if hasattr(model.model, "get_rope_index"):
        given = arguments(expanded, pictures)
        kinds = (given["input_ids"] == IMAGE_ID).int()
        positions, deltas = model.model.get_rope_index(
            given["input_ids"], mm_token_type_ids=kinds, image_grid_thw=given.get("image_grid_thw")
        )
        positions, delta = positions[:, 0], int(deltas[0])
    new = ids[len(expanded) :]
    return Expected(prompt, expanded, new, prompt_logits, min(margins), positions, delta)


def draw_prompts(case: VisionCase, tokens: dict[str, int], generator: torch.Generator) -> list[Prompt]:
    """Text alone, each picture, two pictures, and perhaps a picture across BOUNDARY."""
    text = lambda length: torch.randint(TEXT_IDS, (length,), generator=generator).tolist()  # noqa: E731
    place = [VISION_START_ID, IMAGE_ID, VISION_END_ID] if case.wraps_pictures else [IMAGE_ID]
    prompts = [Prompt("text", [], text(33))]
    prompts += [Prompt(name, [name], text(5) + place + text(9)) for name in case.pictures]
    prompts.append(Prompt("two", list(case.pairs), text(4) + place + text(3) + place + text(6)))
    if case.long_picture:
        before = BOUNDARY - tokens[case.long_picture] // 2 - place.index(IMAGE_ID)
        prompts.append(Prompt("long", [case.long_picture], text(before) + place + text(17)))
    return prompts


def pictures_matter(
    case: VisionCase, model: PreTrainedModel, processor: object, images: dict[str, Image.Image], all_expected: list[Expected]
) -> bool:
    """Whether painting over a block of the first picture, and exchanging two, changes what the model says."""
    named = {expected.prompt.name: expected for expected in all_expected}
    name = next(iter(case.pictures))
    painted = images[name].copy()
    width, height = painted.size
    ImageDraw.Draw(painted).rectangle((width // 3, height // 3, width * 2 // 3, height * 2 // 3), fill=(255, 0, 0))
    changed = [look_at(case, model, processor, painted)]
    original = named[name]
    effect = (last_logits(model, original.prompt, changed) - original.logits[-1]).abs().max()
    swapped = [look_at(case, model, processor, images[name]) for name in reversed(case.pairs)]
    exchange = (last_logits(model, named["two"].prompt, swapped) - named["two"].logits[-1]).abs().max()
    other = greedy(model, original.prompt, changed)
    different = other is None or other.greedy_ids != original.greedy_ids
    largest = min(float(named[n].logits[-1].abs().max()) for n in (name, "two"))
    return different and min(float(effect), float(exchange)) > MIN_EFFECT * largest


def make_case(case: VisionCase, folder: Path) -> None:
    """Redraw weights and prompts until all decisions are clear and pictures matter, then write the case."""
    images = {name: draw_picture(*size, hue) for hue, (name, size) in enumerate(case.pictures.items())}
    processor = image_processor(case, case.preprocessor)
    for seed in itertools.count():
        model = random_model(case, seed)
        seen = {name: look_at(case, model, processor, image) for name, image in images.items()}
        prompts = draw_prompts(
            case, {name: len(s.features) for name, s in seen.items()}, torch.Generator().manual_seed(seed)
        )
        expected = []
        for prompt in prompts:
            found = greedy(model, prompt, [seen[name] for name in prompt.pictures])
            if found is None or not found.is_clear():
                break
            expected.append(found)
        if len(expected) == len(prompts) and pictures_matter(case, model, processor, images, expected):
            break
    write_case(folder, case, seed, model, images, seen, expected)
    margin = min(e.margin for e in expected)
    print(f"{case.name}: seed {seed}, smallest margin {margin:.4f}, prompts {[len(e.expanded_ids) for e in expected]}")


def tensors_of(case: VisionCase, seen: dict[str, Picture], expected: list[Expected]) -> dict[str, Tensor]:
    """The contents of expected.safetensors."""
    tensors = {}
    for name, picture in seen.items():
        if picture.pixels["pixel_values"].dim() == 4:  # elsewhere the rows say it all
            tensors[f"pixel_values.{name}"] = picture.pixels["pixel_values"][0]
        tensors[f"patch_rows.{name}"] = picture.rows
        tensors[f"tower_features.{name}"] = picture.tower
        tensors[f"visual_features.{name}"] = picture.features
    for e in expected:
        tensors[f"logits.{e.prompt.name}"] = e.logits
        if e.positions is not None:
            tensors[f"mrope_positions.{e.prompt.name}"] = e.positions
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def write_case(
    folder: Path,
    case: VisionCase,
    seed: int,
    model: PreTrainedModel,
    images: dict[str, Image.Image],
    seen: dict[str, Picture],
    expected: list[Expected],
) -> None:
    """Checkpoint, configurations and names in both spellings, pictures, and the expected numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16)
    for part in (model.config.text_config, model.config.vision_config):
        part.dtype = torch.bfloat16
    model.save_pretrained(folder)
    model.float()
    (folder / "generation_config.json").unlink(missing_ok=True)
    dump = lambda name, value: (folder / name).write_text(json.dumps(value, indent=2) + "\n")  # noqa: E731
    dump("config.transformers4.json", case.older)
    dump("preprocessor_config.json", case.preprocessor)
    write_processors(folder, case)
    names = sorted(load_file(folder / "model.safetensors"))
    dump("names.transformers4.json", {name: published_name(name) for name in names})
    dump("names.modules.json", {name: module_name(case, name) for name in names})
    for name, image in images.items():
        image.save(folder / f"{name}.png", optimize=True)
    save_file(tensors_of(case, seen, expected), folder / "expected.safetensors")

    pictures = []
    for name, picture in seen.items():
        about = dict(name=name, file=f"{name}.png", size=list(images[name].size), tokens=len(picture.features))
        if "image_grid_thw" in picture.pixels:
            about["grid_thw"] = picture.pixels["image_grid_thw"][0].tolist()
        if picture.pixels["pixel_values"].dim() == 5:
            about["tiles"] = picture.pixels["pixel_values"].shape[1]
        pictures.append(about)
    prompts = []
    for e in expected:
        about = dict(name=e.prompt.name, pictures=e.prompt.pictures, min_margin=round(e.margin, 6))
        if e.rope_delta is not None:
            about["rope_delta"] = e.rope_delta
        about |= dict(prompt_ids=e.prompt.prompt_ids, expanded_ids=e.expanded_ids, greedy_ids=e.greedy_ids)
        prompts.append(about)
    facts = dict(case=case.name, seed=seed, versions=versions(), image_token_id=IMAGE_ID)
    write_json(folder / "expected.json", facts | dict(pictures=pictures, prompts=prompts))


def write_processors(folder: Path, case: VisionCase) -> None:
    """processor_config.json as transformers 5 writes it, and the older file of that name."""
    if case.older_processor is not None:
        text = json.dumps(case.older_processor, indent=2) + "\n"
        (folder / "processor_config.transformers4.json").write_text(text)
    tokens = ["<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<unk>"]
    vocabulary = WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary))
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "preprocessor_config.json").write_text(json.dumps(case.preprocessor))
        parts = dict(image_processor=transformers.AutoImageProcessor.from_pretrained(scratch), tokenizer=tokenizer)
        if case.wraps_pictures:
            parts["video_processor"] = transformers.Qwen2VLVideoProcessor()
        more = {k: v for k, v in (case.older_processor or {}).items() if k != "processor_class"}
        kind = getattr(transformers, case.preprocessor["processor_class"])
        kind(**parts, **more).save_pretrained(scratch)
        shutil.copy(Path(scratch) / "processor_config.json", folder / "processor_config.json")


def renamed_copy(folder: Path, config: str, names: str | None) -> Path:
    """The checkpoint in a folder of its own, with another spelling of its configuration or its names."""
    copy = Path(tempfile.mkdtemp())
    shutil.copy(folder / config, copy / "config.json")
    tensors = load_file(folder / "model.safetensors")
    if names is not None:
        table = json.loads((folder / names).read_text())
        tensors = {table[name]: tensor for name, tensor in tensors.items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def check_rows(case: VisionCase, model: PreTrainedModel, picture: Picture) -> None:
    """A row times the flattened kernel must be what the model's convolution makes of the patch."""
    if case.wraps_pictures:
        convolution = model.model.visual.patch_embed.proj
        embedded = model.model.visual.patch_embed(picture.pixels["pixel_values"])
    else:
        convolution = model.model.vision_tower.embeddings.patch_embedding
        tiles = picture.pixels["pixel_values"].flatten(0, -4)
        embedded = convolution(tiles).flatten(2).transpose(1, 2).flatten(0, 1)
    product = picture.rows @ convolution.weight.flatten(1).T
    if convolution.bias is not None:
        product += convolution.bias
    assert torch.allclose(product, embedded, atol=1e-4), f"{case.name}: patch rows are not in the kernel's order"


def check_case(case: VisionCase, folder: Path) -> None:
    """Every spelling, read back from the files, must give the numbers that are written down."""
    facts = json.loads((folder / "expected.json").read_text())
    written = load_file(folder / "expected.safetensors")
    images = {p["name"]: Image.open(folder / p["file"]) for p in facts["pictures"]}
    settings = [json.loads((folder / "preprocessor_config.json").read_text())]
    settings.append(json.loads((folder / "processor_config.json").read_text())["image_processor"])
    spellings = [("config.json", None), ("config.transformers4.json", "names.transformers4.json")]
    spellings.append(("config.json", "names.modules.json"))
    for (config, names), how in itertools.product(spellings, settings):
        copy = renamed_copy(folder, config, names)
        model, report = AutoModelForImageTextToText.from_pretrained(
            copy, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        shutil.rmtree(copy)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        model = model.eval().requires_grad_(False)
        processor = image_processor(case, how)
        seen = {name: look_at(case, model, processor, image) for name, image in images.items()}
        for name, picture in seen.items():
            check_rows(case, model, picture)
        expected = []
        for about in facts["prompts"]:
            prompt = Prompt(about["name"], about["pictures"], about["prompt_ids"])
            e = greedy(model, prompt, [seen[name] for name in prompt.pictures])
            assert e is not None and e.is_clear(), f"{folder}: {prompt.name}: a decision is not clear"
            assert e.expanded_ids == about["expanded_ids"] and e.greedy_ids == about["greedy_ids"]
            assert e.rope_delta == about.get("rope_delta")
            expected.append(e)
        again = tensors_of(case, seen, expected)
        assert again.keys() == written.keys()
        for name, tensor in again.items():
            error = float((tensor - written[name]).abs().max() / written[name].abs().max())
            assert error < CLOSE, f"{folder}: {name} is off by {error}"
        assert pictures_matter(case, model, processor, images, expected), f"{folder}: pictures do not matter"
    print(f"{case.name}: as written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder that receives a folder a case")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this case")
    parser.add_argument("--check", action="store_true", help="compute what is in the folders again and compare")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for case in CASES:
        if args.case is None or case.name in args.case:
            folder = args.out / case.name
            if not args.check:
                make_case(case, folder)
            check_case(case, folder)


if __name__ == "__main__":
    main()
