"""EAGLE-1, EAGLE-3 and MSD with the EAGLE-2 dynamic tree as their authors published it, the oracle behind
tests/golden/eagle* and tests/golden/msd*.

Written for reading, for one sequence and greedy decoding. Nothing is cached between rounds, and the target
never runs a tree: each round drafts from the features of the committed text and is verified against the
target's own greedy continuation, which a lossless runtime must reproduce.

Positions. Let x[0..n) be the committed text with the round's root x[n-1], which the target has not processed
yet. The drafter's pairs are (feature of x[t], x[t+1]) at RoPE position t = 0..n-2; the output of the last one
scores the children of the root, level 0. The pass over the nodes of level d = 0, 1, .. pairs each node's
token with its parent's output, for all nodes of the level alike at position n - 1 + d.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from eagle3 import Drafter, attend


@dataclass(frozen=True)
class TreeShape:
    """`eagle2:K,D,N`."""

    top_k: int = 10  # children of an expanded node, and nodes expanded a level
    depth: int = 5  # passes over drafted nodes; the tree has one level more
    num_nodes: int = 60  # nodes to verify, root included


@dataclass(frozen=True)
class PoolNode:
    """A drafted token. Its index in the pool is the authors' flat index."""

    token: int
    parent: int  # index in the pool; -1: child of the root
    logprob: float  # given its parent
    path_logprob: float  # summed from the root


@dataclass(frozen=True)
class Level:
    """One drafter pass over drafted nodes."""

    nodes: list[int]  # indices in the pool, best first
    logits: Tensor  # [nodes, draft vocabulary]: scores of their children


@dataclass(frozen=True)
class DraftTree:
    """The tree to verify, and what it was chosen from. Node 0 is the root; parents come before children."""

    tokens: list[int]
    parents: list[int]  # index in the tree; -1 for the root
    flat_ids: list[int]  # index in the pool; -1 for the root
    pool: list[PoolNode]
    text_logits: Tensor  # [len(text) - 1, draft vocabulary]: scores after each pair of the committed text
    levels: list[Level]


@torch.no_grad()
def draft_tree(
    drafter: Drafter,
    embeddings: Tensor,
    features: Tensor,
    text: list[int],
    shape: TreeShape,
    visual: dict[int, Tensor] | None = None,
) -> DraftTree:
    """Draft after `text`, whose last token is the root; `features` [len(text) - 1, ..] are the others'.

    `visual` (MSD): what stands at the positions of pictures in place of an embedding.
    """
    layer, top_k, num_pairs, cache = drafter.midlayer, shape.top_k, len(text) - 1, []

    # The committed text, from true features.
    embedded = embedding(torch.tensor(text[1:]), embeddings)
    if visual is None:
        residual, z = layer.enter(drafter.first_features(features), embedded)
    else:
        is_visual = torch.tensor([t + 1 in visual for t in range(num_pairs)])
        for t in is_visual.nonzero()[:, 0].tolist():
            embedded[t] = visual[t + 1]
        residual, z = layer.enter(drafter.first_features(features), embedded, is_visual)
    visible = torch.ones(num_pairs, num_pairs).tril().bool()
    output = run_layers(drafter, cache, residual, z, torch.arange(num_pairs), visible)
    text_logits = drafter.logits(output)
    pool = children(drafter, text_logits[-1:], [-1], torch.zeros(1), top_k)

    # Level by level: `beam` are the nodes to expand, `ancestry` the drafted keys each of them may look at.
    beam, levels = list(range(top_k)), []
    feature = drafter.next_features(output[-1:]).expand(top_k, -1)
    ancestry = torch.zeros(top_k, 0, dtype=torch.bool)
    for depth in range(shape.depth):
        ancestry = torch.cat([ancestry, torch.eye(top_k).bool()], dim=1)
        visible = torch.cat([torch.ones(top_k, num_pairs).bool(), ancestry], dim=1)
        tokens = torch.tensor([pool[node].token for node in beam])
        positions = torch.full((top_k,), num_pairs + depth)
        residual, z = layer.enter(feature, embedding(tokens, embeddings))
        output = run_layers(drafter, cache, residual, z, positions, visible)
        levels.append(Level(beam, drafter.logits(output)))

        path_logprobs = torch.tensor([pool[node].path_logprob for node in beam])
        block = len(pool)
        pool += children(drafter, levels[-1].logits, beam, path_logprobs, top_k)
        beam = best(pool, range(block, len(pool)), top_k)
        parent_slots = torch.tensor([(node - block) // top_k for node in beam])
        feature, ancestry = drafter.next_features(output[parent_slots]), ancestry[parent_slots]

    # The likeliest nodes of all levels. Scores fall along a path, so a chosen node's parent is chosen too.
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


def run_layers(
    drafter: Drafter,
    cache: list[tuple[Tensor, Tensor]],
    residual: Tensor,
    z: Tensor,
    positions: Tensor,
    visible: Tensor,
) -> Tensor:
    """All layers over rows that enter the first as `residual` and `z`; `cache` grows by their keys and values, layer by layer."""
    for i, layer in enumerate([drafter.midlayer, *drafter.later_layers]):
        if i > 0:
            residual, z = layer.enter(residual)
        query, key, value = layer.project(z, positions)
        if i < len(cache):
            key, value = (torch.cat([old, new], dim=-2) for old, new in zip(cache[i], (key, value)))
            cache[i] = key, value
        else:
            cache.append((key, value))
        residual = layer.finish(residual, attend(query, key, value, visible))
    return residual


def children(
    drafter: Drafter, logits: Tensor, parents: list[int], path_logprobs: Tensor, top_k: int
) -> list[PoolNode]:
    """The top-k children of each parent, parent by parent, best first."""
    logprobs, draft_ids = logits.log_softmax(dim=-1).topk(top_k)
    path_logprobs = path_logprobs[:, None] + logprobs
    tokens = drafter.target_ids(draft_ids)
    return [
        PoolNode(int(tokens[i, rank]), parent, float(logprobs[i, rank]), float(path_logprobs[i, rank]))
        for i, parent in enumerate(parents)
        for rank in range(top_k)
    ]


def best(pool: list[PoolNode], nodes: range, count: int) -> list[int]:
    """The `count` nodes of the highest path score, best first, ties to the smaller index."""
    return sorted(nodes, key=lambda node: (-pool[node].path_logprob, node))[:count]


def accepted_path(tree: DraftTree, continuation: list[int]) -> list[int]:
    """The nodes, root excluded, along which the tree agrees with what the target says after the root."""
    path, parent = [], 0
    for token in continuation:
        matches = [
            i for i in range(1, len(tree.tokens)) if tree.parents[i] == parent and tree.tokens[i] == token
        ]
        if not matches:
            break
        parent = matches[0]  # siblings have different tokens: there is only one
        path.append(parent)
    return path


@dataclass(frozen=True)
class Round:
    """One round: `num_committed` tokens of text, root included, before it."""

    num_committed: int
    tree: DraftTree
    accepted: list[int]  # nodes, root excluded


def generate(
    drafter: Drafter,
    embeddings: Tensor,
    features: Tensor,
    text: list[int],
    num_prompt: int,
    num_new: int,
    shape: TreeShape,
    draft: Callable[..., DraftTree] = draft_tree,
    visual: dict[int, Tensor] | None = None,
) -> list[Round]:
    """The rounds that emit `num_new` tokens after the first `num_prompt` of `text`.

    `text` is the prompt with the target's greedy continuation, and longer than will be emitted by at least
    `depth + 2` tokens, as the last round is not cut short. The first new token comes with the prompt's own
    pass; a round then emits the accepted nodes and one token more.
    """
    rounds, num_committed = [], num_prompt + 1
    while num_committed < num_prompt + num_new:
        see = {} if visual is None else {"visual": visual}
        tree = draft(drafter, embeddings, features[: num_committed - 1], text[:num_committed], shape, **see)
        accepted = accepted_path(tree, text[num_committed:])
        rounds.append(Round(num_committed, tree, accepted))
        num_committed += len(accepted) + 1
    return rounds
