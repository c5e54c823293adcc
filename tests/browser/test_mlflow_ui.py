import shlex
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from autocompress.report import write_report
from autocompress.trackers.mlflow import MlflowTracker, charts_page
from autocompress.trackers.mlflow_run import MlflowRun, default_uri
from tests.made import BASELINE, LAYERS, LIMITS, OBJECTIVES
from tests.made_evidence import made_run
from tests.servers import free_port, mlflow_serving

pytestmark = pytest.mark.browser


def appears(browser: Chrome, text: str) -> None:
    WebDriverWait(browser, 60, ignored_exceptions=(StaleElementReferenceException,)).until(
        lambda page: text in page.find_element(By.TAG_NAME, "body").text, f"no {text!r} on {browser.current_url}"
    )


def test_the_parent_its_nested_runs_and_the_report_are_seen_in_the_mlflow_ui(browser: Chrome, tmp_path: Path) -> None:
    folder, front, results = made_run(tmp_path / "run", rivals=False)
    tracker = MlflowTracker(
        folder,
        default_uri(tmp_path),
        experiment_name="mnist_vgg",
        title="mnist_vgg, joint space",
        settings={"sampler": "tpe"},
        layers=LAYERS,
        objectives=OBJECTIVES,
        limits=LIMITS,
        baseline=BASELINE,
        datasets={"train": 3000, "validation": 1000, "test": 1000},
    )
    tracker.start()
    write_report(folder, front, results, LAYERS, title="the report of mnist_vgg")
    assert tracker.close(front) == 0
    run = MlflowRun.from_json(folder.mlflow_json.read_bytes())

    program, *command = shlex.split(tracker.ui_hint)
    assert (program, command[0]) == ("mlflow", "ui")
    port = free_port()
    with mlflow_serving(command, tmp_path, port):
        pages = f"http://127.0.0.1:{port}/#/experiments/{run.experiment_id}/runs"
        browser.get(pages)
        appears(browser, "mnist_vgg, joint space")
        appears(browser, "10 matching runs")
        expand = "[role='gridcell'][col-id*='Run Name'] button"
        WebDriverWait(browser, 30).until(lambda page: page.find_element(By.CSS_SELECTOR, expand)).click()
        for number in range(9):
            appears(browser, f"trial {number:04d}")

        browser.get(f"{pages}/{run.parent_run_id}")
        appears(browser, "Child runs")
        appears(browser, "Recommended: trial 7, 17.5x smaller")
        picture = "const found = document.querySelector('img[src*=\"front.png\"]'); return found ? found.naturalWidth : 0"
        WebDriverWait(browser, 30).until(lambda page: page.execute_script(picture) > 100, "no picture of the front")

        browser.get(charts_page(f"http://127.0.0.1:{port}", run))
        appears(browser, "Model metrics")
        appears(browser, "Add chart")

        browser.get(f"{pages}/{run.parent_run_id}/artifacts/front.html")
        frame = WebDriverWait(browser, 60).until(lambda page: page.find_element(By.TAG_NAME, "iframe"))
        browser.switch_to.frame(frame)
        appears(browser, "the report of mnist_vgg")
        WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#plot .front .point"))
        browser.switch_to.default_content()

        browser.find_element(By.XPATH, "//*[text()='sensitivity_table.json']").click()
        appears(browser, "KL of the outputs, nats")
        appears(browser, "weight_sparsity")
