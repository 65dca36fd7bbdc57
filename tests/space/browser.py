"""Chromium, used as a visitor uses it; its requests and errors are recorded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = "/usr/bin/chromium"
# What gradio's client writes when a page is left before an answer has come: its open requests are aborted.
ABORTED_BY_LEAVING = ("AbortError: signal is aborted without reason", "Connection errored out.")
DESKTOP, PHONE = (1280, 900), (390, 844)
TABS = ("Try it", "Many at once", "About", "API")
LONGEST_MILLISECONDS = 120_000
# Words of the cells of tables that are on more than one line.
BROKEN_WORDS = """cells => cells.flatMap(cell => {
  const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
  while (texts.nextNode()) {
    for (const word of texts.currentNode.data.matchAll(/[\\p{L}\\p{N}_.]+/gu)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map(place => Math.round(place.top)));
      if (lines.size > 1) broken.push(word[0]);
    }
  }
  return broken;
})"""
IN_VIEW = """() => {
  const top = document.querySelector(".verdict:not(.empty)")?.getBoundingClientRect().top;
  return top >= 0 && top < innerHeight;
}"""
# What one button has shown since it was watched: some words stay for two seconds alone, which a busy machine misses.
WATCH = """button => {
  window.shown = [];
  new MutationObserver(() => window.shown.push(button.innerText)).observe(button, {childList: true, subtree: true});
}"""
ARGUMENTS = [
    "--no-sandbox",
    # No request leaves this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; without one the tests are skipped, unless REQUIRE_BROWSER is 1."""
    missing = None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "the Python package playwright"
    if not Path(CHROMIUM).is_file() and shutil.which(CHROMIUM) is None:
        missing = CHROMIUM
    if missing:
        message = f"no {missing}: `make browser` installs it"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """An open page, and what the browser did meanwhile.

    Attributes:
        page: playwright's page.
        hosts: of all requests.
        complaints: errors on the console, exceptions, dialogs.
    """

    page: Any
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def restart(self) -> "Visit":
        """Load the page again, without what an earlier test has left in its fields."""
        with self.leaving():
            self.page.reload(wait_until="domcontentloaded")
        self.page.get_by_role("tab", name="Try it").wait_for()
        return self

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Inside, the page is left: that its open requests are aborted is no error."""
        before = len(self.complaints)
        yield
        self.complaints[before:] = [line for line in self.complaints[before:] if not _comes_from_leaving(line)]

    def tab(self, name: str) -> None:
        """Open one of the tabs."""
        self.page.get_by_role("tab", name=name).click()

    def answer(self) -> tuple[str, str]:
        """Label and share of a prediction, once it is shown."""
        verdict = self.page.locator(".verdict:not(.empty) .answer")
        verdict.wait_for()
        return verdict.locator("strong").inner_text(), verdict.locator("span").inner_text()

    def answer_in_view(self) -> dict[str, float]:
        """The place of the prediction in the window, once it has been scrolled into it: x, y, width and height."""
        self.page.wait_for_function(IN_VIEW)
        place: dict[str, float] = self.page.locator(".verdict").bounding_box()
        return place

    def picture(self, name: str) -> None:
        """Save a screenshot of the whole page in the folder BROWSER_SCREENSHOTS of the environment."""
        if folder := os.environ.get("BROWSER_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            width = self.page.viewport_size["width"]
            self.page.screenshot(path=Path(folder) / f"{name}-{width}.png", full_page=True, animations="disabled")

    def broken_words(self) -> list[str]:
        """Words in the cells of tables that are broken."""
        words: list[str] = self.page.locator(":is(.card-text, .help, .results) :is(th, td)").evaluate_all(BROKEN_WORDS)
        return words

    def width(self) -> int:
        """How wide the page is; it has to be scrolled sideways if that is more than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def refuse(self, dialog: Any) -> None:
        """The page opens no dialogs: one can only come from an attack."""
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def problems(self) -> list[str]:
        """Violations of WCAG and of its own rules that axe finds."""
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['help']}: {node['html'][:200]}" for one in violations for node in one["nodes"]]


def _comes_from_leaving(line: str) -> bool:
    return any(words in line for words in ABORTED_BY_LEAVING)


@contextmanager
def visit(browser: Any, url: str, *, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Iterator[Visit]:
    """Open a page; in the end all its requests must have gone to this machine, without errors."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write", "camera"],
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(LONGEST_MILLISECONDS)
    here = Visit(page)
    page.on("request", lambda request: here.hosts.add(urlsplit(request.url).hostname or ""))
    page.on("console", lambda line: here.complaints.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: here.complaints.append(str(error)))
    page.on("dialog", here.refuse)
    # Not until the network is idle: the stream of the queue stays open.
    page.goto(url, wait_until="domcontentloaded")
    page.get_by_role("tab", name="Try it").wait_for()
    yield here
    with here.leaving():
        context.close()
    assert here.hosts <= {"127.0.0.1", ""}
    assert not here.complaints, here.complaints
