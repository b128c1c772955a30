"""Medusa heads (arXiv 2401.10774) in plain PyTorch, and the EAGLE-2 tree over them.

A head reads the target's hidden state behind its final norm, at the token before the round's root: the state that the root was drawn from.
Residual blocks `x + SiLU(W x + b)`, then a linear layer without bias; head i scores the token i + 1 places behind the root. Nothing
of a head depends on the tokens drafted before, so all nodes of a level have the same children.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eagle3_reference import DraftTree, Level, TreeShape, best, children

TORCH_FILE = "medusa_lm_head.pt"


class ResBlock(nn.Module):
    """`x + SiLU(W x + b)`, the identity at first."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class Heads(nn.Module):
    """The checkpoint. The last layers start as the target's head, and stay it if they are `shared`."""

    def __init__(self, num_heads: int, num_layers: int, target_head: Tensor, shared: bool = False):
        super().__init__()
        hidden_size = target_head.size(1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResBlock(hidden_size) for _ in range(num_layers))) for _ in range(num_heads)
        )
        self.shared = shared
        if shared:
            self.register_buffer("head", target_head.clone())
        else:
            self.lm_heads = nn.ParameterList(nn.Parameter(target_head.clone()) for _ in range(num_heads))

    def __len__(self) -> int:
        return len(self.blocks)

    def logits(self, head: int, features: Tensor) -> Tensor:
        """Scores of the vocabulary by one head."""
        weight = self.head if self.shared else self.lm_heads[head]
        return self.blocks[head](features) @ weight.T

    def target_features(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """What it reads of the target: transformers' last hidden state is normed."""
        return hidden_states[-1]

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """One vocabulary."""
        return draft_ids

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """By their published names; shared last layers share their memory."""
        tensors = {}
        shared = self.head.to(dtype) if self.shared else None
        for i, blocks in enumerate(self.blocks):
            for layer, block in enumerate(blocks):
                tensors[f"{i}.{layer}.linear.weight"] = block.linear.weight.data.to(dtype)
                tensors[f"{i}.{layer}.linear.bias"] = block.linear.bias.data.to(dtype)
            tensors[f"{i}.{len(blocks)}.weight"] = shared if self.shared else self.lm_heads[i].data.to(dtype)
        return tensors


def save_heads(folder: Path, heads: Heads, dtype: torch.dtype, prefix: str | None = None, **config: object) -> None:
    """A folder as the authors write it, or, with a `prefix` of the names, with safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = heads.tensors(dtype)
    if prefix is None:
        torch.save(tensors, folder / TORCH_FILE)
    else:
        named = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_heads(folder: Path, num_heads: int, num_layers: int) -> Heads:
    """What a folder of the authors' holds, in float32."""
    tensors = torch.load(folder / TORCH_FILE, weights_only=True)
    heads = Heads(num_heads, num_layers, tensors[f"0.{num_layers}.weight"].float())
    for i in range(num_heads):
        for layer, block in enumerate(heads.blocks[i]):
            block.linear.weight.data = tensors[f"{i}.{layer}.linear.weight"].float()
            block.linear.bias.data = tensors[f"{i}.{layer}.linear.bias"].float()
        heads.lm_heads[i].data = tensors[f"{i}.{num_layers}.weight"].float()
    return heads.requires_grad_(False)


def load_named(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder with safetensors."""
    return load_file(folder / "model.safetensors")


@torch.no_grad()
def draft_tree(heads: Heads, embeddings: Tensor, features: Tensor, text: list[int], shape: TreeShape) -> DraftTree:
    """As `eagle3_reference.draft_tree`, no deeper than there are heads."""
    del embeddings
    top_k, depth = shape.top_k, min(shape.depth, len(heads) - 1)
    text_logits = heads.logits(0, features)
    pool = children(heads, text_logits[-1:], [-1], torch.zeros(1), top_k)
    beam, levels = list(range(top_k)), []
    for level in range(depth):
        levels.append(Level(beam, heads.logits(level + 1, features[-1:]).expand(top_k, -1)))
        path_logprobs = torch.tensor([pool[node].path_logprob for node in beam])
        block = len(pool)
        pool += children(heads, levels[-1].logits, beam, path_logprobs, top_k)
        beam = best(pool, range(block, len(pool)), top_k)
    chosen = sorted(best(pool, range(len(pool)), shape.num_nodes - 1))
    index_in_tree = {-1: 0} | {node: i for i, node in enumerate(chosen, start=1)}
    return DraftTree(
        tokens=[text[-1]] + [pool[node].token for node in chosen],
        parents=[-1] + [index_in_tree[pool[node].parent] for node in chosen],
        flat_ids=[-1] + chosen,
        pool=pool,
        text_logits=text_logits,
        levels=levels,
    )
