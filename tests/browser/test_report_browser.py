"""The decision, the front and its table."""

from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.objective import Limit, Objective, Scoring
from tests.browser.pages import (
    DARK,
    PHONE,
    column,
    complaints,
    hover,
    open_report,
    open_results,
    open_run,
    plot,
    point,
    press,
    requests,
    shown,
    text,
    texts,
)
from tests.made import BASELINE, made_many, made_result, made_results

pytestmark = pytest.mark.browser


def test_the_decision_stands_on_top_with_the_commands_that_export_it(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    assert text(browser, "title") == "mnist_vgg"
    assert "6 trials, 1 stopped early at a rung, 1 failed · 3 on the Pareto front" in text(browser, "counts")
    assert text(browser, "gains") == "17.5x smaller, 3.6x faster, -0.8 points"
    assert text(browser, "score") == "97.1 ± 0.8% on test"
    assert text(browser, "why") == "Trial 1, recommended: -50% channels, w4 a8, 101 steps, KD T=4."
    assert text(browser, "against") == (
        "The uncompressed model scores 97.9 ± 0.9% on test, 98.2% on validation; this one 97.5% there."
    )
    assert texts(browser, "#alternatives h3") == ["Smallest", "Fastest", "Most accurate"]
    assert texts(browser, "#alternatives b") == [
        *["46.7x smaller, 5.3x faster, -4.3 points"] * 2,
        "7.0x smaller, 2.7x faster, -0.2 points",
    ]
    folder = tmp_path / "run"
    assert texts(browser, ".command code") == [
        f"autocompress export {folder} --pick 1 -o run-recommended",
        f"autocompress export {folder} --pick 4 -o run-smallest",
        f"autocompress export {folder} --pick 4 -o run-fastest",
        f"autocompress export {folder} --pick 0 -o run-most-accurate",
    ]
    assert not shown(browser, "notes")


def test_the_page_draws_without_a_complaint_and_asks_no_network(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    drawn = plot(browser)
    assert (drawn["front"], drawn["faint"]) == ([4, 1, 0], [2])
    assert drawn["names"] == ["uncompressed", "recommended"]
    assert requests(browser) == [browser.current_url]
    assert complaints(browser) == []


def test_the_page_can_ask_no_network_even_if_it_tries(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    answer = browser.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), error => done(error.name))"
    )
    assert answer == "TypeError"
    assert any("Content Security Policy" in complaint for complaint in complaints(browser))


def test_choosing_an_axis_redraws_and_a_taken_one_changes_places(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    before = plot(browser)
    assert (before["xtitle"], before["ytitle"], before["colour"]) == ("Size, kB", "Accuracy on validation", "Latency, ms")
    Select(browser.find_element(By.ID, "x")).select_by_visible_text("Latency")
    after = plot(browser)
    assert (after["xtitle"], after["ytitle"], after["colour"]) == ("Latency, ms", "Accuracy on validation", "Size, kB")
    assert after["x"]["low"] < 0.15 < 0.8 < after["x"]["high"] < 1
    Select(browser.find_element(By.ID, "y")).select_by_visible_text("Latency")
    last = plot(browser)
    assert (last["xtitle"], last["ytitle"], last["colour"]) == ("Accuracy on validation", "Latency, ms", "Size, kB")
    chosen = {name: Select(browser.find_element(By.ID, name)).first_selected_option.text for name in ("x", "y", "c")}
    assert chosen == {"x": "Accuracy", "y": "Latency", "c": "Size"}
    assert complaints(browser) == []


def test_values_are_shown_against_the_uncompressed_model_when_asked_for(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    Select(browser.find_element(By.ID, "values")).select_by_visible_text("against uncompressed")
    drawn = plot(browser)
    assert drawn["xtitle"] == "Size, times smaller"
    assert drawn["ytitle"] == "Accuracy, points against uncompressed"
    assert drawn["colour"] == "Latency, times faster"
    assert drawn["front"] == [0, 1, 4], "more times smaller is further to the right"
    assert drawn["x"]["low"] < 1 < 420 / 9 < drawn["x"]["high"]
    assert all(tick.endswith("x") for tick in drawn["ticks"])
    assert complaints(browser) == []


def test_axes_are_logarithmic_unless_told_otherwise(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    drawn = plot(browser)
    assert (drawn["x"]["log"], drawn["y"]["log"]) == (True, False)
    browser.find_element(By.ID, "log").click()
    assert not plot(browser)["x"]["log"]
    assert complaints(browser) == []


def test_pointing_at_a_trial_shows_its_policy_and_lights_its_row(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    said = hover(browser, point(browser, 4))
    for words in (
        "Trial 4, smallest, fastest",
        "-50% channels, w2 a8, 104 steps",
        "Size 9.0 kB, 46.7x smaller",
        "Latency 0.150 ms, 5.3x faster",
        "Accuracy 94.0%, -4.2 points",
        "on test 93.6 ± 0.8%",
    ):
        assert words in said
    lit = browser.find_elements(By.CSS_SELECTOR, "#table tr.lit")
    assert [row.find_element(By.TAG_NAME, "td").text for row in lit] == ["4"]


def test_the_front_is_walked_along_by_keys(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    reachable = browser.find_elements(By.CSS_SELECTOR, "#plot [tabindex='0']")
    assert [found.get_attribute("data-trial") for found in reachable] == ["4"]
    browser.execute_script("arguments[0].focus()", reachable[0])
    browser.execute_async_script(
        "const done = arguments[0]; scrollBy(0, 60); requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    assert "Trial 4, smallest" in text(browser, "tip"), "it stays when the page moves"
    assert press(browser, Keys.ARROW_RIGHT).get_attribute("data-trial") == "1"
    assert "Trial 1, recommended, knee" in text(browser, "tip")
    assert press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).get_attribute("data-trial") == "0", "the last one"
    label = browser.switch_to.active_element.get_attribute("aria-label") or ""
    assert label.startswith("Trial 0: Size 60.0 kB, Latency 0.300 ms, Accuracy 98.1%.")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#plot [tabindex='0']")) == 1


def test_the_table_is_sorted_by_a_click_and_turned_by_another(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
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
    open_results(browser, tmp_path, results)
    lowest = min(result.metrics["accuracy"] for result in results)
    assert plot(browser)["y"]["low"] > lowest
    assert "outside the frame" in text(browser, "hint")
    Select(browser.find_element(By.ID, "framed")).select_by_visible_text("all trials")
    assert plot(browser)["y"]["low"] < lowest
    assert "outside the frame" not in text(browser, "hint")


SHOWN = ("#plot .hollow", "#legend label .hollow", "#legend .solid.faint", "#legend .hollow.faint")


def test_baselines_are_marked_and_what_was_not_measured_is_named(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path)
    assert set(plot(browser)["marks"]) == {"uniform", "tpe"}
    assert "plain 8 bits: not measured" in text(browser, "legend")
    box = next(label for label in browser.find_elements(By.CSS_SELECTOR, "#legend label") if label.text == "tpe")
    box.click()
    assert set(plot(browser)["marks"]) == {"uniform"}
    mark = browser.find_element(By.CSS_SELECTOR, "#plot [data-mark='uniform']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    assert hover(browser, mark).startswith("uniform\n-50% channels, w4 a8")
    opacity = {selector: browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property("opacity") for selector in SHOWN}
    assert list(opacity.values()) == ["1", "1", "0.35", "0.35"], "faint is what is dominated, and what was not measured"
    assert complaints(browser) == []


def test_an_error_goes_by_its_name_and_less_of_it_is_better(browser: Chrome, tmp_path: Path) -> None:
    scoring = Scoring(name="mean error", goal="min", share=False)
    objectives = tuple(Objective.of(name, scoring) for name in ("size_bytes", "latency_ms", "accuracy"))
    results = [made_result(0, 60_000, 0.3, 20.2), made_result(1, 24_000, 0.22, 20.8), made_result(2, 9_000, 0.15, 26.0)]
    limit = Limit.parse("mean error <= baseline + 10", scoring)
    front = ParetoFront.of(results, objectives, [limit], BASELINE | {"accuracy": 20.0}, scoring)
    open_report(browser, RunFolder(tmp_path / "run"), front, results)
    assert text(browser, "gains") == "7.0x smaller, 2.7x faster, mean error +1.0%"
    assert text(browser, "score") == "mean error 20.2 on validation"
    assert texts(browser, "#alternatives h3") == ["Smallest", "Fastest", "Best mean error"]
    assert "mean error worse by at most any" in text(browser, "sliders")
    assert "best mean error: trial 0" in text(browser, "ends")
    drawn = plot(browser)
    assert drawn["ytitle"] == "Mean error"
    assert drawn["front"] == [2, 1, 0]
    assert [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#table th")][3] == "mean error (validation)"
    slider = browser.find_element(By.ID, "max-drop")
    slider.send_keys(Keys.HOME)
    WebDriverWait(browser, 30).until(lambda page: plot(page)["front"] == [0])
    assert "mean error worse by at most 0.2" in text(browser, "sliders")
    assert "accuracy" not in browser.find_element(By.TAG_NAME, "main").text.lower()
    assert complaints(browser) == []


def test_a_score_has_error_bars_where_there_were_seeds(browser: Chrome, tmp_path: Path) -> None:
    open_run(browser, tmp_path)
    assert plot(browser)["bars"] == 1
    row = browser.find_element(By.CSS_SELECTOR, "#table tr.recommended").text
    assert row.startswith("7 recommended")
    assert "97.6 ± 0.3% 3 seeds" in row
    assert "trained further from trial 1" in row
    assert "not clearly better than trial 7" in text(browser, "table")
    said = hover(browser, point(browser, 7))
    assert "over 3 seeds 97.6 ± 0.3%" in said
    assert "trained further from trial 1" in said


def test_names_are_text_and_nothing_of_them_runs(browser: Chrome, tmp_path: Path) -> None:
    evil = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    results = [result.model_copy(update={"summary": evil}) for result in made_results()]
    open_results(browser, tmp_path, results, title=evil)
    assert "<script>" in hover(browser, point(browser, 4))
    assert text(browser, "title") == evil
    assert column(browser, 5)[0] == evil
    assert evil in text(browser, "why")
    point(browser, 4).click()
    assert evil in text(browser, "panel")
    assert browser.execute_script("return window.ran") is None
    assert browser.find_elements(By.TAG_NAME, "img") == []


def test_a_front_that_is_empty_says_why(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path, limits=(Limit.parse("size <= 5 kB"),))
    notes = text(browser, "notes")
    assert "None of 4 trials meets size <= 5 kB. The nearest:" in notes
    assert "What binds: size <= 5 kB, missed by every trial." in notes
    assert not shown(browser, "answer")
    assert texts(browser, "#alternatives h3") == ["Nearest to the limits"] * 3
    assert texts(browser, "#alternatives code")[0].endswith("--pick 4 -o run-4")
    assert column(browser, 0) == ["4", "1", "0"]
    assert complaints(browser) == []


def test_the_page_follows_the_dark_mode_and_a_narrow_screen(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)

    def paint() -> list[str]:
        """The colours of the paper and of a trial, in one go: a plot that is drawn anew has other elements."""
        colours: list[str] = browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor,"
            "document.querySelector('#plot [data-trial=\"4\"]').getAttribute('fill')]"
        )
        return colours

    light = paint()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
    WebDriverWait(browser, 30).until(lambda _: paint()[1] != light[1])
    assert paint()[0] == "rgb(18, 23, 29)" != light[0]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    width = "return document.querySelector('#plot svg').getBoundingClientRect().width"
    WebDriverWait(browser, 30).until(lambda page: page.execute_script(width) < 390)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert complaints(browser) == []
