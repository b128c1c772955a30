"""EAGLE-3 drafters in plain PyTorch: checkpoint format and layer, shared by training and the reference.

A drafter sees pairs (feature of token t, token t + 1) and predicts token t + 2; the RoPE position of that
pair is t. The feature of a committed token is taken from the target (`target_features`, then `fc`); the
feature of a drafted token is the drafter's own output one step earlier.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def tapped_layers(num_layers: int) -> tuple[int, int, int]:
    """The target layers whose input (residual stream, not normalised) makes up a feature."""
    return 2, num_layers // 2, num_layers - 3


def target_features(hidden_states: tuple[Tensor, ...]) -> Tensor:
    """[.., tokens, 3 * hidden], from transformers' `hidden_states`, whose item i is the input of layer i."""
    num_layers = len(hidden_states) - 1
    return torch.cat([hidden_states[i] for i in tapped_layers(num_layers)], dim=-1)


@dataclass(frozen=True)
class DrafterConfig:
    """The fields of a drafter's config.json that its forward pass needs."""

    vocab_size: int
    draft_vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def from_json(cls, config: dict) -> "DrafterConfig":
        """Absent fields mean what they mean to the authors: the RoPE base is 10000, not the target's."""
        heads = config["num_attention_heads"]
        return cls(
            vocab_size=config["vocab_size"],
            draft_vocab_size=config.get("draft_vocab_size") or config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rms_norm_eps=config["rms_norm_eps"],
            rope_theta=config.get("rope_theta", 10000.0),
        )


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),), self.weight, self.eps)


class Attention(nn.Module):
    """The projections only: what attends to what differs between training and drafting."""

    def __init__(self, config: DrafterConfig, input_width: int | None = None, qkv_bias: bool = False):
        super().__init__()
        width = input_width or 2 * config.hidden_size
        query_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, query_width, bias=qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DrafterLayer(nn.Module):
    """A Llama layer whose attention reads [norm(embedding) ; norm(feature)]; its residual is the feature."""

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = config
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def enter(self, feature: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, and what attention reads."""
        return feature, torch.cat([self.input_layernorm(embedding), self.hidden_norm(feature)], dim=-1)

    def project(self, z: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (rotated) and values, [.., query heads, tokens, head_dim] each: K/V heads repeat."""
        query = rotate(self.heads(self.self_attn.q_proj(z)), positions, self.config.rope_theta)
        key = rotate(self.heads(self.self_attn.k_proj(z)), positions, self.config.rope_theta)
        value = self.heads(self.self_attn.v_proj(z))
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        return query, key.repeat_interleave(group, dim=-3), value.repeat_interleave(group, dim=-3)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, from what attention gathered for each query head."""
        joined = attended.transpose(-2, -3).flatten(-2)
        x = residual + self.self_attn.o_proj(joined)
        return x + self.mlp(self.post_attention_layernorm(x))

    def heads(self, x: Tensor) -> Tensor:
        """[.., tokens, heads * head_dim] -> [.., heads, tokens, head_dim]."""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(-2, -3)


class Drafter(nn.Module):
    """The checkpoint: parameter names are the authors'. The embedding is the target's and not part of it."""

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = DrafterLayer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    def target_features(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """What it reads of the target, for `first_features`."""
        return target_features(hidden_states)

    def first_features(self, target_features: Tensor) -> Tensor:
        """The features of committed tokens."""
        return self.fc(target_features)

    def set_draft_vocabulary(self, kept: Tensor) -> None:
        """Draft token i is target token kept[i], ascending. `d2t` holds the offsets: kept[i] = i + d2t[i]."""
        self.d2t.copy_(kept - torch.arange(len(kept)))
        self.t2d.zero_()[kept] = True

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """The target tokens that draft tokens stand for."""
        return draft_ids + self.d2t[draft_ids]

    def logits(self, output: Tensor) -> Tensor:
        """Scores of the draft vocabulary, from the layer's output."""
        return self.lm_head(self.norm(output))


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE on [.., tokens, head_dim] with pairs (i, i + head_dim / 2), as Hugging Face's Llama."""
    head_dim = x.size(-1)
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float32) / head_dim)
    angles = positions.to(x.device, torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention; `visible` [queries, keys] says what each query may look at."""
    scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.size(-1))
    return torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1) @ value


def load_drafter(folder: Path) -> Drafter:
    """A drafter in float32."""
    config = json.loads((folder / "config.json").read_text())
    drafter = Drafter(DrafterConfig.from_json(config)).requires_grad_(False)
    tensors = load_file(folder / "model.safetensors")
    drafter.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return drafter


def save_drafter(
    folder: Path, drafter: Drafter, dtype: torch.dtype, rename: dict[str, str] | None = None, **extra: object
) -> None:
    """A folder in the authors' layout. `rename` maps name prefixes; `extra` adds to config.json, None drops."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in drafter.state_dict().items():
        for old, new in (rename or {}).items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        tensors[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **vars(drafter.config),
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bias": False,
        **extra,
    }
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
