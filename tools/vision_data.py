"""What the vision-language pair is trained on: small drawings with questions and answers, made on the fly, and the tokenizer of these texts.

Three kinds: bar charts (colours and heights), numbers (digits read out and spelled), shapes (colours and places). What the answer says cannot be
guessed without the picture. One answer in sixteen is held out: no picture with that answer is trained on.
"""

import random
import zlib
from dataclasses import dataclass

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

SIDE, CELL = 56, 14
BOS, EOS, UNKNOWN, IMAGE = range(4)
SPECIAL_TOKENS = ["<s>", "</s>", "<unk>", "<image>"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

COLOURS = {
    "red": (220, 30, 30),
    "blue": (30, 60, 220),
    "green": (20, 150, 50),
    "orange": (245, 150, 0),
    "purple": (150, 40, 180),
    "black": (20, 20, 20),
}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
QUESTIONS = {
    "bars": ("Describe the chart.", "How high are the bars?", "What does the chart show?"),
    "digits": ("What number is this?", "Read the number.", "Which number does the picture show?"),
    "shapes": ("Describe the shapes.", "Which shapes are in the picture?", "What shapes do you see?"),
}
ANY_QUESTION = ("Describe the picture.", "What does the picture show?")
WORDS = r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]|\s"

FONT = ImageFont.load_default(size=22)


@dataclass(frozen=True)
class Example:
    """A picture with a question about it."""

    kind: str
    picture: Image.Image
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What the chat template makes of the question."""
        return f"USER: <image>\n{self.question} ASSISTANT:"


def listed(items: list[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def draw_bars(rng: random.Random) -> tuple[Image.Image, str]:
    """Two to four bars, each in a column of cells."""
    picture, draw = canvas(rng)
    count = rng.randint(2, 4)
    colours, heights = rng.sample(list(COLOURS), count), rng.sample(range(1, 8), count)
    for column, (colour, height) in enumerate(zip(colours, heights)):
        left = column * CELL + 2
        draw.rectangle((left, SIDE - 7 * height, left + 9, SIDE - 1), fill=COLOURS[colour])
    said = [f"the {colour} bar is {NAMES[height]} high" for colour, height in zip(colours, heights)]
    tallest = colours[heights.index(max(heights))]
    return picture, f"The chart has {NAMES[count]} bars. From left to right, {listed(said)}. The tallest bar is {tallest}."


def draw_digits(rng: random.Random) -> tuple[Image.Image, str]:
    """Two or three large digits, each in a column of cells."""
    picture, draw = canvas(rng)
    digits = [rng.randrange(10) for _ in range(rng.randint(2, 3))]
    colour = rng.choice(list(COLOURS))
    for column, digit in enumerate(digits):
        draw.text((column * CELL + CELL // 2, SIDE // 2), str(digit), COLOURS[colour], FONT, anchor="mm", stroke_width=0.7)
    number = "".join(map(str, digits))
    said = listed([NAMES[digit] for digit in digits])
    return picture, f"The picture shows the number {number}. It has {NAMES[len(digits)]} digits: {said}. It is written in {colour}."


def draw_shapes(rng: random.Random) -> tuple[Image.Image, str]:
    """One to four shapes, each in a quarter of its own."""
    picture, draw = canvas(rng)
    places = sorted(rng.sample(range(4), rng.randint(1, 4)))
    said = []
    for place in places:
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        draw_shape(draw, shape, place % 2 * 2 * CELL + 4, place // 2 * 2 * CELL + 4, COLOURS[colour])
        said.append(f"a {colour} {shape} at the {PLACES[place]}")
    verb, noun = ("is", "shape") if len(said) == 1 else ("are", "shapes")
    return picture, f"There {verb} {NAMES[len(said)]} {noun}. The picture shows {listed(said)}."


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """A shape of 20 x 20 pixels."""
    if shape == "circle":
        draw.ellipse((x, y, x + 19, y + 19), fill=colour)
    elif shape == "square":
        draw.rectangle((x + 1, y + 1, x + 18, y + 18), fill=colour)
    elif shape == "triangle":
        draw.polygon([(x, y + 19), (x + 10, y), (x + 19, y + 19)], fill=colour)
    else:
        draw.rectangle((x + 7, y, x + 12, y + 19), fill=colour)
        draw.rectangle((x, y + 7, x + 19, y + 12), fill=colour)


def canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An almost white sheet."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(236, 255) for _ in range(3)))
    return picture, ImageDraw.Draw(picture)


DRAWN = dict(bars=draw_bars, digits=draw_digits, shapes=draw_shapes)
SHARES = (1, 2, 1)  # of each kind in training: digits are the hardest


def example(rng: random.Random, held_out: bool, kind: str | None = None) -> Example:
    """A random example of those that are, or are not, held out."""
    kind = kind or rng.choices(list(DRAWN), SHARES)[0]
    while True:
        picture, answer = DRAWN[kind](rng)
        if (zlib.crc32(answer.encode()) % 16 == 0) == held_out:
            return Example(kind, picture, rng.choice(QUESTIONS[kind] + ANY_QUESTION), answer)


def new_tokenizer() -> Tokenizer:
    """A token a word, with the space before it; digits and punctuation stand alone."""
    rng = random.Random(0)
    texts = [text for _ in range(4000) for e in [example(rng, False)] for text in (e.prompt, f" {e.answer}")]
    texts += [f" {question} {word}" for word in (*COLOURS, *NAMES, *SHAPES) for question in ANY_QUESTION]
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    words = {word for text in texts for part in text.split("<image>") for word, _ in split.pre_tokenize_str(part)}
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS + sorted(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL_TOKENS[BOS]} $A", special_tokens=[(SPECIAL_TOKENS[BOS], BOS)]
    )
    return tokenizer


def pixel_values(pictures: list[Image.Image]) -> Tensor:
    """[pictures, 3, side, side], as the image processor makes them of pictures of the right size."""
    values = numpy.stack([numpy.asarray(picture, dtype=numpy.float32) for picture in pictures]) / 255.0
    values = (values - numpy.float32(MEAN)) / numpy.float32(STD)
    return torch.from_numpy(values).permute(0, 3, 1, 2).float().contiguous()


def prompt_tokens(tokenizer: Tokenizer, prompt: str, features: int) -> list[int]:
    """The prompt's tokens, with a placeholder for every feature of the picture."""
    ids = tokenizer.encode(prompt).ids
    return [i for token in ids for i in [token] * (features if token == IMAGE else 1)]
