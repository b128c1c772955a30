"""Make tests/golden/chat/expected.json: conversations, and their texts by transformers' chat templates.

    python tools/make_chat_goldens.py [--out tests/golden/chat]

The templates beside it (NAME.jinja) are ours. They print the formats of published models, and use what the published
templates use. A conversation that a template refuses is kept with the refusal's words. `strftime_now` tells the date of
`NOW`, whatever the day.
"""

import argparse
import datetime
import json
from pathlib import Path

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from golden_files import versions

NOW = datetime.datetime(2024, 7, 26, 12, 0, 0)

# Special tokens by template.
FORMATS = {
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "llama31": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "vicuna": {"bos_token": "<s>", "eos_token": "</s>"},
    "deepseek_r1": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
    "qwen2_vl": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llava15": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def system(content):
    return {"role": "system", "content": content}


def tool(content, **fields):
    return {"role": "tool", "content": content, **fields}


def call(name, arguments, number=1):
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def text(content):
    return {"type": "text", "text": content}


IMAGE = {"type": "image"}
IMAGE_URL = {"type": "image_url", "image_url": {"url": "file:///cat.png"}}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather, as \"text\" <or> 'nothing' & more: é 天気",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "enum": ["Zürich", "Aarhus"], "description": "Where"},
                "days": {"type": "integer", "minimum": 1, "default": 1.0, "nullable": True},
                "at": {"type": "object", "properties": {}, "required": []},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}

# What every template gets, as (messages, tools, add_generation_prompt).
COMMON = [
    ([user("Hello")], None, True),
    ([user("Hello")], None, False),
    ([system("Be brief."), user("Hello")], None, True),
    ([user("One"), assistant("1"), user("Two"), assistant("2"), user("Three")], None, True),
    ([system("You count."), user("One"), assistant("1"), user("Two"), assistant("2")], None, False),
    ([user("  spaces \n"), assistant("\n\n and lines\t"), user("\x1c\u00a0odd\u2003\x1f")], None, True),
    ([system(" \n padded system \n "), user(" x "), assistant(" y "), user(" z ")], None, True),
    ([user("Grüße, 世界 👩‍👩‍👧 e\u0301 \u202e"), assistant("🙂"), user("ß→İ")], None, True),
    ([user("<s>[INST] {{ bos_token }} {% raw %} <|eot_id|> </think>")], None, True),
    ([user("")], None, True),
    ([user("'single' \"double\" \\ back\\n & <b>"), assistant("</think>x</think>y"), user("a")], None, True),
    ([user("a"), user("b")], None, True),
    ([assistant("first"), user("b")], None, True),
    ([user("a"), system("late"), user("b")], None, True),
]
OWN = {
    "llama2": [
        ([system("Only a system prompt.")], None, True),
        ([user("a"), assistant("b"), assistant("c")], None, False),
        ([user("a"), tool("t"), user("b")], None, False),
        ([system(""), user("a")], None, True),
        ([user("a"), assistant(None), user("b")], None, True),
        ([{"role": "user"}], None, True),
    ],
    "llama31": [
        ([user("Weather in Zürich?")], [WEATHER], True),
        ([system("Use tools."), user("Weather?")], [WEATHER, CLOCK], True),
        (
            [
                user("Weather?"),
                {"role": "assistant", "tool_calls": [call("weather", {"place": "Zürich", "days": 2, "at": None})]},
                tool("sunny & <warm>", tool_call_id="call_1", name="weather"),
            ],
            [WEATHER],
            True,
        ),
        (
            [
                user("Both?"),
                assistant(None, tool_calls=[call("weather", {"b": [1, 2.5, True], "a": 1e-7})]),
                {"role": "ipython", "content": [text("as a list")]},
                assistant("Done."),
            ],
            None,
            False,
        ),
        ([user("x"), assistant("", tool_calls=[call("a", {}), call("b", {}, 2)])], [CLOCK], True),
        ([system("Nobody asks.")], [CLOCK], True),
    ],
    "vicuna": [
        ([system("A system."), user("a"), assistant("b"), user("c"), assistant("d"), user("e")], None, True),
        ([user("a"), assistant("b")], None, True),
        ([user("a"), tool("t")], None, True),
        ([system("one"), system("two"), user("a")], None, True),
        ([user("a\nb\n"), assistant("c\n\nd")], None, False),
        ([user(None), assistant("b")], None, False),
    ],
    "deepseek_r1": [
        ([user("1+1?"), assistant("<think>\nOne and one.\n</think>\n\n2"), user("2+2?")], None, True),
        ([user("q"), assistant("<think>a</think>b<think>c</think>d")], None, False),
        (
            [
                user("Weather?"),
                assistant(None, tool_calls=[call("weather", '{"place": "Zürich"}'), call("clock", {"z": 1, "a": "é"}, 2)]),
                tool("sunny", tool_call_id="call_1"),
                tool("noon", tool_call_id="call_2"),
            ],
            None,
            True,
        ),
        (
            [
                user("Weather?"),
                assistant(None, tool_calls=[call("weather", "{}")]),
                tool("sunny"),
                assistant("<think>ok</think>It is sunny."),
                user("Thanks"),
            ],
            None,
            True,
        ),
        ([system("a"), user("b"), system("c")], None, True),
        ([user("a"), assistant(None), user("b")], None, True),
    ],
    "qwen2_vl": [
        ([user([IMAGE, text("What is this?")])], None, True),
        ([user([text("Compare"), IMAGE, IMAGE_URL, text("these")])], None, True),
        ([system("Look."), user([IMAGE, text("a")]), assistant("b"), user([text("c")])], None, True),
        ([user([IMAGE]), assistant([text("b"), text(" c ")])], None, False),
        ([user([])], None, True),
        ([user(None)], None, True),
    ],
    "llava15": [
        ([user([IMAGE, text("What is this?")])], None, True),
        ([user([text("Compare"), IMAGE, IMAGE, text("these")])], None, True),
        ([system("Look."), user([IMAGE, text("a")]), assistant([text("b")]), user([text("c")])], None, True),
        ([user([IMAGE])], None, True),
        ([user("a"), assistant([text("b"), text("c")])], None, False),
        ([user("a"), tool("b")], None, True),
    ],
}


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def rendered(tokenizer, messages, tools, add_generation_prompt):
    """The text, or why there is none."""
    try:
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt, "tokenize": False}
        return {"text": tokenizer.apply_chat_template(messages, **options)}
    except jinja2.exceptions.UndefinedError as error:
        return {"fails": str(error)}
    except jinja2.exceptions.TemplateError as error:
        return {"refuses": str(error)}
    except TypeError as error:
        return {"fails": str(error)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden/chat"))
    out = parser.parse_args().out
    chat_template_utils.datetime = FixedClock
    expected = {"versions": versions(), "now": int(NOW.replace(tzinfo=datetime.UTC).timestamp()), "formats": {}}
    for name, tokens in FORMATS.items():
        tiny = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny, **tokens)
        tokenizer.chat_template = (out / f"{name}.jinja").read_text()
        cases = [
            {"messages": messages, "tools": tools, "add_generation_prompt": prompt}
            | rendered(tokenizer, messages, tools, prompt)
            for messages, tools, prompt in COMMON + OWN[name]
        ]
        assert len(cases) == 20, (name, len(cases))
        expected["formats"][name] = {"special_tokens": tokens, "cases": cases}
    with open(out / "expected.json", "w", encoding="utf-8") as file:
        json.dump(expected, file, ensure_ascii=False, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
