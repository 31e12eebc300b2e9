"""Draw docs/report.png and docs/report_sample.png from the shipped run; needs playwright and the system's Chromium.

Run it from the repository's root: python docs/pictures.py [RUN]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from dpbench.report.html import document

DOCS = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1400
"""Pixels; the page's column is 1,240 wide."""


def main() -> None:
    """Write both pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "results" / "toy-full"
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    with TemporaryDirectory() as place, sync_playwright() as playwright:
        page = Path(place) / "report.html"
        page.write_text(document.render([folder]), encoding="utf-8")
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = opened.new_page(viewport={"width": WIDTH, "height": 1180}, color_scheme="light")
        tab.goto(page.as_uri())
        tab.wait_for_selector(".chart .main-svg")
        tab.screenshot(path=DOCS / "report.png")
        _open_sample(tab, "TextVQA", "16")
        tab.screenshot(path=DOCS / "report_sample.png")
        opened.close()


def _open_sample(tab: Page, benchmark: str, budget: str) -> None:
    """Open a benchmark's first sample at one budget."""
    tab.set_viewport_size({"width": WIDTH, "height": 900})
    block = tab.locator(".browser").first
    block.scroll_into_view_if_needed()
    block.locator("select.task").select_option(label=benchmark)
    block.locator(".card").first.click()
    tab.locator("#sample select").select_option(label=budget)
    tab.wait_for_function("document.querySelectorAll('#sample canvas').length > 1")
    tab.wait_for_timeout(500)  # pictures decode


if __name__ == "__main__":
    main()
