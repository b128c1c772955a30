"""What PyTorch has for attention over trees: FlexAttention with the tree as a mask, and scaled dot products with a dense bias.

Both get keys and values without pages, [B, heads, keys, d], the prefix and then the tree: less work than ours has.
"""

import torch
import torch.nn.functional as F

from .timing import Peer, Skipped, copies, near, normal, on_gpu, place

HEAD_DIM = 128
# Bytes of a dense bias, or of keys and values, beyond which a shape is not tried.
MOST_BYTES = 8 << 30


def ancestor_matrix(parents: list[int]) -> torch.Tensor:
    """bool [n, n]: whether column is row or an ancestor of it."""
    seen = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] = seen[parent]
        seen[node, node] = True
    return seen.to(place())


class Operands:
    def __init__(self, shape: dict) -> None:
        if shape["window"] is not None or len(set(shape["contexts"])) > 1:
            raise Skipped("only all of the context, and one length")
        self.batch, self.nodes, self.context = shape["sequences"], shape["nodes"], shape["context"]
        self.q_heads, self.kv_heads = shape["q_heads"], shape["kv_heads"]
        self.keys = self.context + self.nodes
        plane = (self.batch, self.kv_heads, self.keys, HEAD_DIM)
        num_bytes = 2 * self.batch * self.kv_heads * self.keys * HEAD_DIM
        if 2 * num_bytes > MOST_BYTES:
            raise Skipped("keys and values are too large")
        self.k = [normal(*plane) for _ in range(copies(2 * num_bytes))]
        self.v = [normal(*plane) for _ in self.k]
        self.q = normal(self.batch, self.q_heads, self.nodes, HEAD_DIM)
        self.seen = ancestor_matrix(shape["parents"])

    def want(self) -> torch.Tensor:
        """The first sequence's output, [q_heads, n, d], plainly."""
        group = self.q_heads // self.kv_heads
        k = self.k[0][0].float().repeat_interleave(group, 0)
        v = self.v[0][0].float().repeat_interleave(group, 0)
        scores = self.q[0].float() @ k.transpose(1, 2) * HEAD_DIM**-0.5
        scores[:, :, self.context :].masked_fill_(~self.seen, float("-inf"))
        return scores.softmax(-1) @ v


def dense_bias(shape: dict) -> Peer:
    """`scaled_dot_product_attention` with a bias of 0 and -inf for every query and key.

    The query heads of a key head are rows of one query, so that keys and values are neither repeated nor read twice; rows of the
    bias begin at multiples of 16, or each call would copy it.
    """
    o = Operands(shape)
    group = o.q_heads // o.kv_heads
    width = (o.keys + 15) // 16 * 16
    if 2 * group * o.nodes * width > MOST_BYTES:
        raise Skipped("the bias is too large")
    bias = torch.zeros(1, 1, group, o.nodes, width, device=place(), dtype=torch.bfloat16)
    bias[..., o.context : o.keys].masked_fill_(~o.seen, float("-inf"))
    bias = bias.view(1, 1, group * o.nodes, width)[..., : o.keys]
    q = o.q.view(o.batch, o.kv_heads, group * o.nodes, HEAD_DIM)
    out: list[torch.Tensor] = [o.q]

    def launch(i: int) -> None:
        at = i % len(o.k)
        out[0] = F.scaled_dot_product_attention(q, o.k[at], o.v[at], attn_mask=bias)

    def check() -> None:
        got = out[0][0].reshape(o.q_heads, o.nodes, HEAD_DIM)
        near(got, o.want(), "scaled_dot_product_attention")

    return Peer(launch, check)


_compiled = None


def flex(shape: dict) -> Peer:
    """FlexAttention, compiled, with the prefix and ancestors visible; full blocks of keys skip the mask."""
    global _compiled
    if not on_gpu():
        raise Skipped("FlexAttention is compiled for GPUs")
    import torch._dynamo
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Every shape is compiled for itself; falling back to eager code would not be a peer.
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    o = Operands(shape)
    context, seen, last = o.context, o.seen, o.nodes - 1

    def visible(batch, head, query, key):
        # Beyond the last node there is only padding, whose rows nobody reads.
        node = torch.clamp(query, max=last)
        return (key < context) | seen[node, torch.clamp(key - context, min=0, max=last)]

    mask = create_block_mask(visible, None, None, o.nodes, o.keys, device="cuda")
    _compiled = _compiled or torch.compile(flex_attention, dynamic=False)
    out: list[torch.Tensor] = [o.q]

    def launch(i: int) -> None:
        at = i % len(o.k)
        grouped = o.q_heads != o.kv_heads
        out[0] = _compiled(o.q, o.k[at], o.v[at], block_mask=mask, enable_gqa=grouped)

    launch(0)  # compiles; not inside a capture
    return Peer(launch, lambda: near(out[0][0], o.want(), "FlexAttention"))
