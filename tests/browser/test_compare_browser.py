"""Several runs on one page."""

from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from autocompress.report.compare_page import comparison_page
from autocompress.report.comparison import Contender, comparison_of
from tests.browser.pages import DARK, PHONE, complaints, hover, press, requests, shown, text, texts
from tests.made import made_results
from tests.report.test_comparison import other_machine, run_of, smaller

pytestmark = pytest.mark.browser


def open_comparison(browser: Chrome, tmp_path: Path, *contenders: Contender) -> None:
    page = tmp_path / "compare.html"
    page.write_text(comparison_page(comparison_of(contenders)))
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(lambda found: found.find_elements(By.CSS_SELECTOR, "#plot .xtick"))


def two(tmp_path: Path) -> tuple[Contender, Contender]:
    return run_of(tmp_path / "seed-0"), run_of(tmp_path / "seed-1", results=smaller(0.5), seed="1")


def drawn(browser: Chrome) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#plot .mark')].map(mark => mark.dataset.trial)"
    )
    return found


def test_the_fronts_lie_over_each_other_and_the_picks_stand_beside(browser: Chrome, tmp_path: Path) -> None:
    open_comparison(browser, tmp_path, *two(tmp_path))
    assert text(browser, "verdict").startswith("seed-1 comes to the largest hypervolume, 0.")
    assert not shown(browser, "notes")
    assert set(drawn(browser)) == {f"seed-{run}:{trial}" for run in (0, 1) for trial in (0, 1, 4)}
    rows = texts(browser, "#figures tbody tr")
    assert [row.split()[0] for row in rows] == ["seed-0", "seed-1"]
    assert "24.0 kB 0.220 ms 97.5% 3 6" in rows[0]
    assert "12.0 kB 0.220 ms 97.5% 3 6" in rows[1]
    assert texts(browser, "#figures tr.best th") == ["seed-1"]
    assert texts(browser, "#picks h3") == ["seed-0", "seed-1"]
    assert texts(browser, "#picks b")[1].startswith("35.0x smaller")
    assert texts(browser, "#picks code")[1] == f"autocompress export {tmp_path / 'seed-1'} --pick 1 -o seed-1-recommended"
    assert texts(browser, "#differing tbody th") == ["Search"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#plot .ring")) == 2
    assert set(requests(browser)) == {browser.current_url}
    assert complaints(browser) == []


def test_a_run_is_hidden_by_its_box_and_the_axes_are_chosen(browser: Chrome, tmp_path: Path) -> None:
    open_comparison(browser, tmp_path, *two(tmp_path))
    browser.find_elements(By.CSS_SELECTOR, "#legend label")[0].click()
    assert {mark.split(":")[0] for mark in drawn(browser)} == {"seed-1"}
    browser.find_elements(By.CSS_SELECTOR, "#legend label")[0].click()
    title = "return document.querySelector('#plot .title.x').textContent"
    assert browser.execute_script(title) == "Size, kB"
    Select(browser.find_element(By.ID, "values")).select_by_visible_text("against uncompressed")
    assert browser.execute_script(title) == "Size, times smaller"
    Select(browser.find_element(By.ID, "x")).select_by_visible_text("Accuracy")
    assert browser.execute_script(title) == "Accuracy, points against uncompressed"
    assert Select(browser.find_element(By.ID, "y")).first_selected_option.text == "Size", "a taken axis changes places"
    assert len(drawn(browser)) == 6
    assert complaints(browser) == []


def test_models_are_pointed_at_walked_along_and_chosen(browser: Chrome, tmp_path: Path) -> None:
    open_comparison(browser, tmp_path, *two(tmp_path))
    mark = browser.find_element(By.CSS_SELECTOR, "#plot [data-trial='seed-1:4']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    said = hover(browser, mark)
    assert said.startswith("seed-1, trial 4\n-50% channels, w2 a8")
    assert "Size 4.5 kB, 93.3x smaller" in said
    mark.click()
    assert f"autocompress export {tmp_path / 'seed-1'} --pick 4 -o seed-1-4" in text(browser, "chosen")
    stops = browser.find_elements(By.CSS_SELECTOR, "#plot [tabindex='0']")
    assert [stop.get_attribute("data-trial") for stop in stops] == ["seed-0:4", "seed-1:4"], "a stop for each run"
    browser.execute_script("arguments[0].focus()", stops[0])
    assert press(browser, Keys.ARROW_RIGHT).get_attribute("data-trial") == "seed-0:1"
    press(browser, Keys.ENTER)
    assert text(browser, "chosen").startswith("seed-0, trial 1")
    assert press(browser, "+").get_attribute("data-trial") == "seed-0:1"
    assert shown(browser, "zoom-whole")
    assert complaints(browser) == []


def test_runs_that_cannot_be_compared_say_so_on_top(browser: Chrome, tmp_path: Path) -> None:
    there = run_of(tmp_path / "board <b>", results=other_machine(made_results()))
    open_comparison(browser, tmp_path, run_of(tmp_path / "desk"), there)
    assert text(browser, "verdict") == "These runs cannot simply be compared."
    assert "times in milliseconds cannot be compared" in text(browser, "notes")
    assert texts(browser, "#differing tr.grave th") == ["Hardware"]
    assert "Cortex-A76" in text(browser, "differing")
    assert Select(browser.find_element(By.ID, "values")).first_selected_option.text == "against uncompressed"
    assert not browser.find_elements(By.CSS_SELECTOR, "#figures tr.best")
    assert "board <b>" in text(browser, "picks")
    assert complaints(browser) == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_on_a_phone(browser: Chrome, tmp_path: Path, dark: bool) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK if dark else {"features": []})
    open_comparison(browser, tmp_path, *two(tmp_path))
    width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1] == 390, "nothing is wider than the screen"
    assert len(drawn(browser)) == 6
    assert complaints(browser) == []
