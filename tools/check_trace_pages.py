"""Generates traces with the demo pair, renders them with `smart-run trace` and checks the pages in headless Chromium.

    cargo build --release && python3 tools/check_trace_pages.py [--binary PATH] [--screenshots FOLDER]

What the browser shows is compared with the trace file: totals, and for several rounds, reached by click and by key, every node's
label, state, depth and numbers. Screenshots in light, dark and phone width go to FOLDER, to be looked at. `make check-pages`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from check_page import DESKTOP, Browser, CheckError, check_page, expect, find_chromium

ROOT = Path(__file__).resolve().parent.parent
# A round of the largest trees must be on show within this, in milliseconds.
MAX_SWITCH_MS = 500

# Everything that the tree shows, in the order of the trace's nodes, the bonus token first.
SHOWN = """[...document.querySelectorAll("#tree .node")].map(node => ({
  node: node.dataset.node === "bonus" ? -1 : Number(node.dataset.node), state: node.dataset.state, level: Number(node.getAttribute("aria-level")),
  label: node.querySelector(".token").textContent, numbers: [...node.querySelectorAll("i")].map(cell => cell.textContent),
  expanded: node.querySelectorAll("svg").length > 1, place: [node.style.left, node.style.top].join()})).sort((a, b) => a.node - b.node)"""


def token_labels() -> dict[int, str]:
    """How the page writes the demo pair's tokens, for those that are plain ASCII."""
    vocabulary = json.loads((ROOT / "assets/demo/target/tokenizer.json").read_text())["model"]["vocab"]
    marks = {"\u0120": "\u00b7", "\u010a": "\u21b5", "\u0109": "\u21e5"}
    labels = {}
    for spelling, token in vocabulary.items():
        if spelling.isascii() or set(spelling) <= set(marks) | {chr(code) for code in range(33, 127)}:
            labels[token] = "".join(marks.get(letter, letter) for letter in spelling)
    return labels


def read_trace(path: Path) -> tuple[dict, list[tuple[list[dict], dict]]]:
    """The header, and for each round its sequences and its times."""
    header, *lines = map(json.loads, path.read_text().splitlines())
    rounds, sequences = [], []
    for line in lines:
        if "tree" in line:
            sequences.append(line)
        else:
            rounds.append((sequences, line))
            sequences = []
    return header, rounds


def write_trace(path: Path, header: dict, rounds: list[tuple[list[dict], dict]]) -> None:
    """Writes rounds under new numbers."""
    lines = [header]
    for number, (sequences, times) in enumerate(rounds):
        lines += [{**sequence, "round": number, "batch": len(sequences)} for sequence in sequences]
        lines.append({**times, "round": number})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def number_text(value: float | None, ratio: bool) -> str:
    """A probability or a ratio as a node shows it."""
    if value is None:
        return "free"
    if ratio:
        return "<.01" if value < 0.005 else f"{value:.0f}" if value >= 100 else f"{value:.2f}"
    return "1" if value >= 0.9995 else "<.001" if value < 0.0005 else f"{value:.3f}"[1:]


def same_number(shown: str, value: float | None, ratio: bool) -> bool:
    """Equal texts, or equal but for the rounding of a number that the page has to five digits."""
    expected = number_text(value, ratio)
    near = [number_text(value * (1 + sign * 1e-4), ratio) for sign in (-1, 1)] if value is not None else []
    return shown == expected or shown in near


def check_tree(browser: Browser, sequence: dict, labels: dict[int, str], where: str, hidden: bool = False) -> None:
    """The tree on show is that of `sequence`."""
    tree, accepted = sequence["tree"], set(sequence["accepted"])
    depth = [0]
    for parent in tree["parents"][1:]:
        depth.append(depth[parent] + 1)
    shown = browser.run(SHOWN)
    nodes = [node for node in range(len(depth)) if not hidden or node == 0 or tree["verified"][node]]
    expect([one["node"] for one in shown] == [-1, *nodes], f"{where}: {len(shown)} nodes shown, {len(nodes)} and the bonus token in the trace")
    expect(len({one["place"] for one in shown}) == len(shown), f"{where}: nodes lie on each other")
    bonus, *rest = shown
    last = sequence["accepted"][-1] if accepted else 0
    expect(bonus["state"] == "bonus" and bonus["level"] == depth[last] + 2, f"{where}: the bonus token is not after node {last}")
    expect(bonus["label"] == labels.get(sequence["bonus_token"], bonus["label"]), f"{where}: the bonus token reads {bonus['label']!r}")
    for one in rest:
        node = one["node"]
        at = f"{where}, node {node}"
        state = "root" if node == 0 else "accepted" if node in accepted else "verified" if tree["verified"][node] else "drafted"
        expect(one["state"] == state, f"{at}: shown as {one['state']}, and it is {state}")
        expect(one["level"] == depth[node] + 1, f"{at}: shown at depth {one['level'] - 1}, and it is at {depth[node]}")
        expect(one["expanded"] == tree["expanded"][node], f"{at}: shown expanded: {one['expanded']}")
        token = tree["tokens"][node]
        expect(one["label"] == labels.get(token, one["label"]) and one["label"], f"{at}: token {token} reads {one['label']!r}")
        if node:
            columns = [(tree["q"], False), (tree["path_prob"], False), (tree["ratio"], True)]
            for text, (column, ratio) in zip(one["numbers"], columns, strict=True):
                expect(same_number(text, column[node], ratio), f"{at}: {text} shown for {column[node]}")


def check_totals(browser: Browser, rounds: list[tuple[list[dict], dict]]) -> None:
    """The header's totals are those of the trace."""
    sequences = [sequence for round_sequences, _ in rounds for sequence in round_sequences]
    accepted = sum(len(sequence["accepted"]) for sequence in sequences)
    verified = sum(sum(sequence["tree"]["verified"]) for sequence in sequences)
    drafted = sum(len(sequence["tree"]["tokens"]) for sequence in sequences)
    expected = {"rounds": f"{len(rounds):,}", "emitted": f"{accepted + len(sequences):,}", "nodes": f"{verified:,}\u00a0of {drafted:,} drafted"}
    read = lambda name: browser.run(f'document.querySelector("#total-{name} dd").textContent')
    mean = accepted / len(sequences)
    expect(abs(float(read("accepted")) - mean) < 0.0051, f"mean accepted length: {read('accepted')} shown, {mean} in the trace")
    for name, value in expected.items():
        shown = read(name)
        expect(shown == value, f"total {name}: {shown!r} shown, {value!r} in the trace")


def check_trace_page(browser: Browser, page: Path, trace: Path, labels: dict[int, str], screenshots: Path | None) -> str:
    """All of one page; returns what was seen."""
    check_page(browser, page, screenshots)
    url = page.resolve().as_uri()
    _, rounds = read_trace(trace)
    on_page = browser.run("summary.rounds.length")
    check_totals(browser, rounds)
    number = lambda: browser.run('Number(document.getElementById("number").value)')
    first = lambda index: rounds[index][0][0]
    check_tree(browser, first(0), labels, "round 0")
    # By click: the third round from the left on the canvas.
    box = browser.run('(() => { const box = strip.getBoundingClientRect(); return [box.left, box.top, step]; })()')
    clicked = min(2, on_page - 1)
    browser.click(box[0] + 12 + (clicked + 0.5) * box[2], box[1] + 100)
    expect(number() == clicked, f"a click on round {clicked} leads to round {number()}")
    check_tree(browser, first(clicked), labels, f"round {clicked}")
    # By key: on from there, to the end, and to the largest tree by its number.
    browser.run('document.getElementById("strip").focus()')
    for key, expected in [("ArrowRight", min(clicked + 1, on_page - 1)), ("End", on_page - 1), ("ArrowLeft", max(0, on_page - 2)), ("Home", 0)]:
        browser.key(key)
        expect(number() == expected, f"{key} leads to round {number()}, not {expected}")
        check_tree(browser, first(expected), labels, f"round {expected}")
    largest = max(range(on_page), key=lambda index: (len(first(index)["tree"]["tokens"]), len(first(index)["accepted"])))
    took = browser.run(f"(() => {{ const start = performance.now(); goTo({largest}); document.body.offsetHeight; return performance.now() - start; }})()")
    expect(took < MAX_SWITCH_MS, f"round {largest} takes {took:.0f} ms to show")
    check_tree(browser, first(largest), labels, f"round {largest}")
    if screenshots:
        browser.screenshot(screenshots / f"{page.stem}-largest.png")
    browser.run('document.getElementById("hide").click()')
    browser.settle()
    check_tree(browser, first(largest), labels, f"round {largest}, drafted only hidden", hidden=True)
    if screenshots:
        browser.screenshot(screenshots / f"{page.stem}-hidden.png")
    browser.run('document.getElementById("hide").click()')
    # A node by key: from the bonus token to its left, whose numbers the details then show.
    browser.run('document.querySelector("#tree [tabindex=\'0\']").focus()')
    browser.key("ArrowLeft")
    last = (first(largest)["accepted"] or [0])[-1]
    focused = browser.run("document.activeElement.dataset.node")
    expect(focused == str(last), f"left of the bonus token the focus is on {focused}, not on node {last}")
    details = browser.run('document.getElementById("details").innerText')
    expect(str(first(largest)["tree"]["tokens"][last]) in details.split(), f"node {last}: the details are {details!r}")
    for place, sequence in enumerate(rounds[largest][0][1:], 1):
        browser.run(f'(() => {{ const select = document.getElementById("sequences"); select.value = "{sequence["sequence"]}"; select.dispatchEvent(new Event("change")); }})()')
        check_tree(browser, sequence, labels, f"round {largest}, sequence {sequence['sequence']}")
        if screenshots and place == 1:
            browser.screenshot(screenshots / f"{page.stem}-sequence.png")
    missing = browser.run("timeline.findIndex((_, index) => !sizes(index))")
    if missing >= 0:
        browser.run(f"goTo({missing})")
        said = browser.run('document.getElementById("tree").innerText')
        expect("is not in this round" in said, f"round {missing}: a sequence that does not run is shown as {said!r}")
    shift = browser.run("window.layoutShift")
    expect(shift < 0.05, f"the layout jumps by {shift:.3f} from round to round")
    faults = browser.faults(url)
    expect(not faults, "; ".join(faults))
    nodes = Counter(len(sequence["tree"]["tokens"]) for sequences, _ in rounds for sequence in sequences)
    return f"{on_page} of {len(rounds)} rounds, {min(nodes)} to {max(nodes)} nodes a tree; the largest shown in {took:.0f} ms"


def generate(binary: Path, folder: Path, name: str, policy: str, tokens: int) -> Path:
    """A trace of the demo pair."""
    trace = folder / f"{name}.jsonl"
    command = [binary, "generate", "--prompt", "def main(", "--max-new-tokens", str(tokens), "--temperature", "0.7", "--seed", "1",
               "--policy", policy, "--ignore-eos", "--trace", trace]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "XDG_CACHE_HOME": str(folder)})
    return trace


def traces(binary: Path, folder: Path) -> list[Path]:
    """The traces to check: small trees, large ones, deep ones, none, several sequences, more rounds than a page holds."""
    smart = generate(binary, folder, "smart", "smart", 160)
    found = [smart, generate(binary, folder, "large", "eagle2:10,5,60", 40), generate(binary, folder, "deep", "chain:40", 40),
             generate(binary, folder, "plain", "plain", 20)]
    header, rounds = read_trace(smart)
    _, others = read_trace(found[1])
    pairs = [([*sequences, *({**other, "sequence": 5} for other in others[at][0])] if at < len(others) else sequences, times)
             for at, (sequences, times) in enumerate(rounds)]
    write_trace(folder / "batch.jsonl", header, pairs)
    write_trace(folder / "long.jsonl", header, (rounds * (4200 // len(rounds) + 1))[:4200])
    write_trace(folder / "empty.jsonl", header, [])
    return [*found, folder / "batch.jsonl", folder / "long.jsonl", folder / "empty.jsonl"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/smart-run")
    parser.add_argument("--screenshots", type=Path)
    args = parser.parse_args()
    program = find_chromium()
    if not program:
        sys.exit("check_trace_pages: no Chromium found; install it (Debian: apt-get install chromium) or name it in CHROMIUM")
    labels = token_labels()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for trace in traces(args.binary, folder):
            page = trace.with_suffix(".html")
            subprocess.run([args.binary, "trace", trace], check=True, capture_output=True)
            try:
                with Browser(program) as browser:
                    if trace.stem == "empty":
                        check_page(browser, page, args.screenshots)
                        note = browser.run('document.getElementById("note").innerText')
                        expect("no rounds" in note, f"a trace without rounds is shown as {note!r}")
                        seen = "no rounds, and says so"
                    else:
                        browser.view(DESKTOP, dark=False)
                        seen = check_trace_page(browser, page, trace, labels, args.screenshots)
            except CheckError as error:
                sys.exit(f"check_trace_pages: {page.name}: {error}")
            print(f"{page.name}: {seen}", flush=True)


if __name__ == "__main__":
    main()
