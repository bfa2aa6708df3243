"""A server of its own, a real browser at it, and what one does with its page."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.processes import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).parents[2]
WIDE = {"width": 1280, "height": 800}
SEED = 7
MOST_FRAMES = 200
LIMIT = 60_000  # milliseconds until a document is there
TOKENS = """(column) => [...document.querySelectorAll(".document")[column].querySelectorAll(".token")]
  .map((element) => element.token)"""

# Tokens that are inserted before others, and before the end, as somebody sees who looks at the page.
WATCH = """() => {
  window.between = 0;
  const stop = document.getElementById("stop");
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) {
      for (const node of addedNodes) {
        const next = node.classList?.contains("made") && node.nextElementSibling;
        if (next && !stop.hidden) window.between += 1;
      }
    }
  }).observe(document.getElementById("columns"), { childList: true, subtree: true });
}"""


class Server:
    """oneflow serve on a port of its own."""

    def __init__(self, *words: str, token: str = ""):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.words, self.address = words, f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "ONEFLOW_TOKEN": token}
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is well."""
        command = [sys.executable, "-m", "oneflow_dist.commands.serve", *self.words, "--port", str(self.port)]
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, start_new_session=True, stdout=nothing, stderr=nothing
        )
        wait_until(lambda: self.is_well() or self.process.poll() is not None, "the server", pause=0.2)
        if self.process.poll() is not None:
            raise ValueError(f"{' '.join(command)}: ended with code {self.process.returncode}; run it to see why")

    def is_well(self) -> bool:
        """Whether it says so."""
        try:
            with urllib.request.urlopen(f"{self.address}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """As a machine that fails: it and its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """As somebody ends it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(kw_only=True)
class Visit:
    """A browser at a server, and what it has complained of or asked for elsewhere."""

    browser: Browser
    server: Server
    second: str = ""  # name of another model that is served
    pictures: Path | None = None
    complaints: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()  # what the console may say, where something is refused on purpose

    @contextmanager
    def open(self, path: str = "/", **options: Any) -> Iterator[Page]:
        """The page in a new context, as somebody else has it."""
        with self.context(**options) as context:
            yield self.load(context.new_page(), path)

    @contextmanager
    def context(self, **options: Any) -> Iterator[BrowserContext]:
        """A browser without any past."""
        context = self.browser.new_context(**{"viewport": WIDE, **options})
        context.set_default_timeout(LIMIT)
        context.on("request", lambda request: self._look(request.url))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on("console", lambda message: self._hear(message.type, message.text))
        try:
            yield context
        finally:
            context.close()

    def load(self, page: Page, path: str = "/") -> Page:
        """Go there, and wait until something can be written."""
        page.goto(self.server.address + path)
        page.wait_for_selector("#generate:enabled")
        return page

    def _look(self, url: str) -> None:
        if not url.startswith((self.server.address, "data:", "blob:")):
            self.complaints.append(f"asks for {url}")

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(own in text for own in self.expected):
            self.complaints.append(f"console: {text}")

    def shoot(self, page: Page, name: str) -> None:
        """A screenshot, where they are wanted."""
        if self.pictures is not None:
            page.screenshot(path=self.pictures / name)


Check = Callable[[Visit], str]  # says what was seen, or raises ValueError


def check(is_so: object, what: str) -> None:
    """Raise unless it is so."""
    if not is_so:
        raise ValueError(what)


def begin(page: Page, prompt: str = "count up:", seed: int = SEED, **settings: float) -> None:
    """Write a prompt and press the button."""
    page.fill("#prompt", prompt)
    page.fill("#seed", str(seed))
    for name, value in settings.items():
        page.get_by_label(name, exact=True).and_(page.locator("input[type=number]")).first.fill(str(value))
    page.click("#generate")


def finish(page: Page) -> None:
    """Wait for the document."""
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#after", state="visible")


def write(page: Page, **what: Any) -> list[dict[str, Any]]:
    """Generate, and return the tokens of the document."""
    begin(page, **what)
    finish(page)
    return tokens(page)


def tokens(page: Page, column: int = 0) -> list[dict[str, Any]]:
    """What stands on the page."""
    return list(page.evaluate(TOKENS, column))


def state_of(page: Page) -> int:
    """The step that the slider shows."""
    return int(page.input_value(".track input"))


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until something of this kind has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise ValueError(f"{selector}: Tab does not lead there")


def record(page: Page, path: Path) -> int:
    """The page until a document is there, as a picture that moves; returns how many frames it has."""
    frames: list[Image.Image] = []
    while page.is_visible("#stop") and len(frames) < MOST_FRAMES:
        frames.append(look(page))
    finish(page)
    frames += [look(page)] * 12
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=180, loop=0, optimize=True)
    return len(frames)


def look(page: Page) -> Image.Image:
    """A screenshot in few colours."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        return picture.convert("RGB").quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def run(name: str, visit: Visit, act: Check) -> bool:
    """Do it, and print a line; whether it was right."""
    from playwright.sync_api import Error

    start, is_right = time.monotonic(), True
    visit.complaints, visit.expected = [], ()
    try:
        said = act(visit)
        check(not visit.complaints, "; ".join(visit.complaints))
    except (ValueError, Error) as error:
        said, is_right = str(error).split("\n")[0], False
    verdict = "ok" if is_right else "WRONG"
    print(f"{verdict:5}  {name:22} {time.monotonic() - start:5.1f} s  {said}", flush=True)
    return is_right
