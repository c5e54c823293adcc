"""Sliders for size, latency and lost accuracy."""

from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from autocompress.result import TrialResult
from tests.browser.pages import column, complaints, open_results, plot, press, shown, text
from tests.made import made_many

pytestmark = pytest.mark.browser


def drag(browser: Chrome, name: str, place: float) -> None:
    """Puts a slider at that share of its length, and waits for the drawing."""
    browser.execute_async_script(
        "const [name, place, done] = arguments, slider = document.getElementById('max-' + name);"
        "slider.value = Math.round(place * slider.max); slider.dispatchEvent(new Event('input'));"
        "requestAnimationFrame(() => requestAnimationFrame(done))",
        name,
        place,
    )


def test_a_slider_filters_plot_table_and_counts_at_once(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    assert text(browser, "passing") == "Passing: 4 of 4 complete trials, 3 of 3 on the front."
    assert text(browser, "ends") == "Of these smallest: trial 4, fastest: trial 4, most accurate: trial 0"
    assert not shown(browser, "reset")
    drag(browser, "size", 1 / 3)  # stops are the four sizes
    assert text(browser, "max-size-words") == "24.0 kB, 17.5x smaller"
    assert (plot(browser)["front"], plot(browser)["faint"]) == ([4, 1], [])
    assert column(browser, 0) == ["4", "1 recommended"]
    assert text(browser, "passing") == "Passing: 2 of 4 complete trials, 2 of 3 on the front."
    assert text(browser, "ends") == "Of these smallest: trial 4, fastest: trial 4, most accurate: trial 1"
    drag(browser, "drop", 2 / 3)
    assert text(browser, "max-drop-words") == "1.2 points"
    assert plot(browser)["front"] == [1], "both hold"
    drag(browser, "latency", 0)
    assert text(browser, "max-latency-words") == "0.150 ms, 5.3x faster"
    assert plot(browser)["front"] == []
    assert column(browser, 0) == []
    assert text(browser, "ends") == ""
    browser.find_element(By.ID, "reset").click()
    WebDriverWait(browser, 30).until(lambda page: column(page, 0) == ["4", "1 recommended", "0"])
    assert text(browser, "max-size-words") == "any"
    assert complaints(browser) == []


def test_a_slider_is_moved_by_keys_and_says_where_it_is(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    slider = browser.find_element(By.ID, "max-size")
    browser.execute_script("arguments[0].focus()", slider)
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert slider.get_attribute("aria-valuetext") == "at most 24.0 kB, 17.5x smaller"
    WebDriverWait(browser, 30).until(lambda page: plot(page)["front"] == [4, 1])


def test_the_frame_can_follow_what_passes(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    drag(browser, "size", 1 / 3)
    assert plot(browser)["x"]["high"] > 420, "the frame stays while a slider moves"
    Select(browser.find_element(By.ID, "framed")).select_by_visible_text("what passes")
    assert plot(browser)["x"]["high"] < 30
    assert plot(browser)["front"] == [4, 1]


def test_two_thousand_trials_are_all_there_and_pass_as_the_slider_says(browser: Chrome, tmp_path: Path) -> None:
    results: list[TrialResult] = made_many(2000)
    open_results(browser, tmp_path, results, limits=())
    Select(browser.find_element(By.ID, "framed")).select_by_visible_text("all trials")
    drawn = plot(browser)
    assert sorted([*drawn["front"], *drawn["faint"]]) == list(range(2000))
    assert shown(browser, "whole"), "a long table is cut"
    assert len(column(browser, 0)) == 100
    drag(browser, "latency", 0.5)
    bound = browser.execute_script("return document.getElementById('max-latency').getAttribute('aria-valuetext')")
    most = sorted(result.metrics["latency_ms"] for result in results)
    passing = int(text(browser, "passing").split()[1].replace(",", ""))
    assert bound.startswith("at most 0.")
    assert most[passing - 1] == pytest.approx(float(bound.split()[2]), abs=6e-4)
    assert 900 < passing < 1100
    assert len(plot(browser)["front"]) + len(plot(browser)["faint"]) == passing
    assert complaints(browser) == []
