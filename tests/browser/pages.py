"""The report of a search made by hand, open in the browser; what it has complained about, and asked the network for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.objective import Limit
from autocompress.report import write_report
from autocompress.result import TrialResult
from tests.made import LAYERS, LIMITS, made_front, made_results
from tests.made_evidence import made_run

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}


def log_of(browser: Chrome, name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = browser.get_log(name)  # type: ignore[no-untyped-call]
    return entries


def complaints(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in log_of(browser, "browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(browser: Chrome) -> list[str]:
    """What the open page asked for, itself included."""
    events = [json.loads(entry["message"])["message"] for entry in log_of(browser, "performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["request"]["url"] for event in sent if event["documentURL"] == browser.current_url]


def open_report(
    browser: Chrome,
    folder: RunFolder,
    front: ParetoFront,
    results: Sequence[TrialResult],
    *,
    title: str = "mnist_vgg",
    layers: Layers = LAYERS,
) -> None:
    """Writes the report and opens it, drawn."""
    write_report(folder, front, results, layers, title=title)
    browser.get((folder.path / "front.html").as_uri())
    WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#plot .xtick"))


def open_results(
    browser: Chrome,
    tmp_path: Path,
    results: Sequence[TrialResult] | None = None,
    *,
    limits: Sequence[Limit] = LIMITS,
    title: str = "mnist_vgg",
) -> None:
    """The report of trials alone; by default six."""
    results = made_results() if results is None else results
    open_report(browser, RunFolder(tmp_path / "run"), made_front(results, limits), results, title=title)


def open_run(browser: Chrome, tmp_path: Path, *, rivals: bool = True) -> RunFolder:
    """The report of a run with refits, rivals, sensitivities and importances."""
    folder, front, results = made_run(tmp_path / "run", rivals=rivals)
    open_report(browser, folder, front, results)
    return folder


def shown(browser: Chrome, name: str) -> bool:
    return browser.find_element(By.ID, name).is_displayed()


def text(browser: Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def texts(browser: Chrome, selector: str) -> list[str]:
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, selector)]


def column(browser: Chrome, place: int) -> list[str]:
    """A column of the table, top to bottom, without the uncompressed model."""
    rows = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr:not(.baseline)")
    return [row.find_elements(By.TAG_NAME, "td")[place].text for row in rows]


def plot(browser: Chrome) -> dict[str, Any]:
    """What is drawn: trials of the front and others from left to right, marks, titles, and the ends of the axes."""
    drawn: dict[str, Any] = browser.execute_script(
        "const of = layer => [...document.querySelectorAll(`#plot .${layer} .point`)]"
        ".sort((a, b) => a.getAttribute('cx') - b.getAttribute('cx')).map(point => Number(point.dataset.trial));"
        "const words = selector => [...document.querySelectorAll(selector)].map(found => found.textContent);"
        "const frame = JSON.parse(document.getElementById('plot').dataset.frame);"
        "return {front: of('front'), faint: of('faint'), marks: [...document.querySelectorAll('#plot [data-mark]')]"
        ".map(mark => mark.dataset.mark), xtitle: words('#plot .title.x')[0], ytitle: words('#plot .title.y')[0],"
        "colour: document.getElementById('scale-title').textContent, x: frame.x, y: frame.y,"
        "names: words('#plot .note, #plot .ring-name'), ticks: words('#plot .xtick'),"
        "bars: document.querySelectorAll('#plot .bars path').length}"
    )
    return drawn


def point(browser: Chrome, trial: int) -> WebElement:
    """The mark of a trial on the plot, in sight."""
    found = browser.find_element(By.CSS_SELECTOR, f'#plot [data-trial="{trial}"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    return found


def hover(browser: Chrome, target: WebElement) -> str:
    """What is said where the pointer is then. It follows the target until the page is laid out, and is never still."""
    tip = browser.find_element(By.ID, "tip")

    def told(_: Chrome) -> bool:
        ActionChains(browser).move_to_element(target).move_by_offset(1, 0).move_by_offset(-1, 0).perform()
        return tip.is_displayed()

    WebDriverWait(browser, 30).until(told)
    return tip.text


def press(browser: Chrome, *keys: str) -> WebElement:
    """Types, and gives what has the focus then."""
    ActionChains(browser).send_keys(*keys).perform()
    return browser.switch_to.active_element
