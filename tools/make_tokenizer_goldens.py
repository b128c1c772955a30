"""Make tests/golden/tokenizers/: SentencePiece-like tokenizers as Llama 2 has them, and what the `tokenizers` library does with texts.

    python tools/make_tokenizer_goldens.py [--out tests/golden/tokenizers]

`llama2_bpe.json`: BPE with byte fallback, a `▁` prepended to every text and put for every space, no pre-tokenizer; the decoder of Llama 2,
which drops the first space again. `llama2_unigram.json`: the same around a Unigram model. Both know few characters, so that most
others are bytes. `FILE.expected.json`: for each of 200 texts its ids and their text; no vocabulary is trained on what is asked.
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, __version__, decoders, models, normalizers, pre_tokenizers, processors, trainers

from golden_files import write_json

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCAB_SIZE = 700
NUM_TEXTS = 200

CORPUS = """The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs, she said; he did not.
def main(arguments): return sum(value * 2 for value in arguments if value > 0)
Wer reitet so spät durch Nacht und Wind? Es ist der Vater mit seinem Kind. Où est la bibliothèque? À côté de l'école.
In the beginning there was nothing, and then there was the word, and the word was given to those who asked for it.
What is the difference between the time that a pass takes and the time that it is thought to take? Numbers: 0 1 2 3 4 5 6 7 8 9.
"""

CHOSEN = [
    "", " ", "  ", "\n", "\t", "a", " a", "a ", "  a  b  ", "Hello, world!", "Hello,  world !", "\n\nTwo lines\n", "tab\there",
    "🙂", "🙂🙂", " 🙂 ", "a🙂b", "👩‍👩‍👧‍👦 family", "👍🏽", "🇩🇪🇫🇷", "❤️", "1️⃣", "日本語のテキスト", "中文 mixed with English", "Привет, мир",
    "שלום", "مرحبا بالعالم", "नमस्ते", "한국어", "naïve café", "naïve café (combining)", "spät, größer, Æther", "€ £ ¥ ₿",
    "▁", "▁▁ already", "a▁b", "<s>", "</s>", "<unk>", "a</s>b", "<s> x </s>", "<0x41>", "<0x0A>", "\u0000", "\u007f\u0080", "\ufeffBOM",
    "\u200b", "\u2028", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈", "\U0010ffff", "�", "x" * 70, "🙂" * 12, "def f(x):\n    return x + 1\n", "{\"key\": [1, 2.5e-3, null]}",
    "    indented", "trailing   ", "a\u00a0b", "\u3000wide", "https://example.org/?q=ä#ß", "C:\\path\\n", "---\n***\n", "fi ligature", "ﬁ",
]
PARTS = [
    "the ", "quick", " fox", "jumps ", "\n", "  ", "é", "ü", "ß", "🙂", "🎉", "👩‍🚀", "日", "本", "Ж", "ש", "42", "+", "=", "(x)", "</s>", "▁", ".", ", ", "\t",
    "main", "return ", "€", "🇯🇵", "ё", "Nacht ",
]


def texts() -> list[str]:
    """The chosen texts, then random ones."""
    generator = random.Random(0)
    mixed = lambda: "".join(generator.choice(PARTS) for _ in range(generator.randint(1, 14)))  # noqa: E731
    return CHOSEN + [mixed() for _ in range(NUM_TEXTS - len(CHOSEN))]


def around(model: models.Model) -> Tokenizer:
    """Llama 2's parts around a model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def trained(model: models.Model, trainer: trainers.Trainer) -> dict:
    """What training finds, on words; the finished tokenizers split nothing beforehand."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    return json.loads(tokenizer.to_str())["model"]


def bpe() -> Tokenizer:
    """BPE with bytes for what it does not know."""
    found = trained(models.BPE(), trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 259, show_progress=False))
    pieces = SPECIAL_TOKENS + BYTES + sorted(found["vocab"], key=found["vocab"].get)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in found["merges"]]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    return around(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def unigram() -> Tokenizer:
    """Unigram with bytes for what it does not know."""
    trainer = trainers.UnigramTrainer(vocab_size=VOCAB_SIZE - 259, show_progress=False)
    found = trained(models.Unigram(), trainer)
    known = [(piece, score) for piece, score in found["vocab"] if piece not in SPECIAL_TOKENS]
    vocab = [(piece, 0.0) for piece in SPECIAL_TOKENS + BYTES] + known
    return around(models.Unigram(vocab, unk_id=0, byte_fallback=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden/tokenizers"), help="folder to write")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, tokenizer in (("llama2_bpe", bpe()), ("llama2_unigram", unigram())):
        tokenizer.save(str(out / f"{name}.json"), pretty=False)
        pairs = []
        for text in texts():
            ids = tokenizer.encode(text).ids
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            assert ids == [1, *plain], text
            pairs.append(dict(text=text, ids=ids, decoded=tokenizer.decode(ids)))
        write_json(out / f"{name}.expected.json", dict(versions={"tokenizers": __version__}, pairs=pairs))
        lossless = sum(pair["decoded"] == pair["text"] for pair in pairs)
        print(f"{name}: {tokenizer.get_vocab_size()} ids, {lossless} of {len(pairs)} texts come back as they were")


if __name__ == "__main__":
    main()
