"""EAGLE-3 drafters in plain PyTorch: checkpoint format and layer, shared by training and the reference.

A drafter sees pairs (feature of token t, token t + 1) and predicts token t + 2; the RoPE position of that
pair is t. The feature of a committed token is taken from the target (`target_features`, then `fc`); the
feature of a drafted token is the drafter's own output one step earlier. What later drafters do differently `Variant` says.
"""

import json
import math
import re
from dataclasses import dataclass, fields
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
        config = config | config.get("transformer_layer_config", {})  # vLLM's speculators keep the layer's fields apart
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


@dataclass(frozen=True)
class Variant:
    """What published drafters do beyond the authors' own, which the defaults are; names as in their configs, meaning as in vLLM."""

    num_hidden_layers: int = 1  # plain decoder layers follow the first
    use_aux_hidden_state: bool = True  # False: the feature is the target's normed last hidden state, without `fc`
    fc_norm: bool = False  # an RMSNorm for each tapped stream before `fc`
    norm_before_fc: bool = False  # an RMSNorm over all of them, side by side
    norm_before_residual: bool = False  # the first layer's residual is the normed feature
    norm_output: bool = False  # the feature of a drafted token is the output behind the final norm

    @classmethod
    def from_json(cls, config: dict) -> "Variant":
        """Wherever a dialect keeps them."""
        said = config | config.get("transformer_layer_config", {}) | config.get("eagle_config", {})
        return cls(**{field.name: said[field.name] for field in fields(cls) if field.name in said})


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

    def __init__(self, config: DrafterConfig, norm_before_residual: bool = False):
        super().__init__()
        self.config = config
        self.norm_before_residual = norm_before_residual
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def enter(self, feature: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, and what attention reads."""
        normed = self.hidden_norm(feature)
        residual = normed if self.norm_before_residual else feature
        return residual, torch.cat([self.input_layernorm(embedding), normed], dim=-1)

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


class LaterLayer(DrafterLayer):
    """A plain Llama layer behind the first."""

    def __init__(self, config: DrafterConfig):
        nn.Module.__init__(self)
        self.config = config
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, input_width=config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def enter(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, and what attention reads."""
        return residual, self.input_layernorm(residual)


class Drafter(nn.Module):
    """The checkpoint: parameter names are the authors', but for `later_layers` (see `checkpoint_name`). The embedding is the
    target's and not part of it."""

    def __init__(self, config: DrafterConfig, variant: Variant = Variant()):
        super().__init__()
        self.config, self.variant = config, variant
        hidden, eps = config.hidden_size, config.rms_norm_eps
        if variant.use_aux_hidden_state:
            self.fc = nn.Linear(3 * hidden, hidden, bias=False)
        if variant.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(hidden, eps) for _ in range(3))
        if variant.norm_before_fc:
            self.input_norm = RMSNorm(3 * hidden, eps)
        self.midlayer = DrafterLayer(config, variant.norm_before_residual)
        self.later_layers = nn.ModuleList(LaterLayer(config) for _ in range(1, variant.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    def target_features(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """What it reads of the target, for `first_features`. transformers' last hidden state is normed."""
        return target_features(hidden_states) if self.variant.use_aux_hidden_state else hidden_states[-1]

    def first_features(self, target_features: Tensor) -> Tensor:
        """The features of committed tokens."""
        if not self.variant.use_aux_hidden_state:
            return target_features
        if self.variant.fc_norm:
            chunks = target_features.chunk(3, dim=-1)
            target_features = torch.cat([norm(chunk) for norm, chunk in zip(self.fc_norm, chunks)], dim=-1)
        if self.variant.norm_before_fc:
            target_features = self.input_norm(target_features)
        return self.fc(target_features)

    def next_features(self, output: Tensor) -> Tensor:
        """The features of drafted tokens, from the last layer's output one step earlier."""
        return self.norm(output) if self.variant.norm_output else output

    def set_draft_vocabulary(self, kept: Tensor) -> None:
        """Draft token i is target token kept[i], ascending. `d2t` holds the offsets: kept[i] = i + d2t[i]."""
        self.d2t.copy_(kept - torch.arange(len(kept)))
        self.t2d.zero_()[kept] = True

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """The target tokens that draft tokens stand for."""
        return draft_ids + self.d2t[draft_ids]

    def logits(self, output: Tensor) -> Tensor:
        """Scores of the draft vocabulary, from the last layer's output."""
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


def checkpoint_name(name: str) -> str:
    """The published name of a parameter."""
    return re.sub(r"later_layers\.(\d+)", lambda layer: f"layers.{int(layer[1]) + 1}", name)


def load_drafter(folder: Path) -> Drafter:
    """A drafter in float32, whose first layer goes by either name."""
    config = json.loads((folder / "config.json").read_text())
    drafter = Drafter(DrafterConfig.from_json(config), Variant.from_json(config)).requires_grad_(False)
    tensors = {
        name.replace("layers.0.", "midlayer."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    drafter.load_state_dict({name: tensors[checkpoint_name(name)] for name in drafter.state_dict()})
    return drafter


def save_drafter(
    folder: Path, drafter: Drafter, dtype: torch.dtype, rename: dict[str, str] | None = None, **extra: object
) -> None:
    """A folder in the authors' layout. `rename` maps name prefixes; `extra` adds to config.json, None drops."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in drafter.state_dict().items():
        name = checkpoint_name(name)
        for old, new in (rename or {}).items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        tensors[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **vars(drafter.config),
        "num_hidden_layers": drafter.variant.num_hidden_layers,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bias": False,
        **extra,
    }
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
