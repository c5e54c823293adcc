"""The theme that a reader chooses, and a closer look at the plot."""

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.browser.pages import DARK, complaints, open_results, plot, point, press, requests, shown, text
from tests.made import made_many

pytestmark = pytest.mark.browser


def colour(browser: Chrome) -> str:
    found: str = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return found


def choose(browser: Chrome, theme: str) -> None:
    Select(browser.find_element(By.ID, "theme")).select_by_visible_text(theme)


def fills(browser: Chrome) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#plot .front .point')].map(point => point.getAttribute('fill'))"
    )
    return found


def test_the_theme_is_the_systems_until_another_is_chosen(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    assert Select(browser.find_element(By.ID, "theme")).first_selected_option.text == "auto"
    light, drawn = colour(browser), fills(browser)
    choose(browser, "dark")
    dark = colour(browser)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(18, 23, 29)")
    assert fills(browser) != drawn, "the plot is drawn anew"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
    choose(browser, "light")
    assert (colour(browser), fills(browser)) == (light, drawn), "whatever the system says"
    choose(browser, "auto")
    assert colour(browser) == dark
    choose(browser, "light")
    browser.refresh()
    assert colour(browser) == light, "it is kept"
    browser.execute_script("localStorage.clear()")
    assert complaints(browser) == []
    assert set(requests(browser)) == {browser.current_url}


def drag(browser: Chrome, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Over the plot, from one share of its width and height to another."""
    svg = browser.find_element(By.CSS_SELECTOR, "#plot svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    width, height = svg.size["width"], svg.size["height"]
    chain = ActionChains(browser, duration=50)
    chain.move_to_element_with_offset(svg, (start[0] - 0.5) * width, (start[1] - 0.5) * height).click_and_hold()
    chain.move_to_element_with_offset(svg, (end[0] - 0.5) * width, (end[1] - 0.5) * height).release().perform()


def ends(drawn: dict[str, Any]) -> tuple[float, ...]:
    return drawn["x"]["low"], drawn["x"]["high"], drawn["y"]["low"], drawn["y"]["high"]


def test_dragging_over_the_plot_looks_closer(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path, made_many(60))
    before = plot(browser)
    assert not shown(browser, "zoom-whole")
    drag(browser, (0.2, 0.2), (0.6, 0.7))
    closer = plot(browser)
    assert before["x"]["low"] < closer["x"]["low"] < closer["x"]["high"] < before["x"]["high"]
    assert before["y"]["low"] < closer["y"]["low"] < closer["y"]["high"] < before["y"]["high"]
    assert len(closer["front"]) < len(before["front"])
    assert "outside the frame" in text(browser, "hint")
    assert not shown(browser, "panel"), "the end of a drag is no click"
    browser.find_element(By.ID, "zoom-whole").click()
    assert ends(plot(browser)) == ends(before)
    drag(browser, (0.3, 0.5), (0.6, 0.505))
    along = plot(browser)
    assert (along["y"]["low"], along["y"]["high"]) == pytest.approx((before["y"]["low"], before["y"]["high"]))
    assert along["x"]["low"] > before["x"]["low"]
    Select(browser.find_element(By.ID, "x")).select_by_visible_text("Latency")
    assert not shown(browser, "zoom-whole"), "other axes begin anew"
    point(browser, plot(browser)["front"][0]).click()
    assert shown(browser, "panel"), "a click is a click"
    assert complaints(browser) == []


def test_keys_and_buttons_look_closer_too(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    before = plot(browser)
    browser.find_element(By.ID, "zoom-in").click()
    closer = plot(browser)
    assert closer["x"]["high"] / closer["x"]["low"] == pytest.approx((before["x"]["high"] / before["x"]["low"]) ** 0.5)
    browser.find_element(By.ID, "zoom-out").click()
    assert ends(plot(browser)) == pytest.approx(ends(before))
    browser.find_element(By.ID, "zoom-whole").click()
    browser.execute_script("document.querySelector('#plot [data-trial=\"1\"]').focus()")
    focus = press(browser, "+")
    assert focus.get_attribute("data-trial") == "1", "the focus stays"
    assert 1 in plot(browser)["front"]
    assert ends(plot(browser)) != ends(before)
    press(browser, "-")
    assert ends(plot(browser)) == pytest.approx(ends(before))
    press(browser, "0", Keys.ENTER)
    assert ends(plot(browser)) == ends(before)
    assert text(browser, "panel-title") == "Trial 1"
    assert complaints(browser) == []
