"""Names that are markup, opened in a real browser: they are text, and nothing of them runs."""

import json
from pathlib import Path
from typing import TypeVar

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.noun import Noun
from autocompress.report import write_report
from autocompress.result import TrialResult
from tests.browser.conftest import browser, chromium
from tests.browser.pages import open_report
from tests.made import LAYERS
from tests.made_evidence import made_run

__all__ = ["browser", "chromium"]

N = TypeVar("N", bound=Noun)
NAMES = {
    "features.0": "<script>ran(1)</script>",
    "features.3": '"onmouseover="ran(2)" autofocus onfocus="ran(3)',
    "classifier": "</script><img src=x onerror=ran(4)><script>ran(5)</script>",
}
TITLE = "</title><script>ran(6)</script><svg onload=ran(7)>`|*${ran(8)}"


def renamed(text: str) -> str:
    for name, evil in NAMES.items():
        text = text.replace(name, json.dumps(evil)[1:-1])
    return text


def anew(noun: N) -> N:
    return type(noun).from_json(renamed(noun.to_json()))


@pytest.fixture
def made(tmp_path: Path) -> tuple[RunFolder, ParetoFront, list[TrialResult], Layers]:
    """A run with all that a report may tell of, in which every layer and group has such a name."""
    folder, front, results = made_run(tmp_path / "run", rivals=True)
    for file in [*folder.path.rglob("*.json"), *folder.path.rglob("*.jsonl")]:
        file.write_text(renamed(file.read_text()))
    return folder, anew(front), [anew(result) for result in results], anew(LAYERS)


def test_nothing_in_a_name_runs(browser: Chrome, made: tuple[RunFolder, ParetoFront, list[TrialResult], Layers]) -> None:
    folder, front, results, layers = made
    source = "window.ranWhat = []; window.ran = what => window.ranWhat.push(what)"
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        open_report(browser, folder, front, results, title=TITLE, layers=layers)
        opened = browser.find_elements(By.CSS_SELECTOR, "button, summary, tbody tr")
        for element in opened:  # panels, sections, sorts: whatever draws something more
            browser.execute_script("arguments[0].click()", element)
            browser.execute_script(
                "document.querySelectorAll('*').forEach(each => ['mouseover', 'focus'].forEach("
                "what => each.dispatchEvent(new Event(what, {bubbles: false}))))"
            )
        assert browser.execute_script("return window.ranWhat") == []
        assert browser.title == TITLE
        text = browser.execute_script("return document.body.textContent")
        assert all(evil in text for evil in NAMES.values()), "the names are shown"
        for selector in ("img", "[onmouseover]", "[onfocus]", "[onload]", "[onerror]"):
            assert browser.find_elements(By.CSS_SELECTOR, selector) == []
        scripts = [script.get_attribute("id") for script in browser.find_elements(By.TAG_NAME, "script")]
        assert len(scripts) == 2, "the data, and our own"
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.parametrize(
    "shown", [NAMES["features.0"], NAMES["classifier"], f'<a title="{NAMES["features.3"]}">x</a>'], ids=["one", "two", "three"]
)
def test_the_test_would_see_it(browser: Chrome, tmp_path: Path, shown: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<script>ranWhat = []; ran = what => ranWhat.push(what)</script><body>{shown}</body>")
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('*').forEach(each => each.dispatchEvent(new Event('mouseover')))")
    WebDriverWait(browser, 30).until(lambda page: page.execute_script("return ranWhat.length"))


def test_in_markdown_a_name_is_text(made: tuple[RunFolder, ParetoFront, list[TrialResult], Layers]) -> None:
    folder, front, results, layers = made
    write_report(folder, front, results, layers, title=TITLE)
    outside_of_code = "".join((folder.path / "front.md").read_text().split("```")[::2])
    assert "ran(6)" in outside_of_code
    assert not any(mark in outside_of_code for mark in ("<script", "<img", "<svg", "</title"))
