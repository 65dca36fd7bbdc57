"""Chromium, driven as a visitor would use it; what it fetches and complains about is kept."""

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
DESKTOP, PHONE = (1280, 900), (390, 844)
TABS = ("Try it", "Many at once", "About", "API")
LONGEST_MILLISECONDS = 120_000
ARGUMENTS = [
    "--no-sandbox",
    # Whatever a page should want from elsewhere, nothing leaves this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; without one tests are skipped, but never where REQUIRE_BROWSER is 1."""
    missing = None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "the Python package playwright"
    if not Path(CHROMIUM).is_file() and shutil.which(CHROMIUM) is None:
        missing = CHROMIUM
    if missing:
        words = f"no {missing}: `make browser` installs it"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(words)
        pytest.skip(words)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open, and what the browser did and said meanwhile.

    Attributes:
        page: playwright's page.
        hosts: of everything that was asked for.
        complaints: errors on the console, exceptions, dialogs.
    """

    page: Any
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def tab(self, name: str) -> None:
        """Open one of the tabs."""
        self.page.get_by_role("tab", name=name).click()

    def answer(self) -> tuple[str, str]:
        """Label and share, once they are there."""
        verdict = self.page.locator(".verdict:not(.empty) .answer")
        verdict.wait_for()
        return verdict.locator("strong").inner_text(), verdict.locator("span").inner_text()

    def picture(self, name: str) -> None:
        """Keep a screenshot of the whole page, where the environment's BROWSER_SCREENSHOTS says."""
        if folder := os.environ.get("BROWSER_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            width = self.page.viewport_size["width"]
            self.page.screenshot(path=Path(folder) / f"{name}-{width}.png", full_page=True, animations="disabled")

    def refuse(self, dialog: Any) -> None:
        """A page of ours opens no dialogs: one that does has been made to."""
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def problems(self) -> list[str]:
        """What axe finds against WCAG and its own advice."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['help']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


@contextmanager
def visit(browser: Any, url: str, *, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Iterator[Visit]:
    """Open a page; when it is closed, it must have asked this machine alone, and not have complained."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write", "camera"],
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(LONGEST_MILLISECONDS)
    here = Visit(page)
    page.on("request", lambda request: here.hosts.add(urlsplit(request.url).hostname or ""))
    page.on("console", lambda said: here.complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: here.complaints.append(str(error)))
    page.on("dialog", here.refuse)
    # Not until the network is idle: the queue's stream never is.
    page.goto(url, wait_until="domcontentloaded")
    page.get_by_role("tab", name="Try it").wait_for()
    yield here
    context.close()
    assert here.hosts <= {"127.0.0.1", ""}
    assert here.complaints == []
