"""Compare tests/golden/msd_*/ with transformers alone: the target's cached generation, and drafters built from transformers' decoder layers.

    python tools/check_msd_goldens.py [--golden tests/golden]

Shares no code with msd.py or eagle3_reference.py. Asserts the greedy tokens, and the drafter's logits after every pair of every prompt.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import AutoModelForImageTextToText, LlamaConfig, PreTrainedModel, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

CLOSE = 1e-5  # relative to the largest logit of a row


def layer_outputs(config: dict, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What transformers' own layer makes of [tokens, hidden], causally, with the drafter's weights."""
    shape = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    more = dict(num_hidden_layers=1, attn_implementation="eager")
    more["rope_parameters"] = dict(rope_type="default", rope_theta=config.get("rope_theta", 10000.0))
    is_qwen = config["model_type"] == "qwen2_vl"
    made = (Qwen2Config if is_qwen else LlamaConfig)(**{key: config[key] for key in shape}, **more)
    layer = (Qwen2DecoderLayer if is_qwen else LlamaDecoderLayer)(made, 0).eval()
    if not is_qwen:
        layer.input_layernorm = nn.Identity()
    prefix = "layers.0."
    layer.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})
    rotary = (Qwen2RotaryEmbedding if is_qwen else LlamaRotaryEmbedding)(made)
    count = len(x)
    mask = torch.full((count, count), torch.finfo(torch.float32).min).triu(1)[None, None]
    return layer(x[None], attention_mask=mask, position_embeddings=rotary(x[None], torch.arange(count)[None])).view(count, -1)


def arguments(target: PreTrainedModel, target_folder: Path, ids: list[int], pictures: list[Path]) -> dict[str, Tensor]:
    """The target's arguments for an expanded prompt."""
    batch = torch.tensor([ids])
    found = dict(input_ids=batch, attention_mask=torch.ones_like(batch))
    if pictures:
        is_qwen = target.config.model_type == "qwen2_vl"
        kind = transformers.Qwen2VLImageProcessorPil if is_qwen else transformers.CLIPImageProcessorPil
        processor = kind.from_pretrained(target_folder)
        found |= dict(processor(images=[Image.open(path) for path in pictures], return_tensors="pt"))
        if is_qwen:
            found["mm_token_type_ids"] = (batch == target.config.image_token_id).int()
    return found


@torch.no_grad()
def check(folder: Path) -> None:
    """One case."""
    facts = json.loads((folder / "expected.json").read_text())
    written = load_file(folder / "expected.safetensors")
    target_folder, drafter_folder = folder / facts["target"], folder / facts["drafters"][0]
    target = AutoModelForImageTextToText.from_pretrained(target_folder, dtype=torch.float32).eval()
    config = json.loads((drafter_folder / "config.json").read_text())
    weights = {name: w.float() for name, w in load_file(drafter_folder / "model.safetensors").items()}
    worst = 0.0
    for i, prompt in enumerate(facts["prompts"]):
        names = prompt["pictures"] if "pictures" in prompt else [prompt["picture"]]
        ids = prompt["expanded_ids"]
        given = arguments(target, target_folder, ids, [folder / name for name in names])
        said = target.generate(**given, do_sample=False, max_new_tokens=prompt["new_tokens"], eos_token_id=None)
        assert said[0, len(ids) :].tolist() == prompt["greedy_ids"], f"{folder}: prompt {i}: other tokens"

        features = target.model(**given).last_hidden_state[0]
        text = torch.tensor(ids + prompt["greedy_ids"][:1])
        embedded = embedding(text, weights["embed_tokens.weight"])
        x = torch.cat([embedded[1:], features], dim=-1) @ weights["fc.weight"].T + weights["fc.bias"]
        if names:
            pixels = {key: given[key] for key in ("pixel_values", "image_grid_thw") if key in given}
            is_visual = text[1:] == target.config.image_token_id
            x[is_visual] = torch.cat(list(target.model.get_image_features(**pixels, return_dict=True).pooler_output))
        logits = target.lm_head(layer_outputs(config, weights, x))
        wanted = written[f"prefill_logits.{i}"]
        error = ((logits - wanted).abs().amax(dim=1) / wanted.abs().amax(dim=1)).max()
        worst = max(worst, float(error))
    assert worst < CLOSE, f"{folder}: the drafter's logits are off by {worst}"
    print(f"{folder.name}: {len(facts['prompts'])} prompts agree, logits within {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, default=Path("tests/golden"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for case in ("msd_llava", "msd_qwen2_vl"):
        check(args.golden / case)


if __name__ == "__main__":
    main()
