"""Plain PyTorch passes over a target that comes in parts, and over its drafter. Float32, every position at once."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle3 import Drafter, attend, rotate
from lifting.network import Parts, layer_tensors
from lifting.shapes import Shape


@dataclass(frozen=True)
class Pass:
    """What a target made of texts."""

    logits: Tensor  # [texts, tokens, vocabulary]
    embedded: Tensor  # [texts, tokens, hidden]
    taps: Tensor  # [texts, tokens, taps * hidden]
    last: Tensor  # [texts, tokens, hidden]: the stream before the final norm


@torch.no_grad()
def run_target(parts: Parts, config: dict, tokens: Tensor, taps: list[int]) -> Pass:
    """Over texts of equal length, [texts, tokens]; `taps` are layers whose input is kept."""
    shape, eps = Shape.from_json(config), config["rms_norm_eps"]
    num_tokens = tokens.size(1)
    positions = torch.arange(num_tokens)
    visible = torch.ones(num_tokens, num_tokens, device=tokens.device).tril().bool()
    stream, embedded, kept = None, None, {}
    for index, part in enumerate(parts.parts(), start=-1):
        if index == -1:
            stream = embedded = F.embedding(tokens, part["model.embed_tokens.weight"].to(tokens.device)).float()
        elif index < shape.num_hidden_layers:
            if index in taps:
                kept[index] = stream
            layer = layer_tensors(part, f"model.layers.{index}.")
            stream = run_layer(shape, layer, eps, config["rope_theta"], stream, positions, visible)
        else:
            normed = norm(stream, part["model.norm.weight"], eps)
            # The head is the largest matrix: it is made float32 in slices.
            rows = part["lm_head.weight"].split(1 << 14)
            logits = torch.cat([normed @ chunk.to(normed).T for chunk in rows], dim=-1)
    return Pass(logits, embedded, torch.cat([kept[tap] for tap in taps], dim=-1) if taps else stream[..., :0], stream)


def norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), gain.to(x), eps)


def run_layer(
    shape: Shape, layer: dict[str, Tensor], eps: float, theta: float, stream: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """A Llama layer."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, layer[f"{name}.weight"].to(x))

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, shape.head_dim)).transpose(-2, -3)

    normed = norm(stream, layer["input_layernorm.weight"], eps)
    query = rotate(heads(linear("self_attn.q_proj", normed)), positions, theta)
    key = rotate(heads(linear("self_attn.k_proj", normed)), positions, theta).repeat_interleave(shape.group, dim=-3)
    value = heads(linear("self_attn.v_proj", normed)).repeat_interleave(shape.group, dim=-3)
    attended = attend(query, key, value, visible).transpose(-2, -3).flatten(-2)
    stream = stream + linear("self_attn.o_proj", attended)
    normed = norm(stream, layer["post_attention_layernorm.weight"], eps)
    hidden = F.silu(linear("mlp.gate_proj", normed)) * linear("mlp.up_proj", normed)
    return stream + linear("mlp.down_proj", hidden)


@dataclass(frozen=True)
class DraftPass:
    """What a drafter made of texts at one step."""

    logits: Tensor  # [texts, pairs, draft vocabulary]
    output: Tensor  # [texts, pairs, hidden]: before the final norm


@torch.no_grad()
def run_drafter(drafter: Drafter, target: Pass, num_steps: int) -> list[DraftPass]:
    """Step i pairs a feature with the token i + 1 places on and scores the one behind it. The features of step 0 are the target's,
    those of later steps the outputs of the step before, which is what a drafted token is drafted from."""
    features, steps = drafter.first_features(target.taps), []
    for step in range(num_steps):
        features = features[:, :-1]
        embedded = target.embedded[:, step + 1 :]
        num_pairs = features.size(1)
        positions = torch.arange(step, step + num_pairs)
        visible = torch.ones(num_pairs, num_pairs, device=features.device).tril().bool()
        residual, z = drafter.midlayer.enter(features, embedded)
        query, key, value = drafter.midlayer.project(z, positions)
        output = drafter.midlayer.finish(residual, attend(query, key, value, visible))
        steps.append(DraftPass(drafter.logits(output), output))
        features = output
    return steps
