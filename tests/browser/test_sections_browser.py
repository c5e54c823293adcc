"""What stands below the front: the search and its rivals, importances, sensitivities."""

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from autocompress.folder import RunFolder
from autocompress.importance import Importance
from autocompress.report import write_report
from tests.browser.pages import complaints, requests
from tests.made import LAYERS, made_front, made_results
from tests.made_evidence import made_run

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


def opened(browser: Chrome, path: Path, *, rivals: bool = True, importance: Importance | None = None) -> None:
    """The report of a run with everything in it, drawn."""
    folder, front, results = made_run(path / "run", rivals=rivals)
    if importance is not None:
        folder.importance.write_text(importance.to_json())
    write_report(folder, front, results, LAYERS, title="mnist_vgg")
    browser.get((folder.path / "front.html").as_uri())
    WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#growth .plotly .xtick"))


def growth(browser: Chrome) -> dict[str, Any]:
    """The lines of the chart, by name, and what is written beside them."""
    drawn: dict[str, Any] = browser.execute_script(
        "const plot = document.getElementById('growth');"
        "const lines = plot.data.filter(trace => trace.mode === 'lines');"
        "return {lines: Object.fromEntries(lines.map(line => [line.name, {x: line.x, y: line.y, width: line.line.width}])),"
        "notes: plot.layout.annotations.map(note => note.text), legend: plot.layout.showlegend,"
        "colours: new Set(lines.map(line => line.line.color)).size, dashes: new Set(lines.map(line => line.line.dash)).size,"
        "paper: plot.layout.paper_bgcolor}"
    )
    return drawn


def cell(browser: Chrome, layer: str, column: int) -> WebElement:
    row = next(
        row
        for row in browser.find_elements(By.CSS_SELECTOR, "#heat tbody tr")
        if row.find_element(By.TAG_NAME, "th").text == layer
    )
    return row.find_elements(By.TAG_NAME, "td")[column]


def shown(browser: Chrome, name: str) -> bool:
    return browser.find_element(By.ID, name).is_displayed()


def test_the_sections_are_drawn_without_a_complaint_and_ask_no_network(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    assert [head.text for head in browser.find_elements(By.CSS_SELECTOR, "main h2")] == [
        "The Pareto front",
        "Was the search worth it?",
        "Which knob mattered",
        "How sensitive is each layer?",
    ]
    assert requests(browser) == [browser.current_url]
    assert complaints(browser) == []


def test_a_run_without_them_shows_the_front_alone(browser: Chrome, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write_report(folder, made_front(made_results()), made_results(), LAYERS, title="mnist_vgg")
    browser.get((folder.path / "front.html").as_uri())
    WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#plot .plotly .xtick"))
    assert [shown(browser, name) for name in ("worth", "knobs", "sensitive")] == [False] * 3
    assert complaints(browser) == []


def test_the_search_and_its_rivals_are_lines_named_at_their_ends(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    assert browser.find_element(By.ID, "verdict").text.startswith("The search had the final hypervolume of its best rival, tpe")
    assert browser.find_element(By.ID, "control").text.startswith("Fine-tuned in the same way but not compressed")
    drawn = growth(browser)
    assert set(drawn["lines"]) == {"this run", "tpe", "uniform"}
    assert drawn["lines"]["uniform"]["x"] == [0, 20.5, 164]
    assert drawn["lines"]["this run"]["x"][0] == 10, "it begins when the sensitivities are known"
    assert drawn["lines"]["this run"]["width"] > drawn["lines"]["tpe"]["width"]
    assert drawn["colours"] == 3
    assert drawn["notes"] == ["19% of the best rival's compute", "<b>this run</b> 0.733", "tpe 0.416", "uniform 0.289"]
    assert not drawn["legend"]


def test_a_search_without_rivals_says_how_to_get_them(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, rivals=False)
    assert browser.find_element(By.ID, "worth-heading").text == "How the front grew"
    assert "autocompress baseline RUN" in browser.find_element(By.ID, "verdict").text
    assert not shown(browser, "control")
    assert list(growth(browser)["lines"]) == ["this run"]


def test_importances_are_bars_as_long_as_they_say(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    assert [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#bars thead th")] == ["parameter", "size", "latency"]
    rows = browser.find_elements(By.CSS_SELECTOR, "#bars tbody tr")
    assert [row.text.split() for row in rows] == [["balance", "30%", "80%"], ["budget", "70%", "20%"], ["steps", "<1%"]]
    widths = browser.execute_script(
        "return [...document.querySelectorAll('#bars tbody tr:first-child .bar')]"
        ".map(bar => bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width)"
    )
    assert widths == pytest.approx([0.296, 0.8], abs=0.01)
    assert "over 40 trials. Accuracy: it is the same in all 40 trials." in browser.find_element(By.ID, "knobs-words").text
    assert not shown(browser, "more")


def test_many_parameters_are_shown_when_asked_for(browser: Chrome, tmp_path: Path) -> None:
    shares = {f"bits/<b>{number}</b>": 0.05 for number in range(20)}
    opened(browser, tmp_path, importance=Importance(trials=99, shares={"accuracy": shares}))
    visible = [row for row in browser.find_elements(By.CSS_SELECTOR, "#bars tbody tr") if row.is_displayed()]
    assert len(visible) == 12
    assert visible[0].text.startswith("bits/<b>0</b>"), "a name is text"
    browser.find_element(By.ID, "more").click()
    assert all(row.is_displayed() for row in browser.find_elements(By.CSS_SELECTOR, "#bars tbody tr"))
    assert not shown(browser, "more")


def test_without_importances_it_says_why(browser: Chrome, tmp_path: Path) -> None:
    reason = "only 9 trials were sampled and completed, at least 20 are needed"
    opened(browser, tmp_path, importance=Importance(trials=9, missing={"size_bytes": reason}))
    assert browser.find_element(By.ID, "knobs-words").text == f"Size: {reason}."
    assert not shown(browser, "bars")


def test_the_map_is_darker_where_a_layer_is_more_sensitive(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    heads = [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#heat thead th")]
    assert heads[:5] == ["layer", "channels removed", "bits of the weights", "zeros", "activations"]
    assert heads[5:] == ["25%", "50%", "75%", "8", "4", "2", "25%", "50%", "8"]

    def light(column: int) -> int:
        colour = cell(browser, "features.3", column).value_of_css_property("background-color")
        return sum(int(part) for part in colour.removeprefix("rgba(").removeprefix("rgb(").rstrip(")").split(",")[:3])

    assert light(3) > light(4) > light(5), "8, 4 and 2 bits"
    assert cell(browser, "features.0", 3).text == "0"
    assert cell(browser, "features.0", 0).text == "", "there is no such option"
    broken = cell(browser, "features.0", 5)
    assert broken.text == "×"
    assert "repeating-linear-gradient" in broken.value_of_css_property("background-image")
    assert [browser.find_element(By.ID, name).text for name in ("low", "high")] == ["0.0001", "2.5"]


def test_pointing_at_a_cell_shows_its_number_and_so_do_the_keys(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    tip = browser.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    target = cell(browser, "features.3", 4)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    ActionChains(browser).move_to_element(target).perform()
    WebDriverWait(browser, 5).until(lambda _: tip.is_displayed())
    assert tip.text == "features.3, weights in 4 bits: 0.012 KL of the outputs, nats"
    ActionChains(browser).move_to_element(browser.find_element(By.ID, "sensitive-heading")).perform()
    assert not tip.is_displayed()

    reachable = browser.find_elements(By.CSS_SELECTOR, "#heat td[tabindex='0']")
    assert [place.get_attribute("aria-label") for place in reachable] == [
        "features.0, 32 of 64 channels removed: 0.2 KL of the outputs, nats"
    ]
    browser.execute_script("arguments[0].focus({preventScroll: true})", reachable[0])
    assert tip.is_displayed()

    def press(*keys: str) -> str | None:
        ActionChains(browser).send_keys(*keys).perform()
        return browser.switch_to.active_element.get_attribute("aria-label")

    assert press(Keys.ARROW_RIGHT) == "features.0, weights in 8 bits: 0 KL of the outputs, nats", "over an empty cell"
    assert press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT) == "features.0, weights in 2 bits: not finite, never used"
    assert press(Keys.ARROW_DOWN, Keys.ARROW_DOWN) == "classifier, weights in 2 bits: 0.35 KL of the outputs, nats"
    assert press(Keys.ARROW_DOWN) == "classifier, weights in 2 bits: 0.35 KL of the outputs, nats", "the last row"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#heat td[tabindex='0']")) == 1
    press(Keys.ESCAPE)
    assert not tip.is_displayed()
    assert complaints(browser) == []


def test_refits_and_seeds_are_seen_in_the_table_and_at_the_point(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    row = browser.find_element(By.CSS_SELECTOR, "#table tr.recommended").text
    assert row.startswith("7 recommended")
    assert "97.6 ± 0.3% 3 seeds" in row
    assert "trained further from trial 1" in row
    assert "not clearly better than trial 7" in browser.find_element(By.ID, "table").text
    bars = browser.execute_script("return document.getElementById('plot').data.find(trace => trace.name === 'front').error_y")
    assert bars["array"][1] == pytest.approx(0.00285, abs=1e-4)
    assert bars["arrayminus"][1] == pytest.approx(0.00218, abs=1e-4)
    assert bars["array"][0] is None
    points = browser.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .trace:nth-child(2) .point")
    browser.execute_script("window.scrollTo(0, 0)")
    ActionChains(browser).move_to_element(points[1]).perform()
    label = WebDriverWait(browser, 10).until(lambda page: page.find_element(By.CSS_SELECTOR, "#plot .hoverlayer .hovertext"))
    assert "over 3 seeds 97.6 ± 0.3%" in label.text
    assert "trained further from trial 1" in label.text


def test_the_sections_fit_a_phone_and_follow_the_dark_mode(browser: Chrome, tmp_path: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    opened(browser, tmp_path)
    drawn = growth(browser)
    assert drawn["legend"], "no room for names beside the lines"
    assert drawn["notes"] == ["19% of the compute"]
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    name = browser.find_element(By.CSS_SELECTOR, "#heat tbody th")
    box = browser.find_element(By.CSS_SELECTOR, "#sensitive .scroll")
    browser.execute_script("arguments[0].scrollLeft = 200", box)
    assert name.rect["x"] == pytest.approx(box.rect["x"], abs=2), "the name stays in sight"
    before = cell(browser, "features.3", 4).value_of_css_property("background-color")
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    WebDriverWait(browser, 10).until(lambda page: growth(page)["paper"] == "#12171d")
    assert cell(browser, "features.3", 4).value_of_css_property("background-color") != before
    assert complaints(browser) == []
