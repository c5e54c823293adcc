"""What stands below the front: layers, the search and its rivals, importances, failures, the fine print."""

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from autocompress.importance import Importance
from autocompress.layer import Layers
from tests.browser.pages import (
    DARK,
    PHONE,
    complaints,
    hover,
    open_report,
    open_results,
    open_run,
    requests,
    shown,
    text,
    texts,
)
from tests.made import LAYERS, made_failure, made_folder, made_front, made_results
from tests.made_evidence import made_run

pytestmark = pytest.mark.browser


def opened(browser: Chrome, path: Path, *, importance: Importance) -> None:
    """The report of a run with these importances."""
    folder, front, results = made_run(path / "run")
    folder.importance.write_text(importance.to_json())
    open_report(browser, folder, front, results)


def growth(browser: Chrome) -> dict[str, Any]:
    """The lines of the chart, by name, and what is written beside them."""
    drawn: dict[str, Any] = browser.execute_script(
        "const lines = [...document.querySelectorAll('#growth .curve')], shown = name => getComputedStyle(name).fill;"
        "const names = [...document.querySelectorAll('#growth .name')];"
        "return {lines: Object.fromEntries(lines.map(line => [line.dataset.name, Number(line.getAttribute('stroke-width'))])),"
        "starts: Object.fromEntries(lines.map(line => [line.dataset.name, line.getPointAtLength(0).x])),"
        "notes: names.map(name => name.textContent), colours: new Set(lines.map(line => line.getAttribute('stroke'))).size,"
        "dashes: new Set(lines.map(line => line.getAttribute('stroke-dasharray'))).size, ink: names.map(shown),"
        "strokes: lines.map(line => getComputedStyle(line).stroke)}"
    )
    return drawn


def cell(browser: Chrome, layer: str, column: int) -> WebElement:
    row = next(
        row
        for row in browser.find_elements(By.CSS_SELECTOR, "#heat tbody tr")
        if row.find_element(By.TAG_NAME, "th").text == layer
    )
    return row.find_elements(By.TAG_NAME, "td")[column]


def test_the_sections_are_drawn_without_a_complaint_and_ask_no_network(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path)
    assert texts(browser, "main h2") == [
        "The Pareto front",
        "What the front agrees on",
        "How sensitive is each layer?",
        "Was the search worth it?",
        "How trials ended",
        "Failures by reason",
        "Which knob mattered",
        "What the time went into",
        "The fine print",
    ]
    assert requests(browser) == [browser.current_url]
    assert complaints(browser) == []


def test_a_run_without_them_shows_what_its_trials_tell(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    hidden = [shown(browser, name) for name in ("worth", "knobs", "sensitive")]
    assert hidden == [False] * 3
    assert shown(browser, "ended")
    assert complaints(browser) == []


def test_a_search_without_any_complete_trial_has_a_page(browser: Chrome, tmp_path: Path) -> None:
    results = [made_failure(0, "out of memory"), made_failure(1, "out of memory"), made_failure(2, "the loss was <nan>")]
    open_results(browser, tmp_path, results)
    assert text(browser, "heading") == "The uncompressed model"
    assert not shown(browser, "agreement")
    assert "nothing to choose from" in text(browser, "notes")
    rows = [row.split(maxsplit=1)[1] for row in texts(browser, "#reasons tbody tr")]
    assert rows == ["out of memory 0, 1", "the loss was <nan> 2"]
    assert complaints(browser) == []


def test_what_the_front_agrees_on_stands_in_words_and_by_layer(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    assert texts(browser, "#agreed li") == [
        "All 3 compute every layer in 8-bit integers.",
        "All 3 remove at least 50% of the channels of features.0 and features.3.",
        "All 3 leave single weights as they are: none is set to zero.",
    ]
    rows = texts(browser, "#spans tbody tr")
    assert rows[0] == "features.0 32 of 64 2 to 8 0%"
    assert rows[2].startswith("classifier - 2 to 8")


def test_names_of_layers_are_text_everywhere(browser: Chrome, tmp_path: Path) -> None:
    evil = "<img src=x onerror='window.ran = 1'>"
    layers = Layers.model_validate_json(LAYERS.to_json().replace("features.3", evil))
    folder, _, results = made_run(tmp_path / "run")
    swapped = [type(result).from_json(result.to_json().replace("features.3", evil)) for result in results]
    folder.sensitivity.write_text(folder.sensitivity.read_text().replace("features.3", evil))
    (folder.baselines / "tpe").rename(folder.baselines / "<b>tpe<")
    open_report(browser, folder, made_front(swapped), swapped, layers=layers)
    assert any(evil in sentence for sentence in texts(browser, "#agreed li"))
    assert evil in texts(browser, "#heat tbody th")
    assert "<b>tpe<" in text(browser, "legend")
    assert any("<b>tpe<" in note for note in growth(browser)["notes"])
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert browser.execute_script("return window.ran") is None


def test_the_search_and_its_rivals_are_lines_named_at_their_ends(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path)
    assert text(browser, "verdict").startswith("The search had the final hypervolume of its best rival, tpe")
    assert text(browser, "control").startswith("Fine-tuned in the same way but not compressed")
    drawn = growth(browser)
    assert set(drawn["lines"]) == {"this run", "tpe", "uniform"}
    assert drawn["starts"]["this run"] > drawn["starts"]["uniform"], "it begins when the sensitivities are known"
    assert drawn["lines"]["this run"] > drawn["lines"]["tpe"]
    assert drawn["colours"] == 3
    assert drawn["notes"] == ["19% of the best rival's compute", "this run 0.733", "tpe 0.416", "uniform 0.289"]
    assert set(drawn["strokes"]) <= set(drawn["ink"]), "a name has the colour of its line"
    assert not shown(browser, "growth-names")


def test_a_search_without_rivals_says_how_to_get_them(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path, rivals=False)
    assert text(browser, "worth-heading") == "How the front grew"
    assert "autocompress baseline RUN" in text(browser, "verdict")
    assert not shown(browser, "control")
    assert list(growth(browser)["lines"]) == ["this run"]


def test_trials_by_state_time_and_failures_are_shown(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path)
    assert texts(browser, "#ended-names .item") == ["4 complete", "3 trained further", "1 stopped at a rung", "1 failed"]
    bars = browser.execute_script(
        "const bars = [...document.querySelectorAll('#ended .state')];"
        "return bars.filter(bar => Number(bar.getAttribute('height')) > 0).length"
    )
    assert bars == 9
    assert texts(browser, "#split-table tr")[:3] == ["prepare 10 s 4%", "compress 3.5 s 1%", "train 2.3 min 52%"]
    assert texts(browser, "#reasons tbody tr") == ["1 DivergedError: the loss was nan after 12 steps 3"]


def test_the_fine_print_names_what_is_on_record_and_what_is_not(browser: Chrome, tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "run", made_results())
    open_report(browser, folder, made_front(made_results()), made_results())
    fine = text(browser, "fine")
    for words in (
        "AMD EPYC, 2 cores, no GPU, Python 3.11.7: 4 trials.",
        "onnxruntime 1.32.0",
        "The seed is not on record.",
        "train: size not on record",
        "test: 1,000 examples, scored once",
        "Noise: not measured",
        "Bytes and time of single layers.",
    ):
        assert words in fine


def test_importances_are_bars_as_long_as_they_say(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path)
    assert [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#bars thead th")] == ["parameter", "size", "latency"]
    rows = browser.find_elements(By.CSS_SELECTOR, "#bars tbody tr")
    assert [row.text.split() for row in rows] == [["balance", "30%", "80%"], ["budget", "70%", "20%"], ["steps", "<1%"]]
    widths = browser.execute_script(
        "return [...document.querySelectorAll('#bars tbody tr:first-child .bar')]"
        ".map(bar => bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width)"
    )
    assert widths == pytest.approx([0.296, 0.8], abs=0.01)
    assert "over 40 trials. Accuracy: it is the same in all 40 trials." in text(browser, "knobs-words")
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
    assert text(browser, "knobs-words") == f"Size: {reason}."
    assert not shown(browser, "bars")


def test_the_map_is_darker_where_a_layer_is_more_sensitive(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path)
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
    open_run(browser, tmp_path)
    tip = browser.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    target = cell(browser, "features.3", 4)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    assert hover(browser, target) == "features.3, weights in 4 bits: 0.012 KL of the outputs, nats"
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


def test_a_note_hidden_by_scrolling_comes_back_when_the_pointer_moves_on_within_its_cell(
    browser: Chrome, tmp_path: Path
) -> None:
    open_run(browser, tmp_path)
    target = cell(browser, "features.3", 4)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    said = hover(browser, target)
    browser.execute_script("document.dispatchEvent(new Event('scroll'))")
    assert not shown(browser, "tip")
    assert hover(browser, target) == said


def test_the_sections_fit_a_phone_and_follow_the_dark_mode(browser: Chrome, tmp_path: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    open_run(browser, tmp_path)
    drawn = growth(browser)
    assert shown(browser, "growth-names"), "no room for names beside the lines"
    assert drawn["notes"] == ["19% of the compute"]
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    name = browser.find_element(By.CSS_SELECTOR, "#heat tbody th")
    box = browser.find_element(By.CSS_SELECTOR, "#sensitive .scroll")
    browser.execute_script("arguments[0].scrollLeft = 200", box)
    assert name.rect["x"] == pytest.approx(box.rect["x"], abs=2), "the name stays in sight"
    before = cell(browser, "features.3", 4).value_of_css_property("background-color")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
    WebDriverWait(browser, 30).until(lambda page: growth(page)["strokes"] != drawn["strokes"])
    assert cell(browser, "features.3", 4).value_of_css_property("background-color") != before
    assert complaints(browser) == []
