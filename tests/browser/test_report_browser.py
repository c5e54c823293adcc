from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from autocompress.folder import RunFolder
from autocompress.objective import Limit
from autocompress.report import write_report
from autocompress.result import TrialResult
from tests.browser.pages import complaints, requests
from tests.made import LAYERS, LIMITS, made_front, made_many, made_results

pytestmark = pytest.mark.browser


def opened(
    browser: Chrome,
    tmp_path: Path,
    results: Sequence[TrialResult],
    *,
    limits: Sequence[Limit] = LIMITS,
    title: str = "mnist_vgg",
) -> None:
    """The report of `results`, drawn."""
    folder = RunFolder(tmp_path / "run")
    write_report(folder, made_front(results, limits), results, LAYERS, title=title)
    browser.get((folder.path / "front.html").as_uri())
    WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#plot .plotly .xtick"))


def plot(browser: Chrome) -> dict[str, Any]:
    """What is drawn: the points of the front, and the titles of the axes."""
    drawn: dict[str, Any] = browser.execute_script(
        "const plot = document.getElementById('plot');"
        "const front = plot.data.find(trace => trace.name === 'front');"
        "return {x: front.x, y: front.y, xtitle: plot.layout.xaxis.title.text, ytitle: plot.layout.yaxis.title.text,"
        "colour: plot.layout.coloraxis.colorbar.title.text, range: plot.layout.yaxis.range, paper: plot.layout.paper_bgcolor,"
        "names: plot.data.map(trace => trace.name)}"
    )
    return drawn


def column(browser: Chrome, place: int) -> list[str]:
    """A column of the table, top to bottom, without the uncompressed model."""
    rows = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr:not(.baseline)")
    return [row.find_elements(By.TAG_NAME, "td")[place].text for row in rows]


def test_the_page_draws_without_a_complaint_and_asks_no_network(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, made_results())
    assert plot(browser)["names"] == ["other trials", "front", "recommended", "uncompressed"]
    assert plot(browser)["x"] == [9, 24, 60]
    assert plot(browser)["y"] == [0.94, 0.975, 0.981]
    assert browser.find_element(By.ID, "title").text == "mnist_vgg"
    counts = browser.find_element(By.ID, "counts").text
    assert "6 trials, 1 stopped early at a rung, 1 failed · 3 on the Pareto front" in counts
    assert [card.text for card in browser.find_elements(By.CSS_SELECTOR, "#figures b")] == [
        "17.5x smaller",
        "3.6x faster",
        "97.5%",
        "97.1 ± 0.8%",
        "-50% channels, w4 a8, 101 steps, KD T=4",
    ]
    assert requests(browser) == [browser.current_url]
    assert complaints(browser) == []


def test_the_page_can_ask_no_network_even_if_it_tries(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, made_results())
    answer = browser.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), error => done(error.name))"
    )
    assert answer == "TypeError"
    assert any("Content Security Policy" in complaint for complaint in complaints(browser))


def test_choosing_an_axis_redraws_and_a_taken_one_changes_places(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, made_results())
    before = plot(browser)
    assert (before["xtitle"], before["ytitle"], before["colour"]) == ("Size, kB", "Accuracy", "Latency, ms")
    Select(browser.find_element(By.ID, "x")).select_by_visible_text("Latency")
    after = plot(browser)
    assert (after["xtitle"], after["ytitle"], after["colour"]) == ("Latency, ms", "Accuracy", "Size, kB")
    assert after["x"] == [0.15, 0.22, 0.3]
    Select(browser.find_element(By.ID, "y")).select_by_visible_text("Latency")
    last = plot(browser)
    assert (last["xtitle"], last["ytitle"], last["colour"]) == ("Accuracy", "Latency, ms", "Size, kB")
    shown = {name: Select(browser.find_element(By.ID, name)).first_selected_option.text for name in ("x", "y", "c")}
    assert shown == {"x": "Accuracy", "y": "Latency", "c": "Size"}
    assert complaints(browser) == []


def test_pointing_at_a_trial_shows_its_policy_and_lights_its_row(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, made_results())
    points = browser.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .trace:nth-child(2) .point")
    ActionChains(browser).move_to_element(points[0]).perform()
    label = WebDriverWait(browser, 10).until(lambda page: page.find_element(By.CSS_SELECTOR, ".hoverlayer .hovertext"))
    for words in (
        "trial 4",
        "smallest, fastest",
        "-50% channels, w2 a8, 104 steps",
        "size 9.0 kB, 46.7x smaller",
        "latency 0.150 ms, 5.3x faster",
        "accuracy 94.0%",
        "test accuracy 93.6 ± 0.8%",
    ):
        assert words in label.text
    lit = browser.find_elements(By.CSS_SELECTOR, "#table tr.lit")
    assert [row.find_element(By.TAG_NAME, "td").text for row in lit] == ["4"]


def test_the_table_is_sorted_by_a_click_and_turned_by_another(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, made_results())
    assert column(browser, 0) == ["4", "1 recommended", "0"]
    heads = browser.find_elements(By.CSS_SELECTOR, "#table th button")
    heads[0].click()
    assert column(browser, 0) == ["0", "1 recommended", "4"]
    heads[0].click()
    assert column(browser, 0) == ["4", "1 recommended", "0"]
    heads[3].click()
    assert column(browser, 3) == ["98.1%", "97.5%", "94.0%"]
    sorted_by = [head.get_attribute("aria-sort") for head in browser.find_elements(By.CSS_SELECTOR, "#table th")]
    assert sorted_by == [None, None, None, "descending", None, None]
    first = browser.find_element(By.CSS_SELECTOR, "#table tbody tr")
    assert first.text.endswith("uncompressed")


def test_trials_that_learned_nothing_are_out_of_the_frame_until_asked_for(browser: Chrome, tmp_path: Path) -> None:
    results = made_many(60)
    opened(browser, tmp_path, results)
    lowest = min(result.metrics["accuracy"] for result in results)
    assert plot(browser)["range"][0] > lowest
    assert "outside the frame" in browser.find_element(By.ID, "hint").text
    browser.find_element(By.ID, "zoom").click()
    assert plot(browser)["range"][0] < lowest
    assert "outside the frame" not in browser.find_element(By.ID, "hint").text


def test_names_are_text_and_nothing_of_them_runs(browser: Chrome, tmp_path: Path) -> None:
    evil = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    results = [result.model_copy(update={"summary": evil}) for result in made_results()]
    opened(browser, tmp_path, results, title=evil)
    points = browser.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .trace:nth-child(2) .point")
    ActionChains(browser).move_to_element(points[0]).perform()
    label = WebDriverWait(browser, 10).until(lambda page: page.find_element(By.CSS_SELECTOR, ".hoverlayer .hovertext"))
    assert "<script>" in label.text
    assert browser.find_element(By.ID, "title").text == evil
    assert column(browser, 5)[0] == evil
    assert browser.execute_script("return window.ran") is None
    assert browser.find_elements(By.TAG_NAME, "img") == []


def test_a_front_that_is_empty_says_why(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, made_results(), limits=(Limit.parse("size <= 5 kB"),))
    notes = browser.find_element(By.ID, "notes").text
    assert "None of 4 trials meets size <= 5 kB. The nearest:" in notes
    assert "What binds: size <= 5 kB, missed by every trial." in notes
    assert column(browser, 0) == ["4", "1", "0"]
    assert complaints(browser) == []


def test_the_page_follows_the_dark_mode_and_a_narrow_screen(browser: Chrome, tmp_path: Path) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened(browser, tmp_path, made_results())
    assert plot(browser)["paper"] == "#ffffff"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    WebDriverWait(browser, 10).until(lambda page: plot(page)["paper"] == "#12171d")
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    WebDriverWait(browser, 10).until(
        lambda page: page.execute_script("return document.getElementById('plot').layout.coloraxis.colorbar.orientation") == "h"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert complaints(browser) == []
