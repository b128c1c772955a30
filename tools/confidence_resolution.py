"""How much of the target's probabilities a drafter's numbers can tell: the ceiling of any controller that sees the drafter alone.

    python3 tools/record_prompts.py --temperature 1 --prompts 40 --new-tokens 100 --out records/t1
    python3 tools/confidence_resolution.py records/t1/*.jsonl

Boosted trees learn the target's probability of a drafted child on every second text, from more and more of what the drafter says, and are
judged on the other texts: the divergence that is left (nats a child), and the share of the variance that is explained. Children count by the target's
probability of their parent's path, as they count in a round. Records of a temperature above 0 hold what is needed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

LEAST_PATH = 0.02
FEATURES = {
    "confidence and depth": ["logp", "depth"],
    "and rank among siblings": ["logp", "depth", "rank"],
    "and entropy, best sibling, rest": ["logp", "depth", "rank", "entropy", "best", "rest"],
    "and the same of the parent": [
        "logp", "depth", "rank", "entropy", "best", "rest", "parent_logp", "path_logp", "parent_entropy", "parent_rank",
    ],  # fmt: skip
}


def children(record: dict, top_k: int) -> dict[str, np.ndarray]:
    """What the drafter says of every child of one recorded tree, with `prob`, the target's, and `weight`, of the path to its parent."""
    logps = np.array(record["logps"]).reshape(-1, top_k)
    probs = np.array(record["probs"]).reshape(-1, top_k)
    rest = np.clip(1 - np.exp(logps).sum(axis=1), 1e-6, 1)
    entropy = -(np.exp(logps) * logps).sum(axis=1) - rest * np.log(rest)
    count = len(logps)
    row = {name: np.zeros(count) for name in ("depth", "parent_logp", "path_logp", "parent_entropy", "parent_rank")}
    row["depth"][:] = 1
    weight = np.ones(count)
    # Row 0 is the root's; every later row is a child of an earlier one.
    for index, child in enumerate(record["rows"], start=1):
        parent, rank = divmod(child, top_k)
        row["depth"][index] = row["depth"][parent] + 1
        row["parent_logp"][index] = logps[parent, rank]
        row["path_logp"][index] = row["path_logp"][parent] + logps[parent, rank]
        row["parent_entropy"][index] = entropy[parent]
        row["parent_rank"][index] = rank
        weight[index] = weight[parent] * probs[parent, rank]
    row |= {"entropy": entropy, "best": logps[:, 0], "rest": rest, "weight": weight}
    columns = {name: np.repeat(values, top_k) for name, values in row.items()}
    columns |= {"logp": logps.ravel(), "prob": probs.ravel(), "rank": np.tile(np.arange(top_k), count)}
    kept = columns["weight"] >= LEAST_PATH
    return {name: values[kept] for name, values in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    trees, text = [], []
    for number, path in enumerate(parser.parse_args().records):
        header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        if header["temperature"] == 0:
            parser.error(f"{path} is greedy: it does not hold the target's probabilities")
        own = [children(line, header["shape"]["top_k"]) for line in lines if "rows" in line]
        trees += own
        text += [np.full(len(tree["prob"]), number) for tree in own]
    data = {name: np.concatenate([tree[name] for tree in trees]) for name in trees[0]}
    held_out = np.concatenate(text) % 2 == 1
    prob, weight = data["prob"], data["weight"]

    def show(name: str, guess: np.ndarray) -> None:
        truth, mass, guess = prob[held_out], weight[held_out], np.clip(guess, 1e-5, 1 - 1e-5)
        sure = np.clip(truth, 1e-12, 1 - 1e-12)
        divergence = truth * np.log(sure / guess) + (1 - truth) * np.log((1 - sure) / (1 - guess))
        spread = np.average((truth - np.average(truth, weights=mass)) ** 2, weights=mass)
        explained = 1 - np.average((truth - guess) ** 2, weights=mass) / spread
        print(f"{name:34} {np.average(divergence, weights=mass):.4f} nats {100 * explained:6.1f} %")

    print(f"{len(prob)} children, {held_out.sum()} of them held out")
    show("the drafter's own probability", np.exp(data["logp"][held_out]))
    for name, columns in FEATURES.items():
        table = np.stack([data[column] for column in columns], axis=1)
        model = HistGradientBoostingRegressor(max_iter=200, learning_rate=0.06, min_samples_leaf=200, random_state=0)
        model.fit(table[~held_out], prob[~held_out], sample_weight=weight[~held_out])
        show(name, model.predict(table[held_out]))


if __name__ == "__main__":
    main()
