"""The page in a real browser, headless: the system's Chromium through Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import many_methods
import page_runs
import pytest

from dpbench.report.html import document as pages

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        text = pages.render([page_runs.run(base / "a run")], data_root=page_runs.data_root(base / "data"))
    (base / "report.html").write_text(text, encoding="utf-8")
    return base / "report.html"


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Any, path: Path) -> Iterator[Any]:
    """The page from disk, 1400 pixels wide; whatever it complains of or fetches fails the test."""
    width = getattr(request, "param", 1400)
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    tab, complaints = context.new_page(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    tab.goto(path.as_uri())
    tab.wait_for_selector(".chart .main-svg")
    yield tab
    assert complaints == []
    context.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of thirty methods."""
    base = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        text = pages.render([many_methods.write_methods(base / "run", 30)])
    (base / "report.html").write_text(text, encoding="utf-8")
    return base / "report.html"


@pytest.mark.parametrize("width", [400, pytest.param(1280, marks=pytest.mark.slow)])
def test_the_legend_of_thirty_methods_is_whole_and_covers_nothing(browser: Any, many: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    tab = context.new_page()
    tab.goto(many.as_uri())
    tab.wait_for_selector(".chart .main-svg")
    plot, legend, chart = (
        tab.locator(f".chart {name}").first.bounding_box() for name in (".bglayer .bg", ".legend", ".main-svg")
    )
    assert tab.locator(".chart .legendtext").count() == 30, "29 methods and the front"
    if width == 400:
        assert legend["y"] >= plot["y"] + plot["height"] + 40, "below the plot and its axis"
    else:
        assert legend["x"] >= plot["x"] + plot["width"], "beside the plot"
    assert legend["y"] + legend["height"] <= chart["y"] + chart["height"]
    entries = [box.bounding_box() for box in tab.locator(".chart .legendtext").all()]
    assert all(
        legend["y"] <= box["y"] and box["y"] + box["height"] <= legend["y"] + legend["height"] for box in entries
    )
    context.close()


@pytest.mark.parametrize("opened", [400], indirect=True)
def test_the_first_column_stays_while_a_narrow_table_scrolls(opened: Any) -> None:
    table = opened.locator(".scroll").first
    head, score = table.locator("tr", has_text="grid").locator("th"), table.locator("button.cell").first
    before = head.bounding_box()["x"], score.bounding_box()["x"]
    table.evaluate("box => box.scrollLeft = 60")
    assert head.bounding_box()["x"] == before[0]
    assert score.bounding_box()["x"] == before[1] - 60
    assert head.bounding_box()["width"] <= 0.4 * 400


def names(tab: Any) -> list[str]:
    rows = tab.locator("table.sortable").first.locator("tbody tr:not(.group):visible th")
    return [text.split()[0] for text in rows.all_inner_texts()]


both = pytest.mark.parametrize("opened", [1400, 400], indirect=True)


@both
def test_opens_without_a_complaint_and_fits_the_window(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.locator(".summary").first.inner_text().startswith("3 methods at 1 budget")
    assert opened.locator(".chart .legendtext").all_text_contents() == ["Pareto front", "holov", "grid"]


def test_sorts_and_says_so(opened: Any) -> None:
    assert names(opened) == ["none", "grid", "holov"]
    head = opened.locator("table.sortable").first.locator("thead th", has_text="POPE")
    orders = []
    for _ in range(3):
        head.locator("button").click()
        orders.append((head.get_attribute("aria-sort"), names(opened)))
    assert orders == [
        ("descending", ["none", "grid", "holov"]),
        ("ascending", ["holov", "grid", "none"]),
        ("none", ["none", "grid", "holov"]),
    ]


def test_filters_rows_by_name_and_budget(opened: Any) -> None:
    block = opened.locator(".block", has=opened.locator("table.sortable")).first
    block.locator(".find").fill("hol")
    assert names(opened) == ["holov"]
    assert block.locator(".count").inner_text() == "1 of 3 rows"
    block.locator(".find").fill("")
    block.locator("select.group").select_option(label="Keep 16 visual tokens (88.9 % pruned)")
    assert names(opened) == ["grid", "holov"]


def test_a_score_leads_to_its_command(opened: Any) -> None:
    opened.locator("table.sortable").first.locator("tr", has_text="grid").locator("button.cell").first.click()
    assert opened.locator("#cell pre").inner_text() == (
        "dpbench run --method grid --backbone toy-llava --keep 16 --tasks pope --limit 40"
    )
    opened.keyboard.press("Escape")
    assert not opened.locator("#cell").is_visible()


def test_one_method_right_and_another_wrong(opened: Any) -> None:
    block = opened.locator(".browser")
    block.locator(".right").select_option(label="grid @ 16")
    block.locator(".wrong").select_option(label="holov @ 16")
    assert block.locator(".card .q").all_inner_texts() == ["Is there a circle?"]
    block.locator(".right").select_option(label="holov @ 16")
    block.locator(".wrong").select_option(label="grid @ 16")
    assert sorted(block.locator(".card .q").all_inner_texts()) == sorted([page_runs.HOSTILE, "Is there a star?"])
    block.locator(".text").fill("star")
    assert block.locator(".card .q").all_inner_texts() == ["Is there a star?"]


@both
def test_opens_a_sample_with_answers_and_kept_patches(opened: Any) -> None:
    opened.locator(".card", has_text="Is there a square?").click()
    dialog = opened.locator("#sample")
    assert dialog.locator(".question").inner_text() == "Is there a square?"
    assert dialog.locator("p strong").first.inner_text() == "yes"
    assert dialog.locator(".tile strong").all_inner_texts() == ["none", "grid @ 16", "holov @ 16"]
    assert dialog.locator(".answer").all_inner_texts() == ["✓ yes", "✗ no", "✗ no"]
    opened.wait_for_timeout(200)
    light = (
        dialog.locator("canvas")
        .nth(1)
        .evaluate(
            """canvas => {
            const wide = canvas.width;
            const pixels = canvas.getContext("2d").getImageData(0, 0, wide, canvas.height).data;
            const middle = (at) => Math.floor((at + 0.5) * wide / 12);
            const blue = (token) => pixels[4 * (middle(Math.floor(token / 12)) * wide + middle(token % 12)) + 2];
            return [0, 1, 2, 32].map((token) => blue(token) > 60);
        }"""
        )
    )
    assert light == [True, False, True, False]  # 0, 2, 4, ..., 30 are kept
    assert dialog.locator("canvas").count() == 3, "holov's patches are drawn too"
    assert dialog.locator(".tile small").all_inner_texts() == [
        "144 tokens",
        "16 tokens",
        "16 tokens, 4 no patch (merged or zeros)",
    ]


def test_a_script_in_a_question_or_an_answer_stays_text(opened: Any) -> None:
    opened.locator(".card", has_text="window.hacked = 1").click()
    assert opened.locator("#sample .question").inner_text() == page_runs.HOSTILE
    opened.keyboard.press("Escape")
    opened.locator(".card", has_text="Is there a star?").click()
    assert page_runs.HOSTILE in opened.locator("#sample .answer").nth(1).inner_text()
    assert opened.evaluate("window.hacked") is None


def test_dark_and_light(opened: Any) -> None:
    colours = []
    for _ in range(2):
        colours.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.locator("#theme").click()
    assert colours == ["rgb(246, 247, 249)", "rgb(18, 21, 26)"]


def test_another_axis(opened: Any) -> None:
    opened.locator("select.axis").select_option(label="time to first token, median (ms)")
    assert "time to first token" in opened.locator(".chart .xtitle").text_content()
    assert opened.locator(".chart .legendtext").all_text_contents() == ["Pareto front", "none", "grid"]
