"""The lifted target, part by part."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lifting.frame import Frame
from lifting.layer import LayerLift, Norm
from lifting.network import Network, layer_tensors
from lifting.noise import Noise
from lifting.shapes import Norms, Shape, spread
from lifting.vocabulary import Vocabulary

ATTENTION_NORMS = ["input_layernorm"]


class LiftedTarget:
    """Parts are made when asked for, so that a network of any size needs the memory of one."""

    def __init__(
        self, small: Network, big: Shape, norms: Norms, frame: Frame, noise: Noise, silence: float, dtype: torch.dtype
    ):
        self.small, self.big, self.norms, self.frame, self.noise = small, big, norms, frame, noise
        self.silence, self.dtype = silence, dtype
        self.places = spread(small.shape.num_hidden_layers, big.num_hidden_layers)

    def config(self, max_position_embeddings: int | None = None) -> dict:
        """The small model's config.json with the large sizes. Heads and embedding are two matrices, as in Llama-3-8B."""
        changes = {
            **vars(self.big),
            "rms_norm_eps": self.norms.eps,
            "tie_word_embeddings": False,
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }
        if max_position_embeddings is not None:
            changes["max_position_embeddings"] = max_position_embeddings
        return self.small.config | changes

    @property
    def num_parts(self) -> int:
        return self.big.num_hidden_layers + 2

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """Embedding, layers, and final norm with head, in `dtype`."""
        vocabulary = Vocabulary(self.frame, self.noise, self.big.vocab_size, self.dtype)
        small = self.small.tensors
        yield {"model.embed_tokens.weight": vocabulary.embedding(small["model.embed_tokens.weight"], self.norms.alpha)}
        for index in range(self.big.num_hidden_layers):
            yield {f"model.layers.{index}.{name}": t.to(self.dtype) for name, t in self._layer(index).items()}
        norm = Norm(small["model.norm.weight"], self.noise.gain("norm", self.big.hidden_size))
        head = vocabulary.head("lm_head", self.small.head, norm, self.silence)
        yield {"model.norm.weight": norm.big.to(self.dtype), "lm_head.weight": head}

    def _layer(self, index: int) -> dict[str, Tensor]:
        # A layer between live ones is as large as the live one before it.
        like = max(i for i, place in enumerate(self.places) if place <= index)
        lift = LayerLift(self.small.shape, self.big, self.frame, self.noise)
        layer = layer_tensors(self.small.tensors, f"model.layers.{like}.")
        return lift.lift(f"layers.{index}", layer, index in self.places, ATTENTION_NORMS)
