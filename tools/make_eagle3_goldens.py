"""Make tests/golden/eagle3_*/: what the published EAGLE-3 algorithm drafts, and how much of it is accepted.

    python tools/make_eagle3_goldens.py [--out tests/golden] [--case NAME]

The algorithm is tools/eagle3_reference.py. `eagle3_random`: a drafter distilled for some seconds on samples
of the random target tests/golden/llama31_gqa, so that some drafts are right. `eagle3_fc_norm`, `eagle3_norm_output`,
`eagle3_single_feature`, `eagle3_two_layers`: the same of later kinds of drafters, stored in bfloat16. `eagle3_demo`: the demo
pair in assets/demo, weights widened to float32. Everything runs in float32 on the CPU, greedily. Prompts are redrawn
until no decision, of the target or of the tree, is close: a correct runtime must give the same trees and
accepted lengths. The file format is described in tests/golden/README.md.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

import train_drafter
from eagle3 import Drafter, DrafterConfig, Variant, load_drafter, save_drafter
from eagle3_reference import DraftTree, Round, TreeShape, draft_tree, generate
from golden_files import versions, write_json
from training_loop import Budget

SHAPE = TreeShape(top_k=10, depth=5, num_nodes=60)
NEW_TOKENS = 64
MIN_LOGIT_MARGIN = 1e-3  # of the target's greedy choices
MIN_TREE_GAP = 1e-4  # in log-probability, of everything that decides the tree
MIN_DISTINCT = 12  # different tokens in a generation
KEPT_PAIRS = 8  # the last pairs of a prompt whose drafter logits are kept
KEPT_LEVELS = 2  # the first levels whose logits are kept

DEMO_PROMPTS = 4
RANDOM_PROMPT_LENGTHS = (7, 33, 150)
VARIANT_PROMPT_LENGTHS = (7, 150)
RANDOM_STEPS, RANDOM_BATCH, RANDOM_WINDOW = 300, 16, 66
RANDOM_DRAFTER = DrafterConfig(
    vocab_size=160,
    draft_vocab_size=96,
    hidden_size=48,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)
VARIANTS = {
    "eagle3_fc_norm": Variant(fc_norm=True),
    "eagle3_norm_output": Variant(norm_before_fc=True, norm_before_residual=True, norm_output=True),
    "eagle3_single_feature": Variant(use_aux_hidden_state=False),
    "eagle3_two_layers": Variant(num_hidden_layers=2),
}


@dataclass(frozen=True)
class Generation:
    """One prompt, the target's continuation, and the rounds that produce it."""

    prompt_ids: list[int]
    greedy_ids: list[int]  # a few more than NEW_TOKENS
    prompt_logits: Tensor  # [vocab], the target's after the prompt
    features: Tensor  # [prompt, 3 * hidden]
    min_margin: float
    rounds: list[Round]

    def problem(self, eos: int | None) -> str | None:
        """Why this generation would be a poor golden."""
        if eos in self.greedy_ids:
            return "ends early"
        if len(set(self.greedy_ids)) < MIN_DISTINCT:
            return "repeats itself"
        if self.min_margin < MIN_LOGIT_MARGIN:
            return f"target margin {self.min_margin:.1e}"
        gap = min(order_gap(self.rounds[0].tree), *(cut_gap(turn.tree) for turn in self.rounds))
        return f"tree gap {gap:.1e}" if gap < MIN_TREE_GAP else None


def run(
    target: LlamaForCausalLM, drafter: Drafter, prompt_ids: list[int], draft: Callable[..., DraftTree]
) -> Generation:
    """Let the target continue the prompt, then draft along its text."""
    prompt = torch.tensor([prompt_ids])
    num_greedy = NEW_TOKENS + SHAPE.depth + 2  # the last round is not cut short
    mask = torch.ones_like(prompt)
    text = target.generate(
        prompt, attention_mask=mask, do_sample=False, max_new_tokens=num_greedy, eos_token_id=None
    )
    seen = target(text, output_hidden_states=True, use_cache=False)
    logits = seen.logits[0, len(prompt_ids) - 1 : -1]
    greedy_ids = text[0, len(prompt_ids) :].tolist()
    assert greedy_ids == logits.argmax(dim=-1).tolist(), "decoding with and without a cache disagree"
    best = logits.topk(2).values
    features = drafter.target_features(seen.hidden_states)[0]
    embeddings = target.model.embed_tokens.weight
    rounds = generate(drafter, embeddings, features, text[0].tolist(), len(prompt_ids), NEW_TOKENS, SHAPE, draft)
    margin = float((best[:, 0] - best[:, 1]).min())
    return Generation(prompt_ids, greedy_ids, logits[0].clone(), features[: len(prompt_ids)], margin, rounds)


def cut_gap(tree: DraftTree) -> float:
    """By how much the nodes kept beat the best one left out, at any cut: decides which nodes the tree has."""
    top_k, gaps = SHAPE.top_k, []
    scores = sorted((node.path_logprob for node in tree.pool), reverse=True)
    gaps.append(scores[SHAPE.num_nodes - 2] - scores[SHAPE.num_nodes - 1])
    used = set(tree.flat_ids).union(*(level.nodes for level in tree.levels))
    rows = torch.cat([tree.text_logits[-1:], *(level.logits for level in tree.levels)]).log_softmax(dim=-1)
    for row, ranks in enumerate(rows.topk(top_k + 1).values):
        if row * top_k + top_k - 1 in used:  # the last child listed matters
            gaps.append(float(ranks[top_k - 1] - ranks[top_k]))
    for start in range(top_k, len(tree.pool), top_k**2):
        block = sorted((node.path_logprob for node in tree.pool[start : start + top_k**2]), reverse=True)
        gaps.append(block[top_k - 1] - block[top_k])
    return min(gaps)


def order_gap(tree: DraftTree) -> float:
    """By how much neighbours in rank differ, among expanded nodes and among siblings: decides their order."""
    gaps = []
    for level in tree.levels:
        scores = [tree.pool[node].path_logprob for node in level.nodes]
        gaps += [better - worse for better, worse in itertools.pairwise(scores)]
    for left, right in itertools.pairwise(tree.flat_ids[1:]):
        if right == left + 1 and tree.pool[left].parent == tree.pool[right].parent:
            gaps.append(tree.pool[left].path_logprob - tree.pool[right].path_logprob)
    return min(gaps)


def first_clear(
    target: LlamaForCausalLM,
    drafter: Drafter,
    prompts: Iterator[list[int]],
    draft: Callable[..., DraftTree] = draft_tree,
) -> Generation:
    """The first prompt without a close decision."""
    for prompt_ids in prompts:
        generation = run(target, drafter, prompt_ids, draft)
        problem = generation.problem(target.generation_config.eos_token_id)
        if problem is None:
            accepted = [len(turn.accepted) for turn in generation.rounds]
            print(f"  prompt of {len(prompt_ids)}: accepted {accepted}", flush=True)
            return generation
        print(f"  skipped a prompt of {len(prompt_ids)}: {problem}", flush=True)
    raise SystemExit("no prompt is left")


def kept_tensors(generation: Generation) -> dict[str, Tensor]:
    """What is kept of a generation's first round."""
    tree = generation.rounds[0].tree
    return {
        "target_logits": generation.prompt_logits,
        "features": generation.features[-KEPT_PAIRS:].clone(),
        "draft_logits": tree.text_logits[-KEPT_PAIRS:].clone(),
        "level_logits": torch.stack([level.logits for level in tree.levels[:KEPT_LEVELS]]),
    }


def write_expected(
    folder: Path,
    facts: dict,
    generations: list[Generation],
    names: list[dict],
    new_tokens: int | None = NEW_TOKENS,
    kept: Callable[[Generation], dict[str, Tensor]] = kept_tensors,
) -> None:
    """expected.json and expected.safetensors; `names` says more about each prompt, also its `new_tokens` if they differ."""
    prompts, tensors = [], {}
    for i, (name, generation) in enumerate(zip(names, generations)):
        tree = generation.rounds[0].tree
        logprobs = [0.0] + [tree.pool[node].logprob for node in tree.flat_ids[1:]]
        path_logprobs = [0.0] + [tree.pool[node].path_logprob for node in tree.flat_ids[1:]]
        prompts.append(
            dict(
                **name,
                prompt_ids=generation.prompt_ids,
                greedy_ids=generation.greedy_ids[:new_tokens],
                min_margin=round(generation.min_margin, 6),
                accepted_lens=[len(turn.accepted) for turn in generation.rounds],
                tree=dict(
                    tokens=tree.tokens,
                    parents=tree.parents,
                    flat_ids=tree.flat_ids,
                    logprobs=[round(logprob, 6) for logprob in logprobs],
                    path_logprobs=[round(logprob, 6) for logprob in path_logprobs],
                ),
                levels=[
                    dict(
                        tokens=[tree.pool[node].token for node in level.nodes],
                        path_logprobs=[round(tree.pool[node].path_logprob, 6) for node in level.nodes],
                    )
                    for level in tree.levels
                ],
            )
        )
        tensors.update({f"{name}.{i}": tensor for name, tensor in kept(generation).items()})
    save_file(tensors, folder / "expected.safetensors")
    policy = f"eagle2:{SHAPE.top_k},{SHAPE.depth},{SHAPE.num_nodes}"
    length = {} if new_tokens is None else dict(new_tokens=new_tokens)
    write_json(folder / "expected.json", dict(**facts, policy=policy, **length, versions=versions(), prompts=prompts))


def load_target(folder: Path) -> LlamaForCausalLM:
    """The target in float32, whatever it is stored in."""
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval().requires_grad_(False)


def sampled_texts(target: LlamaForCausalLM) -> Tensor:
    """What the random target says, [256, 96]."""
    starts = torch.randint(RANDOM_DRAFTER.vocab_size, (256, 4))
    mask = torch.ones_like(starts)
    return target.generate(
        starts, attention_mask=mask, do_sample=True, temperature=0.7, top_k=0, max_new_tokens=92
    )


def random_windows(texts: Tensor) -> Tensor:
    """Windows of some of the texts, to train on."""
    rows = torch.randint(len(texts), (RANDOM_BATCH,))
    start = int(torch.randint(texts.size(1) - RANDOM_WINDOW, ()))
    return texts[rows, start : start + RANDOM_WINDOW]


def distilled_drafter(target: LlamaForCausalLM, variant: Variant = Variant()) -> Drafter:
    """A drafter that has seen a little of what the target says."""
    torch.manual_seed(0)
    texts = sampled_texts(target)
    drafter = train_drafter.new_drafter(target, RANDOM_DRAFTER, texts.flatten(), variant)
    if variant != Variant():
        # No two norms alike, so that none is taken for another.
        for norm in (weight for weight in drafter.parameters() if weight.dim() == 1):
            norm.data += 0.2 * torch.randn_like(norm)
    train_drafter.distil(target, drafter, lambda: random_windows(texts), Budget(minutes=0, steps=RANDOM_STEPS))
    return drafter.requires_grad_(False)


def random_generations(target: LlamaForCausalLM, drafter: Drafter, lengths: tuple[int, ...]) -> list[Generation]:
    """A generation for each length of a random prompt."""
    generator = torch.Generator().manual_seed(0)
    vocab = RANDOM_DRAFTER.vocab_size
    return [
        first_clear(
            target,
            drafter,
            (torch.randint(vocab, (length,), generator=generator).tolist() for _ in range(100)),
        )
        for length in lengths
    ]


def make_random(goldens: Path) -> None:
    """The random pair: both namings of the drafter's layer, and no RoPE base, which then is 10000."""
    print("eagle3_random", flush=True)
    folder = goldens / "eagle3_random"
    target = load_target(goldens / "llama31_gqa")
    drafter = distilled_drafter(target)
    extra = dict(rope_theta=None, max_position_embeddings=512)
    save_drafter(folder / "drafter", drafter, torch.float32, **extra)
    save_drafter(
        folder / "drafter_layers0", drafter, torch.float32, rename={"midlayer.": "layers.0."}, **extra
    )
    assert torch.equal(load_drafter(folder / "drafter").fc.weight, drafter.fc.weight)

    generations = random_generations(target, drafter, RANDOM_PROMPT_LENGTHS)
    facts = dict(target="../llama31_gqa", drafters=["drafter", "drafter_layers0"])
    write_expected(folder, facts, generations, [{} for _ in generations])


def write_as_speculators(path: Path, variant: Variant) -> None:
    """The config.json at `path` once more, as vLLM's speculators write it: the layer in an object of its own, every flag spelt out."""
    layer = json.loads(path.read_text())
    flags = {name: getattr(variant, name) for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")}
    config = dict(
        architectures=["Eagle3Speculator"],
        model_type="eagle3",
        speculators_model_type="eagle3",
        draft_vocab_size=layer.pop("draft_vocab_size"),
        target_hidden_size=None,
        eagle_aux_hidden_state_layer_ids=None,
        **flags,
        tie_word_embeddings=False,
        torch_dtype=layer.pop("torch_dtype"),
        transformer_layer_config=layer,
    )
    path.write_text(json.dumps(config, indent=2) + "\n")


def make_variant(goldens: Path, case: str, variant: Variant) -> None:
    """A random pair of one kind, in the dialect that it is published in."""
    print(case, flush=True)
    folder = goldens / case / "drafter"
    target = load_target(goldens / "llama31_gqa")
    extra, rename = dict(rope_theta=None, max_position_embeddings=512), {"midlayer.": "layers.0."}
    if case == "eagle3_fc_norm":
        extra |= dict(fc_norm=True, norm_output=False)
    if case == "eagle3_single_feature":
        extra |= dict(eagle_config=dict(eagle_aux_hidden_state_layer_ids=[], use_aux_hidden_state=False))
        rename = {}
    save_drafter(folder, distilled_drafter(target, variant), torch.bfloat16, rename=rename, **extra)
    if case == "eagle3_norm_output":
        write_as_speculators(folder / "config.json", variant)
    drafter = load_drafter(folder)
    assert drafter.variant == variant
    generations = random_generations(target, drafter, VARIANT_PROMPT_LENGTHS)
    facts = dict(target="../llama31_gqa", drafters=["drafter"])
    write_expected(goldens / case, facts, generations, [{} for _ in generations])


def make_demo(goldens: Path, demo: Path) -> None:
    """The demo pair on held-out prompts."""
    print("eagle3_demo", flush=True)
    folder = goldens / "eagle3_demo"
    folder.mkdir(exist_ok=True)
    target, drafter = load_target(demo / "target"), load_drafter(demo / "drafter")
    tokenizer = Tokenizer.from_file(str(demo / "target" / "tokenizer.json"))
    lines = [json.loads(line) for line in (demo / "prompts.jsonl").read_text().splitlines()]
    prompts = {line["id"]: tokenizer.encode(line["prompt"]).ids for line in lines}
    ids = iter(prompts)
    generations, names = [], []
    for _ in range(DEMO_PROMPTS):
        generations.append(first_clear(target, drafter, (prompts[i] for i in ids)))
        names.append(dict(prompt_id=next(i for i in prompts if prompts[i] == generations[-1].prompt_ids)))
    facts = dict(target="../../../assets/demo/target", drafters=["../../../assets/demo/drafter"])
    write_expected(folder, facts, generations, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("tests/golden"), help="folder that receives a folder a case"
    )
    parser.add_argument("--demo", type=Path, default=Path("assets/demo"), help="the demo pair")
    parser.add_argument("--case", help="the only case to make")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    makers = {
        "eagle3_random": lambda: make_random(args.out),
        "eagle3_demo": lambda: make_demo(args.out, args.demo),
    }
    for case, variant in VARIANTS.items():
        makers[case] = lambda case=case, variant=variant: make_variant(args.out, case, variant)
    if args.case is not None and args.case not in makers:
        parser.error(f"--case is one of {', '.join(makers)}")
    for case in makers if args.case is None else [args.case]:
        makers[case]()


if __name__ == "__main__":
    main()
