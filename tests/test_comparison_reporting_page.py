"""The page in a real browser: it draws, sorts, filters and follows the reader's choices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltatune.comparison.reporting.contents import Comparison
from deltatune.comparison.reporting.page import page
from tests.browser import Browser, browser, chromium
from tests.comparison_records import NAMES, record

pytest.importorskip("websocket", reason="websocket-client is not installed")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium in PATH: install Debian's package 'chromium'"
)

HOSTILE = ("</script><img src=x onerror=alert(1)>", "<a href='http://a.example'>b</a>", "_$x$&amp;")
SCORE = "#recipes th:nth-child(3)"  # after recipe and rank


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_page(tmp_path_factory.mktemp("twelve"), record())


@pytest.fixture
def tab(chrome: Browser, twelve: Path) -> Browser:
    """A browser that shows the page of twelve recipes; opened once, for loading takes a second."""
    if chrome.evaluate("location.href") != twelve.resolve().as_uri():
        chrome.show(twelve)
    return chrome


def written_page(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "comparison.html"
    path.write_text(page(Comparison.model_validate(json.loads(json.dumps(content)))))
    return path


def shown_names(tab: Browser) -> list[str]:
    found: list[str] = tab.evaluate(
        "[...document.querySelectorAll('#recipes tbody tr')].filter((row) => !row.hidden)"
        ".map((row) => row.cells[0].firstChild.textContent)"
    )
    return found


def test_page_draws_every_plot_without_complaints_or_network(tab: Browser) -> None:
    plots = "document.querySelectorAll('.plot .main-svg').length"
    assert tab.evaluate("document.querySelectorAll('.plot').length") == 4
    assert tab.evaluate(plots) >= 4
    # Two traces per point cloud, and a line for each of the eleven recipes with final runs.
    assert (
        tab.evaluate("document.querySelectorAll('#losses-plot .scatterlayer .trace').length") == 11
    )
    assert (
        tab.evaluate("document.querySelectorAll('#scores-plot .errorbars .errorbar').length") == 11
    )
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.complaints == []
    assert [one for one in tab.requests if not one.startswith(("file:", "data:"))] == []


def test_table_sorts_by_a_click_and_by_a_key_with_missing_numbers_last(tab: Browser) -> None:
    scores = {
        row["name"]: (row["columns"]["score"] or {}).get("mean") for row in record()["recipes"]
    }
    best_first = sorted(NAMES[:-1], key=lambda name: -scores[name])
    assert tab.evaluate(f"document.querySelector('{SCORE}').ariaSort") == "none"
    tab.click(f"{SCORE} button")
    assert tab.evaluate(f"document.querySelector('{SCORE}').ariaSort") == "descending"
    assert shown_names(tab) == [*best_first, "adalora"]
    tab.evaluate(f"document.querySelector('{SCORE} button').focus()")
    tab.press("Enter", 13)
    assert tab.evaluate(f"document.querySelector('{SCORE}').ariaSort") == "ascending"
    assert shown_names(tab) == [*reversed(best_first), "adalora"]
    tab.click("#recipes th:first-child button")
    assert shown_names(tab) == sorted(NAMES)


def test_table_filters_by_words_and_says_how_many_are_left(tab: Browser) -> None:
    tab.evaluate("document.querySelector('[data-filters=recipes]').focus()")
    tab.send("Input.insertText", text="ora")
    assert sorted(shown_names(tab)) == ["adalora", "dora", "lora", "olora", "rslora"]
    assert tab.evaluate("document.querySelector('[data-count=recipes]').textContent") == "5 of 12"
    tab.send("Input.insertText", text=" diverged")
    assert shown_names(tab) == ["adalora"]
    tab.choose("[data-filters=recipes]", "", "input")
    assert len(shown_names(tab)) == 12


def test_columns_hide_and_appear(tab: Browser) -> None:
    cells = "[...document.querySelectorAll('#recipes tr')].filter((r) => !r.cells[3].hidden).length"
    assert tab.evaluate(cells) == 13
    tab.evaluate("document.querySelector('.columns').open = true")
    tab.click("[data-hides=recipes][data-column='3']")
    assert tab.evaluate(cells) == 0
    tab.click("[data-hides=recipes][data-column='3']")
    assert tab.evaluate(cells) == 13


def test_trade_offs_redraw_when_an_axis_changes(tab: Browser) -> None:
    title = "document.querySelector('#trade-offs-plot .xtitle').textContent"
    points = "document.querySelector('#trade-offs-plot .scatterlayer').innerHTML"
    before = tab.evaluate(points)
    assert tab.evaluate(title) == "peak memory (MiB)"
    assert "full" in tab.evaluate("document.querySelector('#front').textContent")
    tab.choose("#x-axis", "median_step_seconds", "change")
    tab.wait_for(f"{title} === 'step time (ms)'")
    changed = tab.evaluate(points)
    assert changed != before
    tab.click("#x-log")
    tab.wait_for(f"{points} !== {json.dumps(changed)}")


def test_losses_show_every_run_when_asked(tab: Browser) -> None:
    count = "document.querySelectorAll('#losses-plot .scatterlayer .trace').length"
    tab.click("#every-run")
    tab.wait_for(f"{count} === 33")  # eleven recipes with three seeds
    tab.click("#every-run")
    tab.wait_for(f"{count} === 11")


def test_page_shows_hostile_names_as_text_in_the_dark_on_a_telephone(
    chrome: Browser, tmp_path: Path
) -> None:
    content = record(HOSTILE, with_failures=False)
    chrome.show(written_page(tmp_path, content), width=400, theme="dark")
    assert sorted(shown_names(chrome)) == sorted(HOSTILE)
    assert chrome.evaluate("document.querySelectorAll('img, a[href^=http], svg a').length") == 0
    labels = chrome.evaluate(
        "[...document.querySelectorAll('#scores-plot .ytick')].map((tick) => tick.textContent)"
    )
    assert sorted(labels) == sorted(HOSTILE)
    assert chrome.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Light on dark, in the plots too: the three channels of the text's colour are high.
    fill = chrome.evaluate("getComputedStyle(document.querySelector('.ytick text')).fill")
    assert min(map(int, fill.removeprefix("rgb(").rstrip(")").split(", "))) > 150
    assert chrome.complaints == []
