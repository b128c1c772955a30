"""EAGLE-1 drafters (EAGLE-2 uses the same weights) in plain PyTorch, with the interface of `eagle3.Drafter`.

The feature of a committed token is the target's hidden state after its final norm, the input of the target's head; `fc` joins it with the
embedding of the next token at every step, and the layer has no norm before its attention. There is no final norm and no own
head: the output is a guess at the target's next feature, and the target's head reads it.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eagle3 import MLP, Attention, DrafterConfig, DrafterLayer, RMSNorm


class Layer(DrafterLayer):
    """A Llama layer behind `fc`; its attention reads the residual stream as it is."""

    def __init__(self, config: DrafterConfig, fc_bias: bool):
        nn.Module.__init__(self)
        self.config = config
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=fc_bias)
        self.self_attn = Attention(config, input_width=config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def enter(self, feature: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, and what attention reads: the same."""
        x = self.fc(torch.cat([embedding, feature], dim=-1))
        return x, x


class Drafter(nn.Module):
    """The checkpoint, and the target's head, which is not part of it."""

    later_layers = ()

    def __init__(self, config: DrafterConfig, head: Tensor, fc_bias: bool = True):
        super().__init__()
        self.config = config
        self.midlayer = Layer(config, fc_bias)
        self.register_buffer("head", head.clone(), persistent=False)
        # For training: every token of the target can be drafted.
        self.register_buffer("t2d", torch.ones(config.vocab_size, dtype=torch.bool), persistent=False)

    def target_features(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """What it reads of the target: transformers' last hidden state is normed."""
        return hidden_states[-1]

    def first_features(self, target_features: Tensor) -> Tensor:
        """The features of committed tokens."""
        return target_features

    def next_features(self, output: Tensor) -> Tensor:
        """The features of drafted tokens, from the layer's output one step earlier."""
        return output

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """One vocabulary."""
        return draft_ids

    def logits(self, output: Tensor) -> Tensor:
        """Scores of the vocabulary, from the layer's output."""
        return output @ self.head.T


def checkpoint_name(name: str) -> str:
    """The authors' name of a parameter."""
    return name.replace("midlayer.fc.", "fc.").replace("midlayer.", "layers.0.")


def load_drafter(folder: Path, head: Tensor) -> Drafter:
    """A drafter in float32, for the target whose head is given."""
    config = json.loads((folder / "config.json").read_text())
    drafter = Drafter(DrafterConfig.from_json(config), head, config.get("bias", True)).requires_grad_(False)
    tensors = load_file(folder / "model.safetensors")
    own = {name: tensors[checkpoint_name(name)].float() for name in drafter.state_dict()}
    drafter.load_state_dict(own)
    return drafter


def save_drafter(
    folder: Path, drafter: Drafter, dtype: torch.dtype, embedding: Tensor | None = None, **extra: object
) -> None:
    """A folder in the authors' layout. `embedding` is the target's, which they repeat; `extra` adds to config.json, None drops."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {checkpoint_name(name): tensor for name, tensor in drafter.state_dict().items()}
    if embedding is not None:
        tensors["embed_tokens.weight"] = embedding
    tensors = {name: tensor.to(dtype).cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shape = {name: value for name, value in vars(drafter.config).items() if name != "draft_vocab_size"}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bias": drafter.midlayer.fc.bias is not None,
        **extra,
    }
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
