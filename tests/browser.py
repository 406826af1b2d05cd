"""A real browser for tests: headless Chromium driven by Playwright, and servers on loopback for it to look at.

Knows where Chromium may be, how to start a server and wait for it, and how to end both. Every page is watched: one request beyond
loopback, or one uncaught error in the page's own scripts, fails the test. Names are not even looked up (host-resolver-rules).
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = ROOT / "build" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",  # tests run as root in containers, where the sandbox cannot start; only our own pages are opened
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
DESKTOP, PHONE = (1280, 900), (390, 844)
NO_BROWSER = "no Chromium on this machine: apt install chromium, or python -m playwright install chromium"


# Colours go through a canvas, which turns every notation into bytes; backgrounds are blended from the page's root up to the text.
CONTRAST = """() => {
  const brush = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const bytes = (colour) => { brush.clearRect(0, 0, 1, 1); brush.fillStyle = colour; brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = (top, below) => below.map((value, i) => top[i] * top[3] + value * (1 - top[3]));
  const linear = (value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const background = (node) => over(bytes(getComputedStyle(node).backgroundColor),
    node.parentElement ? background(node.parentElement) : [255, 255, 255]);
  return [...document.querySelectorAll('body *')].flatMap((node) => {
    const words = [...node.childNodes].filter((child) => child.nodeType === 3).map((child) => child.data.trim()).join(' ').trim();
    const style = getComputedStyle(node);
    if (!words || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) return [];
    const below = background(node), [dark, bright] = [light(below), light(over(bytes(style.color), below))].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (bright + 0.05) / (dark + 0.05);
    return ratio < (large ? 3 : 4.5) ? [`${ratio.toFixed(2)}: ${words.slice(0, 60)}`] : [];
  });
}"""


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Yields a headless Chromium: the system's, else Playwright's own; skips the test where there is neither."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)
        if path is None:
            pytest.skip(NO_BROWSER)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_page(
    browser: "Browser", size: tuple[int, int] = DESKTOP, known: tuple[str, ...] = (), **options: object
) -> Iterator["Page"]:
    """Yields a page of its own session (no cookies shared); at its end, fails on requests beyond loopback and on script errors.

    `known` are addresses beyond loopback that the page's content names; the browser cannot reach them, and they are no failure.
    """
    seen: list[str] = []
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.on("request", lambda request: seen.append(request.url))
    context.on("weberror", lambda error: seen.append(f"error: {error.error}"))
    page = context.new_page()
    page.on("websocket", lambda socket: seen.append(socket.url))
    try:
        yield page
    finally:
        context.close()
    problems = [url for url in seen if url not in known and not stays_here(url)]
    assert seen and not problems, f"the page asked beyond loopback or failed: {problems}"


def stays_here(url: str) -> bool:
    """Returns whether a request for `url` stays on this machine: loopback, or no network at all (data:, blob:, about:)."""
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in ("127.0.0.1", "localhost")


def save_screenshot(page: "Page", name: str) -> Path:
    """Returns the file in build/browser/ that shows what the page shows now."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path)
    return path


def low_contrast(page: "Page") -> list[str]:
    """Returns the visible texts whose contrast is below WCAG 2.2's level AA (4.5, or 3 for large text), each with its ratio."""
    return page.evaluate(CONTRAST)


@contextmanager
def running(command: list[str], url: str, log: Path, seconds: float = 120, **environment: str) -> Iterator[subprocess.Popen]:
    """Yields the process of a server once `url` answers, and ends it. Raises RuntimeError with its output if it fails."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )  # fmt: skip
        try:
            wait_until_it_answers(process, url, log, seconds)
            yield process
        finally:
            stop(process)


def wait_until_it_answers(process: subprocess.Popen, url: str, log: Path, seconds: float) -> None:
    """Returns when the server answers with anything at all; raises RuntimeError when it ended or `seconds` passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it answers, if only to ask who we are
            return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"{url} did not answer within {seconds:.0f} s:\n{log.read_text(encoding='utf-8')[-3000:]}")


def stop(process: subprocess.Popen) -> None:
    """Ends the server and what it started: asked first, then by force."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, end)
            process.wait(timeout=20)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
