"""Drives `smart-run serve` with OpenAI's own client and with headless Chromium.

    cargo build && python3 tools/check_serve.py [--binary PATH] [--screenshots FOLDER]

Starts two servers on free ports: the demo pair, and the demo target with a chat template written for this. Needs `pip install openai`
and Chromium. Screenshots of the page, light, dark and at a phone's width, go to FOLDER, to be looked at.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

from check_page import DESKTOP, MAX_SHIFT, PHONE, Browser, CheckError, expect, find_chromium

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\"\"\"{{ m.content }}\"\"\"\n{% else %}# {{ m.role }}\n{{ m.content }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}# assistant\n{% endif %}"
)
MESSAGES = [{"role": "system", "content": "Sort things."}, {"role": "user", "content": "def sort(items):"}]
PROMPT = "class Counter:\n    def __init__(self, items=None):\n"


@contextmanager
def server(binary: Path, *flags: str) -> Iterator[str]:
    """A running server's address; it must end well."""
    command = [binary, "serve", "--port", "0", "--device", "host", "--max-sequences", "4", "--max-context", "1024", "--log", "quiet", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().removeprefix("listening on ").strip()
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/ready")
                break
            except OSError:
                expect(time.monotonic() < deadline and process.poll() is None, "the server does not get ready")
                time.sleep(0.05)
        yield address
        process.terminate()
        expect(process.wait(60) == 0, f"exit code {process.returncode}")
    finally:
        process.kill()


def chat_model(folder: Path) -> Path:
    """The demo target with a chat template."""
    model = folder / "talker"
    shutil.copytree(ROOT / "assets/demo/target", model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    return model


def refused(call: object, kind: type[openai.APIStatusError], param: str | None) -> None:
    """`call` fails as OpenAI's client says of its own service."""
    try:
        call()
    except kind as error:
        expect(error.body["param"] == param and error.body["message"], f"{kind.__name__} names {error.body}")
        expect(error.request_id, "the error has no request id")
    else:
        raise CheckError(f"{kind.__name__} for {param} did not come")


def check_completions(client: openai.OpenAI) -> None:
    create = client.completions.create
    asked = {"model": "demo", "prompt": PROMPT, "max_tokens": 40, "temperature": 0.7, "seed": 7}
    whole = create(**asked)
    expect(create(**asked).choices[0].text == whole.choices[0].text, "the same seed gives another text")
    pieces = list(create(**asked, stream=True, stream_options={"include_usage": True}))
    expect("".join(piece.choices[0].text for piece in pieces[:-1]) == whole.choices[0].text, "the stream says something else")
    expect(pieces[-1].usage.completion_tokens == whole.usage.completion_tokens == 40, "usage")
    details = whole.usage.completion_tokens_details
    expect(details.accepted_prediction_tokens + details.rejected_prediction_tokens > 0, "nothing was drafted")
    stopped = create(**asked | {"stop": ["self"], "max_tokens": 200})
    expect("self" not in stopped.choices[0].text and stopped.choices[0].finish_reason == "stop", "stop")
    several = create(**asked, n=3)
    expect([choice.index for choice in several.choices] == [0, 1, 2] and several.choices[0].text == whole.choices[0].text, "n")
    expect(create(**asked, echo=True).choices[0].text == PROMPT + whole.choices[0].text, "echo")
    expect(client.models.list().data[0].id == "demo" and client.models.retrieve("demo").id == "demo", "models")
    refused(lambda: create(**asked | {"model": "gpt-4"}), openai.NotFoundError, "model")
    refused(lambda: create(**asked | {"temperature": 3}), openai.BadRequestError, "temperature")
    refused(lambda: create(**asked, suffix="end"), openai.BadRequestError, "suffix")


def check_completion_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=12, temperature=0, logprobs=2).choices[0]
    expect("".join(answer.logprobs.tokens) == answer.text and len(answer.logprobs.top_logprobs) == 12, "logprobs of completions")


def check_chats(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    asked = {"model": "talker", "messages": MESSAGES, "max_completion_tokens": 40, "temperature": 0.7, "seed": 7}
    whole = create(**asked)
    message = whole.choices[0].message
    expect(message.role == "assistant" and message.content and not message.tool_calls, "a chat's answer")
    said = ""
    for piece in create(**asked, stream=True):
        said += piece.choices[0].delta.content or ""
    expect(said == message.content, "the chat's stream says something else")
    with client.chat.completions.stream(**asked) as stream:
        gathered = [event.snapshot for event in stream if event.type == "content.delta"]
    expect(gathered[-1] == said, "the client's own gathering says something else")
    expect(len(create(**asked, n=2).choices) == 2, "n")
    refused(lambda: create(**asked | {"messages": []}), openai.BadRequestError, "messages")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    bound = create(**asked, response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}})
    expect(isinstance(json.loads(bound.choices[0].message.content)["ok"], bool), "an answer under a schema")
    remote = {"type": "json_schema", "json_schema": {"name": "far", "schema": {"$ref": "https://example.org/a.json"}}}
    refused(lambda: create(**asked, response_format=remote), openai.BadRequestError, "response_format")
    pictured = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]
    refused(lambda: create(**asked | {"messages": pictured}), openai.BadRequestError, "messages[0].content[0]")


def check_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="talker", messages=MESSAGES, max_tokens=12, temperature=0, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    expect(b"".join(bytes(one.bytes) for one in content).decode() == answer.choices[0].message.content, "logprobs of chats")


def wait_for_answer(browser: Browser) -> None:
    deadline = time.monotonic() + 60
    while browser.run("running !== null"):
        expect(time.monotonic() < deadline, "the page's answer does not end")
        time.sleep(0.05)
    browser.settle()


def check_page_of(browser: Browser, url: str, chats: bool, screenshots: Path | None) -> None:
    """Sends something, sees it grow, sees trees; light, dark and at a phone's width."""
    for name, size, dark in [("phone", PHONE, False), ("dark", DESKTOP, True), ("light", DESKTOP, False)]:
        where = f"{'chat' if chats else 'text'}-{name}"
        browser.view(size, dark)
        browser.load(url)
        deadline = time.monotonic() + 20
        while not browser.run("model !== null"):
            expect(time.monotonic() < deadline, f"{where}: the page finds no model")
            time.sleep(0.05)
        browser.settle()
        shift = browser.run("window.layoutShift")
        expect(shift <= MAX_SHIFT, f"{where}: the layout jumps by {shift:.3f} while it loads")
        if screenshots:
            browser.screenshot(screenshots / f"{where}-empty.png")
        text = "def sort(items):" if chats else PROMPT
        # The lengths that the text had while it grew.
        browser.run(f"""(() => {{ window.lengths = []; new MutationObserver(() => lengths.push(byId("talk").innerText.length)).observe(byId("talk"), {{childList: true, subtree: true}});
          byId("temperature").value = "0"; byId("tokens").value = "220"; byId("input").value = {json.dumps(text)}; byId("form").requestSubmit(); }})()""")
        wait_for_answer(browser)
        expect(browser.run("new Set(lengths).size") > 20, f"{where}: the answer did not come in pieces")
        rounds = browser.run("rounds.map(round => [round.tokens.length, round.accepted, round.tree ? round.tree.accepted.length : 0])")
        expect(sum(tokens for tokens, _, _ in rounds) > 100, f"{where}: {len(rounds)} rounds")
        spans = browser.run('[document.querySelectorAll(".token").length, document.querySelectorAll(".token.accepted").length]')
        expect(spans == [sum(r[0] for r in rounds), sum(r[1] for r in rounds)] and spans[1] > 0, f"{where}: {spans} tokens shown")
        largest = max(range(len(rounds)), key=lambda index: rounds[index][2])
        expect(rounds[largest][2] > 0, f"{where}: no tree was accepted of")
        browser.run(f'(() => {{ byId("all").checked = false; rounds[{largest}].spans[0].click(); }})()')
        browser.settle()
        shown = browser.run('[...document.querySelectorAll("#tree .node.accepted")].map(node => node.querySelector("b").textContent)')
        expect(len(shown) == rounds[largest][2], f"{where}: {shown} shown of {rounds[largest]}")
        expect(browser.run('document.querySelectorAll("#tree .node.bonus").length') == 1, f"{where}: the bonus token is not shown")
        expect(browser.run("document.documentElement.scrollWidth") <= size[0], f"{where}: wider than its window")
        time.sleep(1.6)  # a round of the counters
        expect(browser.run('byId("speed").textContent') != "\u2013", f"{where}: no speed is shown")
        if screenshots:
            browser.screenshot(screenshots / f"{where}.png", whole=size == PHONE)
        if chats:
            browser.run('(() => { byId("input").value = "for item in items:"; byId("form").requestSubmit(); })()')
            wait_for_answer(browser)
            expect(browser.run("messages.length") == 4, f"{where}: the conversation has not grown")
        faults = [fault for fault in browser.faults(url) if not fault.startswith(f"request: {url}")]
        expect(not faults, f"{where}: {'; '.join(faults)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/debug/smart-run")
    parser.add_argument("--screenshots", type=Path)
    args = parser.parse_args()
    program = find_chromium()
    if not program:
        sys.exit("check_serve: no Chromium found; install it (Debian: apt-get install chromium) or name it in CHROMIUM")
    drafter = str(ROOT / "assets/demo/drafter")
    try:
        with tempfile.TemporaryDirectory() as folder, server(args.binary) as demo, Browser(program) as browser:
            model = str(chat_model(Path(folder)))
            with server(args.binary, "--model", model, "--draft", drafter, "--api-key", "sesame") as talker:
                open_client = openai.OpenAI(base_url=f"{demo}/v1", api_key="any", max_retries=0)
                client = openai.OpenAI(base_url=f"{talker}/v1", api_key="sesame", max_retries=0)
                check_completions(open_client)
                check_chats(client)
                check_completion_logprobs(open_client)
                check_chat_logprobs(client)
                refused(lambda: openai.OpenAI(base_url=f"{talker}/v1", api_key="no", max_retries=0).models.list(), openai.AuthenticationError, None)
                check_page_of(browser, f"{demo}/", False, args.screenshots)
            with server(args.binary, "--model", model, "--draft", drafter) as talker:
                check_page_of(browser, f"{talker}/", True, args.screenshots)
    except CheckError as error:
        sys.exit(f"check_serve: {error}")
    print(f"OpenAI's client {openai.__version__} and the page: all as it should be")


if __name__ == "__main__":
    main()
