"""Checks a self-contained HTML page in headless Chromium: no console errors, no requests, no layout jump, no sideways scroll.

    python3 tools/check_page.py PAGE.html [--screenshots FOLDER]

Also what other checks build on: `Browser` speaks the DevTools protocol over a pipe, with the standard library alone.
"""

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe"]
TIMEOUT = 60.0
DESKTOP, PHONE = (1360, 900), (390, 844)
# Layout shift that readers do not notice; Chromium's own bound for "good" is 0.1.
MAX_SHIFT = 0.01

# Run before the page's own scripts: adds up layout shifts that no input has caused.
WATCH_SHIFTS = """window.layoutShift = 0;
new PerformanceObserver(list => { for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.layoutShift += entry.value; })
  .observe({type: "layout-shift", buffered: true});"""


class CheckError(Exception):
    """The page is not as it should be."""


def find_chromium() -> str | None:
    """The browser of $CHROMIUM, or the first on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One headless Chromium with one tab. Use as a context manager."""

    def __init__(self, program: str) -> None:
        self.profile = tempfile.TemporaryDirectory(prefix="check-page-", ignore_cleanup_errors=True)
        to_child, self.commands = os.pipe()
        self.answers, from_child = os.pipe()

        def pipes() -> None:
            # Chromium reads commands from descriptor 3 and answers on 4; the copies first, as 3 and 4 may be in use.
            read, write = os.dup(to_child), os.dup(from_child)
            os.dup2(read, 3)
            os.dup2(write, 4)

        command = [program, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.last_id, self.session = b"", 0, None
        self.events: list[dict] = []
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH_SHIFTS)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        self.profile.cleanup()

    def receive(self, deadline: float) -> dict:
        """The next message."""
        while b"\0" not in self.buffer:
            if not select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise CheckError("the browser does not answer")
            data = os.read(self.answers, 1 << 16)
            if not data:
                raise CheckError("the browser has ended")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def send(self, method: str, **params: object) -> dict:
        """Result of a DevTools command; events that come before it are kept."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self.receive(deadline)
            if answer.get("id") == self.last_id:
                if "error" in answer:
                    raise CheckError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def wait_for(self, method: str) -> None:
        """Returns once the event `method` has come."""
        deadline = time.monotonic() + TIMEOUT
        while not any(event["method"] == method for event in self.events):
            self.events.append(self.receive(deadline))

    def run(self, expression: str) -> object:
        """Value of a JavaScript expression in the page; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise CheckError(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return result["result"].get("value")

    def view(self, size: tuple[int, int], dark: bool) -> None:
        """Sets the window's size in CSS pixels and the colour scheme."""
        width, height = size
        phone = size == PHONE
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.settle()

    def load(self, url: str) -> None:
        """Loads `url` and waits until it is drawn."""
        self.events.clear()
        self.send("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")
        self.settle()

    def settle(self) -> None:
        """Waits until what was done is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def key(self, key: str) -> None:
        """Presses and releases a key on what has the focus."""
        code = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **code)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.settle()

    def click(self, x: float, y: float) -> None:
        """Clicks at a place of the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)
        self.settle()

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Writes what the window shows, or the whole page, as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def faults(self, url: str) -> list[str]:
        """Console errors and requests since the page was loaded, other than for the page itself."""
        self.settle()
        found = []
        for event in self.events:
            params = event.get("params", {})
            match event["method"]:
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    found.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    found.append(f"console: {[argument.get('value') for argument in params['args']]}")
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    found.append(f"log: {params['entry']['text']}")
                case "Network.requestWillBeSent":
                    asked = params["request"]["url"]
                    if asked.split("#")[0] != url and not asked.startswith("data:"):
                        found.append(f"request: {asked}")
        return found


def expect(condition: object, sentence: str) -> None:
    """Raises CheckError unless `condition` holds."""
    if not condition:
        raise CheckError(sentence)


def check_page(browser: Browser, page: Path, screenshots: Path | None) -> None:
    """What holds of every self-contained page, on a desk and on a phone, light and dark. Leaves it loaded, large and light."""
    url = page.resolve().as_uri()
    for name, size, dark in [("phone-dark", PHONE, True), ("phone", PHONE, False), ("dark", DESKTOP, True), ("light", DESKTOP, False)]:
        browser.view(size, dark)
        browser.load(url)
        faults = browser.faults(url)
        expect(not faults, f"{page.name} ({name}): {'; '.join(faults)}")
        shift = browser.run("window.layoutShift")
        expect(shift <= MAX_SHIFT, f"{page.name} ({name}): the layout jumps by {shift:.3f} while it loads")
        wide = browser.run("document.documentElement.scrollWidth")
        expect(wide <= size[0], f"{page.name} ({name}): {wide} pixels wide in a window of {size[0]}")
        expect(browser.run("document.title") and browser.run("document.body.innerText.trim().length > 0"), f"{page.name} ({name}): nothing to read")
        if screenshots:
            browser.screenshot(screenshots / f"{page.stem}-{name}.png", whole=size == PHONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshots", type=Path)
    args = parser.parse_args()
    program = find_chromium()
    if not program:
        sys.exit("check_page: no Chromium found; install it (Debian: apt-get install chromium) or name it in CHROMIUM")
    try:
        with Browser(program) as browser:
            check_page(browser, args.page, args.screenshots)
    except CheckError as error:
        sys.exit(f"check_page: {error}")
    print(f"{args.page}: no errors, no requests")


if __name__ == "__main__":
    main()
