"""Plain decoding of a Llama by PyTorch: one step, compiled, its launches a CUDA graph. Weights are random, as time does not see them."""

import torch
import torch.nn.functional as F

from .timing import Peer, normal, place


def weight(rows: int, columns: int) -> torch.Tensor:
    return normal(rows, columns) * columns**-0.5


class Layer(torch.nn.Module):
    """A decoder layer, its keys and values `[batch, heads, context + 1, head dim]`: the last is what a step writes."""

    def __init__(self, config: dict, batch: int, context: int) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or hidden // self.heads
        self.eps = config["rms_norm_eps"]
        cache = (batch, self.kv_heads, context + 1, self.head_dim)
        tensors = {
            "first_norm": normal(hidden),
            "second_norm": normal(hidden),
            "qkv": weight((self.heads + 2 * self.kv_heads) * self.head_dim, hidden),
            "o": weight(hidden, self.heads * self.head_dim),
            "gate_up": weight(2 * inner, hidden),
            "down": weight(hidden, inner),
            "keys": normal(*cache),
            "values": normal(*cache),
        }
        # Buffers, so that what is compiled for one layer does for all.
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        norm = lambda x, gain: F.rms_norm(x, (x.shape[-1],), gain, self.eps)
        sizes = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        parts = F.linear(norm(x, self.first_norm), self.qkv).split(sizes, -1)
        q, k, v = (part.view(batch, -1, 1, self.head_dim) for part in parts)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        self.keys[:, :, -1:].copy_(k)
        self.values[:, :, -1:].copy_(v)
        attended = F.scaled_dot_product_attention(q, self.keys, self.values, enable_gqa=self.heads != self.kv_heads)
        x = x + F.linear(attended.reshape(batch, -1), self.o)
        gate, up = F.linear(norm(x, self.second_norm), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Llama(torch.nn.Module):
    """What decodes one token for each of `batch` texts, `context` tokens behind each."""

    def __init__(self, config: dict, batch: int, context: int) -> None:
        super().__init__()
        layers = [Layer(config, batch, context) for _ in range(config["num_hidden_layers"])]
        self.layers = torch.nn.ModuleList(layers)
        self.embedding = weight(config["vocab_size"], config["hidden_size"])
        self.head = weight(config["vocab_size"], config["hidden_size"])
        self.norm, self.eps = normal(config["hidden_size"]), config["rms_norm_eps"]
        angles = context * config["rope_theta"] ** -torch.arange(0, 1, 2 / layers[0].head_dim, device=place())
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, self.eps), self.head).float()
        return logits, logits.argmax(-1)


def read_bytes(config: dict, batch: int, context: int) -> int:
    """What a step must read: every weight but the embedding's, and the keys and values; bf16."""
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    layer = (2 * heads + 2 * kv_heads) * head_dim * hidden + 3 * hidden * config["intermediate_size"]
    cache = 2 * batch * kv_heads * head_dim * (context + 1)
    return 2 * (config["num_hidden_layers"] * (layer + cache) + config["vocab_size"] * hidden)


@torch.no_grad()
def decode(config: dict, batch: int, context: int, mode: str) -> Peer:
    """A step under `torch.compile(mode=mode)`, or of mode `layers` with its layers compiled alone: they are alike, so that is done once."""
    model = Llama(config, batch, context)
    tokens = torch.randint(config["vocab_size"], (batch,), device=place())
    if mode == "layers":
        for layer in model.layers:
            layer.compile(fullgraph=True)
        step = model
    else:
        step = torch.compile(model, fullgraph=True, mode=mode)
    result: list[torch.Tensor] = []

    @torch.no_grad()
    def launch(i: int) -> None:
        result[:] = step(tokens)

    @torch.no_grad()
    def check() -> None:
        # Sums are rounded in another order, layer after layer: alike as a whole, not number by number.
        with torch.compiler.set_stance("force_eager"):
            got, want = result[0], model(tokens)[0]
        if not bool((got - want).norm() < 0.05 * want.norm()):
            raise AssertionError("a compiled step decodes something else")

    return Peer(launch, check, f"torch.compile, {mode}")
