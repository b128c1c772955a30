"""A decoder layer: live blocks from the small layer, dead ones around them.

Dead query heads and neurons come in pairs that see the same (`twins`) and write the opposite (`opposites`): both work on real numbers,
and what they add is the same bits with opposite signs. A layer that has no small one is all pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lifting.frame import Frame
from lifting.noise import Fill, Noise
from lifting.shapes import Shape


def rotary_places(head_dim: int, big_head_dim: int) -> Tensor:
    """Dimensions of a large head that turn as those of a small one do: pair i at theta^(-2i / d) goes to pair m i of D = m d,
    theta^(-2 m i / D). Pairs are (i, i + d / 2)."""
    step = big_head_dim // head_dim
    pairs = torch.arange(head_dim // 2) * step
    return torch.cat([pairs, pairs + big_head_dim // 2])


@dataclass(frozen=True)
class Norm:
    """The gains in front of a reading matrix, or of a share of its columns."""

    small: Tensor  # [h]
    big: Tensor  # [H]


class Reader:
    """Makes matrices that read normed streams: one, or several side by side."""

    def __init__(self, frame: Frame, noise: Noise, norms: list[Norm]):
        self.frame, self.noise, self.norms = frame, noise, norms

    def live(self, rows: Tensor) -> Tensor:
        """[n, norms * h] -> [n, norms * H]: the same products; the large gains are divided out."""
        chunks = rows.chunk(len(self.norms), dim=-1)
        return torch.cat([self.frame.read(c, n.small) / n.big for c, n in zip(chunks, self.norms)], dim=-1)

    def twins(self, name: str, like: Tensor, count: int, *inner: int) -> Tensor:
        """[count, *inner, norms * H] in equal pairs, whose products are as large as those of the small rows `like`."""
        return self._noisy(self.noise.twins, name, like, count, *inner)

    def independent(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """[*shape, norms * H] without pairs, as large."""
        return self._noisy(self.noise.normal, name, like, *shape)

    def silent(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """[*shape, norms * H] that reads nothing of a lifted stream."""
        return self._noisy(self.noise.normal, name, like, *shape, away=True)

    def _noisy(self, draw, name: str, like: Tensor, *shape: int, away: bool = False) -> Tensor:
        columns = []
        for part, (chunk, norm) in enumerate(zip(like.chunk(len(self.norms), dim=-1), self.norms)):
            # A Gaussian row of length r has products of standard deviation r with a normed stream, of length sqrt(H).
            length = (chunk.double() * norm.small.double()).square().sum(-1).mean().sqrt()
            width = len(norm.big)
            rows = draw(f"{name}.{part}", *shape, width, scale=float(length) / width**0.5)
            rows = self.frame.away(rows) if away else rows
            columns.append(rows / norm.big.float())
        return torch.cat(columns, dim=-1) if len(columns) > 1 else columns[0]


class LayerLift:
    """Lifts layers of `small` shape to `big`."""

    def __init__(self, small: Shape, big: Shape, frame: Frame, noise: Noise):
        self.small, self.big, self.frame, self.noise = small, big, frame, noise

    def lift(self, name: str, layer: dict[str, Tensor], live: bool, attention_norms: list[str]) -> dict[str, Tensor]:
        """The tensors of large layer `name`, float32. `layer` has the small layer's; if it is not `live`, only their scale counts.

        Attention reads the streams behind `attention_norms`, side by side.
        """
        live = live and self.noise.fill is not Fill.GAUSSIAN
        names = [*attention_norms, "post_attention_layernorm"]
        norms = {
            norm: Norm(layer[f"{norm}.weight"], self.noise.gain(f"{name}.{norm}", self.big.hidden_size)) for norm in names
        }
        reader = Reader(self.frame, self.noise, [norms[norm] for norm in attention_norms])
        tensors = {f"{norm}.weight": norms[norm].big.float() for norm in names}
        tensors |= self._attention(name, layer, live, reader)
        return tensors | self._mlp(name, layer, live, Reader(self.frame, self.noise, [norms[names[-1]]]))

    def _attention(self, name: str, layer: dict[str, Tensor], live: bool, reader: Reader) -> dict[str, Tensor]:
        small, big, hidden = self.small, self.big, self.big.hidden_size
        head_dim, big_head_dim = small.head_dim, big.head_dim
        q, k, v, o = (layer[f"self_attn.{proj}_proj.weight"] for proj in "qkvo")
        kv_heads, groups = (big.num_key_value_heads, big_head_dim), (big.num_key_value_heads, big.group)
        queries = reader.twins(f"{name}.q", q, big.num_attention_heads, big_head_dim).view(*groups, big_head_dim, -1)
        keys = reader.independent(f"{name}.k", k, *kv_heads)
        values = reader.independent(f"{name}.v", v, *kv_heads)
        scale = column_scale(o, hidden)
        outputs = self.noise.opposites(f"{name}.o", big.num_attention_heads, big_head_dim, hidden, scale=scale)
        outputs = outputs.view(*groups, big_head_dim, hidden)
        if live:
            rows, group = slice(small.num_key_value_heads), slice(small.group)
            shape = (small.num_key_value_heads, small.group)
            places = rotary_places(head_dim, big_head_dim).to(queries.device)
            if spare := big_head_dim - head_dim:
                # Scores see no difference if either side of a product is zero: the queries are, and stay dense.
                queries[rows, group] = reader.silent(f"{name}.q_spare", q, *shape, big_head_dim)
                for head in range(small.num_key_value_heads):
                    values[head, head_dim:] = reader.twins(f"{name}.v_spare.{head}", v, spare)
                    for member in range(small.group):
                        outputs[head, member, head_dim:] = self.noise.opposites(
                            f"{name}.o_spare.{head}.{member}", spare, hidden, scale=scale
                        )
            # The runtime divides scores by the square root of the large width.
            live_queries = reader.live(q) * (big_head_dim / head_dim) ** 0.5
            queries[rows, group][:, :, places] = live_queries.view(*shape, head_dim, -1).float()
            keys[rows][:, places] = reader.live(k).view(shape[0], head_dim, -1).float()
            values[rows, :head_dim] = reader.live(v).view(shape[0], head_dim, -1).float()
            outputs[rows, group, :head_dim] = self.frame.write(o).T.view(*shape, head_dim, hidden).float()
        return {
            "self_attn.q_proj.weight": queries.flatten(0, 2),
            "self_attn.k_proj.weight": keys.flatten(0, 1),
            "self_attn.v_proj.weight": values.flatten(0, 1),
            "self_attn.o_proj.weight": outputs.flatten(0, 2).T,
        }

    def _mlp(self, name: str, layer: dict[str, Tensor], live: bool, reader: Reader) -> dict[str, Tensor]:
        gate, up, down = (layer[f"mlp.{proj}_proj.weight"] for proj in ("gate", "up", "down"))
        count, hidden = self.big.intermediate_size, self.big.hidden_size
        gates, ups = reader.twins(f"{name}.gate", gate, count), reader.twins(f"{name}.up", up, count)
        downs = self.noise.opposites(f"{name}.down", count, hidden, scale=column_scale(down, hidden))
        if live:
            neurons = slice(self.small.intermediate_size)
            gates[neurons], ups[neurons] = reader.live(gate).float(), reader.live(up).float()
            downs[neurons] = self.frame.write(down).T.float()
        return {"mlp.gate_proj.weight": gates, "mlp.up_proj.weight": ups, "mlp.down_proj.weight": downs.T}


def column_scale(matrix: Tensor, height: int) -> float:
    """Standard deviation of the numbers in columns of `height` that are as long as those of `matrix`."""
    return float(matrix.double().square().sum(0).mean().sqrt()) / height**0.5
