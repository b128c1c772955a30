"""Pictures as the vision-language targets see them: drawing, preprocessing, the tower, and the arguments of transformers' models."""

import math
from dataclasses import dataclass

import torch
import transformers
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_window_index

from vision_cases import IMAGE_ID, PATCH, VisionCase


@dataclass(frozen=True)
class Picture:
    """A picture as the model sees it."""

    pixels: dict[str, Tensor]  # the model's arguments: pixel_values and what goes with them
    rows: Tensor  # [patches, channels x height x width of a patch]: what the patch embedding multiplies
    tower: Tensor  # [patches, tower's width]: what the projector or merger reads
    features: Tensor  # [tokens, hidden]: what stands in for the placeholders


def draw_picture(width: int, height: int, hue: int) -> Image.Image:
    """A gradient under some shapes with hard edges: every channel, row and column differs."""
    picture = Image.new("RGB", (width, height))
    picture.putdata(
        [
            (
                int(128 + 120 * math.sin(0.11 * x + 0.05 * y + hue)),
                int(255 * y / height),
                int(128 + 110 * math.cos(0.07 * x * (1 + hue) - 0.13 * y)),
            )
            for y in range(height)
            for x in range(width)
        ]
    )
    draw = ImageDraw.Draw(picture)
    w, h = width / 10, height / 10
    draw.ellipse((1 * w, 1 * h, 5 * w, 5 * h), fill=(250, 220, 10 + 80 * hue))
    draw.rectangle((5.5 * w, 4 * h, 8.7 * w, 9 * h), fill=(20, 60 + 70 * hue, 230), outline=(255, 255, 255))
    draw.polygon([(1 * w, 9 * h), (3 * w, 5.5 * h), (5 * w, 9.3 * h)], fill=(200 - 60 * hue, 20, 60))
    draw.line((0, height - 1, width - 1, 0), fill=(0, 0, 0))
    return picture


def image_processor(case: VisionCase, settings: dict) -> object:
    """The processor that works with PIL and numpy."""
    settings = {key: value for key, value in settings.items() if not key.startswith(("image_processor_", "processor_"))}
    return getattr(transformers, case.processor)(**settings)


def look_at(case: VisionCase, model: PreTrainedModel, processor: object, picture: Image.Image) -> Picture:
    """Preprocess a picture and run the tower over it."""
    pixels = dict(processor(images=[picture], return_tensors="pt"))
    values = pixels["pixel_values"]
    output = model.model.get_image_features(**pixels, return_dict=True)
    features = torch.cat(list(output.pooler_output))
    if case.wraps_pictures:
        tower = output.last_hidden_state
        if case.model_type == "qwen2_5_vl":  # back from the order of windows
            vision = case.vision
            order, _ = get_vision_window_index(
                pixels["image_grid_thw"], vision["spatial_merge_size"], vision["window_size"], vision["patch_size"]
            )
            unit = vision["spatial_merge_size"] ** 2
            tower = tower.view(-1, unit, tower.shape[-1])[order.argsort()].flatten(0, 1)
        return Picture(pixels, values, tower, features)
    tiles = values.flatten(0, -4)  # [tiles, 3, height, width]
    side = tiles.shape[-1] // PATCH
    rows = tiles.view(-1, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
    layer, strategy = model.config.vision_feature_layer, model.config.vision_feature_select_strategy
    tower = model.model.vision_tower(tiles, output_hidden_states=True).hidden_states[layer]
    tower = (tower[:, 1:] if strategy == "default" else tower).flatten(0, 1)
    return Picture(pixels, rows, tower, features)


def expand(prompt_ids: list[int], pictures: list[Picture]) -> list[int]:
    """A placeholder for every feature."""
    counts = iter(len(picture.features) for picture in pictures)
    return [i for token in prompt_ids for i in [token] * (next(counts) if token == IMAGE_ID else 1)]


def arguments(ids: list[int], pictures: list[Picture]) -> dict[str, Tensor]:
    """The model's arguments for a text with its pictures."""
    batch = torch.tensor([ids])
    found = dict(input_ids=batch)
    for key in pictures[0].pixels if pictures else ():
        values = [picture.pixels[key] for picture in pictures]
        if key == "pixel_values" and values[0].dim() == 5:  # as many tiles for all
            most = max(value.shape[1] for value in values)
            values = [torch.cat([v, v.new_zeros(1, most - v.shape[1], *v.shape[2:])], 1) for v in values]
        found[key] = torch.cat(values)
    if "image_grid_thw" in found:
        found["mm_token_type_ids"] = (batch == IMAGE_ID).int()
    return found
