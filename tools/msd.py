"""MSD drafters (Lin et al., 2025, "Speculative Decoding Reimagined for Multimodal Large Language Models") in plain PyTorch.

An EAGLE-1 drafter that takes pictures apart from text. The convention for the shift: pair t is (feature of position t, embedding of token t + 1)
and stands at RoPE position t, in the expanded text that has a token for every feature of a picture. Where token t + 1 is text, the layer reads
fc([embedding ; feature]); where it is a placeholder, the layer reads the visual embedding of position t + 1 (the projector's or merger's output) as it
is, without fc or feature. Positions count tokens, also for targets with M-RoPE. Drafted tokens are text.

Two layers are published. LLaVA's has no norm before its attention. Qwen2-VL's has one (`input_layernorm`; the residual stream is not normed), and
biases of q, k and v. Neither has a final norm: the target's head reads the output.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eagle1
from eagle3 import Attention, DrafterConfig, RMSNorm


class Layer(eagle1.Layer):
    """A decoder layer behind `fc`, which pictures bypass."""

    def __init__(self, config: DrafterConfig, is_qwen: bool):
        super().__init__(config, fc_bias=True)
        if is_qwen:
            self.self_attn = Attention(config, input_width=config.hidden_size, qkv_bias=True)
            self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        else:
            self.input_layernorm = nn.Identity()

    def enter(self, feature: Tensor, embedding: Tensor, is_visual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The residual stream, and what attention reads; `is_visual` [.., tokens], none if not given."""
        x = self.fc(torch.cat([embedding, feature], dim=-1))
        if is_visual is not None:
            x = torch.where(is_visual[..., None], embedding, x)
        return x, self.input_layernorm(x)


class Drafter(eagle1.Drafter):
    """The checkpoint, and the target's head, which is not part of it."""

    def __init__(self, config: DrafterConfig, head: Tensor, is_qwen: bool):
        super().__init__(config, head)
        self.midlayer = Layer(config, is_qwen)


def load_drafter(folder: Path, head: Tensor) -> Drafter:
    """A drafter in float32, for the target whose head is given."""
    config = json.loads((folder / "config.json").read_text())
    drafter = Drafter(DrafterConfig.from_json(config), head, config["model_type"] == "qwen2_vl").requires_grad_(False)
    tensors = load_file(folder / "model.safetensors")
    own = {name: tensors[eagle1.checkpoint_name(name)].float() for name in drafter.state_dict()}
    drafter.load_state_dict(own)
    return drafter


def save_drafter(folder: Path, drafter: Drafter, dtype: torch.dtype, embedding: Tensor, **extra: object) -> None:
    """A folder in the authors' layout: no `bias` in config.json, which means true, and a copy of the target's embedding."""
    is_qwen = not isinstance(drafter.midlayer.input_layernorm, nn.Identity)
    kind = dict(architectures=["LlamaForCausalLM"], model_type="llava", rope_theta=None)
    if is_qwen:
        kind = dict(architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl")
    eagle1.save_drafter(folder, drafter, dtype, embedding, **kind, bias=None, head_dim=None, **extra)
