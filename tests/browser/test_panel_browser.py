"""The panel of a trial."""

import json
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from autocompress.folder import RunFolder
from autocompress.layer import Layers
from autocompress.policy import Distill, Finetune, LayerPolicy, Policy
from autocompress.target import Target
from autocompress.trackers.mlflow_run import MlflowRun
from tests.browser.pages import complaints, open_report, open_results, point, press, requests, shown, text, texts
from tests.made import BASELINE, LAYERS, LIMITS, OBJECTIVES, made_folder, made_front, made_results
from tests.tables_made import made_costs

pytestmark = pytest.mark.browser


def test_a_click_on_a_trial_opens_its_panel_and_escape_closes_it(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    assert not shown(browser, "panel")
    point(browser, 4).click()
    assert text(browser, "panel-title") == "Trial 4"
    assert text(browser, "panel-tag") == "smallest, fastest"
    facts = text(browser, "panel-body")
    for words in (
        "-50% channels, w2 a8, 104 steps",
        "9.0 kB 46.7x smaller (uncompressed 420.0 kB)",
        "0.150 ms 5.3x faster (uncompressed 0.800 ms)",
        "94.0% -4.2 points (uncompressed 98.2%)",
        "93.6 ± 0.8% (uncompressed 97.9 ± 0.9%)",
        "--pick 4 -o run-4",
        "Its MLflow run is not on record.",
        "Bytes and time of single layers: not measured.",
        "104 steps of 64 examples, learning rate up to 0.00100",
        "none: the task's loss alone",
        "compress 0.5 s, finetune 20 s",
    ):
        assert words in facts
    assert browser.find_elements(By.CSS_SELECTOR, "#table tr.open td")[0].text == "4"
    press(browser, Keys.ESCAPE)
    assert not shown(browser, "panel")
    assert complaints(browser) == []


def test_a_row_opens_it_too_and_its_buttons_walk_along_the_front(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    opener = browser.find_element(By.CSS_SELECTOR, "#table tr.recommended .link")
    browser.execute_script("arguments[0].focus()", opener)
    assert press(browser, Keys.ENTER).text == "Trial 1", "its head has the focus"
    assert "from the uncompressed model: 70% of the loss is the divergence of logits at temperature 4" in text(browser, "panel")
    browser.find_element(By.ID, "panel-next").click()
    assert text(browser, "panel-title") == "Trial 0"
    assert not browser.find_element(By.ID, "panel-next").is_enabled()
    browser.find_element(By.ID, "panel-back").click()
    browser.find_element(By.ID, "panel-back").click()
    assert text(browser, "panel-title") == "Trial 4"
    browser.find_element(By.ID, "panel-close").click()
    assert browser.switch_to.active_element == opener, "the focus is back where it was"


def test_a_trial_that_is_dominated_has_a_panel_but_no_place_on_the_walk(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    point(browser, 2).click()
    assert text(browser, "panel-tag") == "not on the front"
    assert "not measured" in text(browser, "panel-body"), "it was not scored on the test split"
    assert not browser.find_element(By.ID, "panel-back").is_enabled()


def test_layers_are_shown_before_and_after_with_their_bytes_and_times(browser: Chrome, tmp_path: Path) -> None:
    results = made_results()
    folder = made_folder(tmp_path / "run", results)
    costs = made_costs(LAYERS, Target())
    folder.costs.write_text(costs.to_json())
    open_report(browser, folder, made_front(results), results)
    point(browser, 1).click()
    heads = texts(browser, "#panel .layer")
    assert heads[0] == "features.0 32 of 64 channels, 4-bit weights, 8-bit activations"
    assert heads[2].startswith("classifier 10 of 10 channels")
    how = results[1].policy.layers["features.3"]
    before = costs.layer_bytes("features.3", 64, 64, LayerPolicy())
    after = costs.layer_bytes("features.3", 32, 32, how)
    rows = browser.find_elements(By.CSS_SELECTOR, "#panel .layers li:nth-child(2) .beforeafter")
    assert rows[0].text.split("\n")[:2] == ["bytes", f"{before / 1e3:.1f} kB → {after / 1e3:.1f} kB"]
    assert rows[1].text.startswith("time")
    widths = browser.execute_script(
        "return [...arguments[0].querySelectorAll('.was, .now')].map(bar => bar.getBoundingClientRect().width)", rows[0]
    )
    assert widths[1] / widths[0] == pytest.approx(after / before, abs=0.02)
    channels = browser.execute_script(
        "const bar = document.querySelector('#panel .channels span');"
        "return bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width"
    )
    assert channels == pytest.approx(0.5, abs=0.01)
    assert complaints(browser) == []


def test_the_learning_curve_has_a_dot_for_each_rung(browser: Chrome, tmp_path: Path) -> None:
    open_results(browser, tmp_path)
    point(browser, 1).click()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#panel .curve .rung")) == 2
    assert len(browser.find_elements(By.CSS_SELECTOR, "#panel .curve .file")) == 1
    label = browser.find_element(By.CSS_SELECTOR, "#panel .curve svg").get_attribute("aria-label")
    assert label == "Learning curve: 87.5% after 0 steps, 95.5% after 50 steps"


def test_the_policy_that_is_copied_is_the_policy(browser: Chrome, tmp_path: Path) -> None:
    evil = "features.<script>alert(1)</script>"
    layers = Layers.model_validate_json(LAYERS.to_json().replace("features.3", evil))
    policy = Policy(
        channel_sparsity={evil: 0.375},
        layers={
            evil: LayerPolicy(weight_bits=3, activation_bits=8, weight_sparsity=1 / 3),
            "classifier": LayerPolicy(weight_bits=8),
        },
        importance="taylor",
        finetune=Finetune(steps=7, learning_rate=0.00123456789),
        distill=Distill(temperature=3.3, hint_share=0.1),
    )
    results = [made_results()[0].model_copy(update={"policy": policy})]
    open_report(browser, RunFolder(tmp_path / "run"), made_front(results), results, layers=layers)
    point(browser, 0).click()
    assert texts(browser, "#panel .layer b") == ["features.0", evil, "classifier"]
    copied = browser.find_element(By.CSS_SELECTOR, "#panel pre").get_attribute("textContent") or ""
    assert Policy.from_json(copied) == policy
    assert list(json.loads(copied)) == list(json.loads(policy.to_json()))
    button = next(found for found in browser.find_elements(By.CSS_SELECTOR, "#panel button") if found.text == "Copy the policy")
    button.click()
    WebDriverWait(browser, 30).until(lambda _: button.text in ("Copied", "Selected"))
    assert complaints(browser) == []


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("https://mlflow.example/base/", "https://mlflow.example/base/#/experiments/3/runs/abc"),
        ("sqlite:////home/me/mlflow.db", "http://127.0.0.1:5000/#/experiments/3/runs/abc"),
    ],
)
def test_a_trial_links_to_its_mlflow_run(browser: Chrome, tmp_path: Path, uri: str, address: str) -> None:
    results = made_results()
    folder = made_folder(tmp_path / "run", results)
    run = MlflowRun(
        key="k",
        tracking_uri=uri,
        experiment_name="x",
        title="t",
        settings={},
        objectives=OBJECTIVES,
        limits=LIMITS,
        baseline=BASELINE,
        datasets={},
        experiment_id="3",
        parent_run_id="p",
        trials={1: "abc"},
    )
    folder.mlflow_json.write_text(run.to_json())
    open_report(browser, folder, made_front(results), results)
    point(browser, 1).click()
    link = browser.find_element(By.CSS_SELECTOR, "#panel a")
    assert link.get_attribute("href") == address
    hint = "mlflow ui --backend-store-uri sqlite:////home/me/mlflow.db"
    assert (hint in text(browser, "panel-body")) is uri.startswith("sqlite")
    browser.find_element(By.ID, "panel-next").click()
    assert "Its MLflow run is not on record." in text(browser, "panel-body")
    assert requests(browser) == [browser.current_url]
