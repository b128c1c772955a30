"""What the demo pair is trained on: Python's standard library (3.11's for the shipped pair), tokenized."""

import os
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

BOS, EOS = 0, 1
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>"]
VOCAB_SIZE = 4096
SPLIT_SEED = 0  # which files are held out; prompts.jsonl quotes these
MIN_CHARS = 200
LEFT_OUT = (
    "site-packages",
    "/test/",
    "/tests/",
    "/idle_test/",
    "/encodings/",
    "/lib2to3/pgen2/",
    "__phello__",
    "pydoc_data",
)
# Words and operators keep one space before them; digits stand alone; line breaks and indentation are words.
WORDS = r" ?[A-Za-z_]+|[0-9]| ?[^\sA-Za-z0-9_]+|\n+|[ \t]+(?=\S)|\s+"


def standard_library() -> tuple[list[str], list[str]]:
    """The texts to train on and the held-out ones: one file in forty."""
    library = Path(os.__file__).parent
    files = sorted(
        path
        for path in library.rglob("*.py")
        if not any(part in f"/{path.relative_to(library)}" for part in LEFT_OUT)
    )
    random.Random(SPLIT_SEED).shuffle(files)
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    texts = [text for text in texts if len(text) > MIN_CHARS]
    num_held_out = max(8, len(texts) // 40)
    return texts[num_held_out:], texts[:num_held_out]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE that puts the begin-of-text token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL_TOKENS[BOS]} $A", special_tokens=[(SPECIAL_TOKENS[BOS], BOS)]
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts in one row of tokens, each between its begin and end tokens."""
    ids = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += [BOS, *encoding.ids, EOS]
    return torch.tensor(ids)


def random_windows(stream: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """[count, length] pieces of a stream, starting anywhere."""
    starts = torch.randint(len(stream) - length, (count,), generator=generator)
    return torch.stack([stream[start : start + length] for start in starts])
