"""How long does the report of a long search take to open? A page of 2,000 trials in headless Chromium.

    python benchmarks/report.py            (a minute; needs Chromium and its driver)
    python benchmarks/report.py 5000

The trials are made up: thirteen layers, policies as `joint` samples them (each layer for itself), four in ten on the front's
side of the cloud, three rivals, a failure in fifty. Counted is the time from the request until the page is loaded and two
further frames were drawn: scripts run while it loads, so all charts and tables are there. The first opening, which starts a
process for the page, is told apart from the others. Beside it stands the CPU time of the page's thread: where other work shares
the core, that is what the page itself takes.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from printing import print_goal, print_machine
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.layer import Group, Layer, Layers
from autocompress.objective import Objective
from autocompress.policy import Finetune, LayerPolicy, Policy
from autocompress.report import write_report
from autocompress.result import Rung, Status, TrialResult

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
SECONDS, MEGABYTES = 3.0, 6.0
OPENINGS = 7
BASELINE = {"size_bytes": 59e6, "latency_ms": 12.0, "accuracy": 0.94, "macs": 313e6, "params": 14.7e6}
LAYERS = Layers(
    layers=tuple(
        Layer(
            name=f"features.{i}",
            kind="conv2d",
            weight_shape=(256, 256, 3, 3),
            params=590_080,
            macs=10**7,
            group=f"features.{i}",
        )
        for i in range(13)
    ),
    groups=tuple(Group(name=f"features.{i}", channels=256, writers=(f"features.{i}",), readers={}) for i in range(13)),
)


def made(count: int, seed: int) -> list[TrialResult]:
    """`count` trials of which small and fast ones tend to be worse."""
    draw = np.random.default_rng(seed)
    results = []
    for number in range(count):
        smaller, faster = np.exp(draw.uniform(0.7, 4, size=2))
        policy = Policy(
            channel_sparsity={group.name: float(draw.integers(0, 8)) / 8 for group in LAYERS.groups},
            layers={
                layer.name: LayerPolicy(
                    weight_bits=int(draw.integers(2, 8)),
                    activation_bits=8,
                    weight_sparsity=round(float(draw.uniform(0, 0.8)), 4),
                )
                for layer in LAYERS
            },
            finetune=Finetune(steps=int(draw.integers(1, 1000))),
        )
        accuracy = float(0.94 - 0.002 * smaller - 0.001 * faster - draw.exponential(0.01))
        metrics = {"size_bytes": 59e6 / smaller, "latency_ms": 12 / faster, "accuracy": accuracy, "macs": 1e8, "params": 1e6}
        failed = draw.random() < 0.02
        results.append(
            TrialResult(
                number=number,
                policy=policy,
                status=Status.FAILED if failed else Status.COMPLETE,
                error=f"DivergedError: the loss was nan after {number} steps" if failed else None,
                metrics={} if failed else metrics,
                rungs=(Rung(step=0, accuracy=accuracy - 0.1), Rung(step=500, accuracy=accuracy)),
                seed=number,
                started=1.79e9 + 20 * number,
                seconds={"compress": 1.0, "finetune": 15.0, "export": 0.5, "measure": 2.0},
                summary=policy.describe(LAYERS),
            )
        )
    return results


def written(folder: RunFolder, trials: int) -> Path:
    """The page of a made-up search."""
    results = made(trials, 0)
    objectives = [Objective.of(name) for name in ("size_bytes", "latency_ms", "accuracy")]
    front = ParetoFront.of(results, objectives, (), BASELINE)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.front_json.write_text(front.to_json())
    for place, seed, count in ((folder, 0, trials), *((RunFolder(folder.baselines / f"rival{i}"), i, 200) for i in (1, 2, 3))):
        place.path.mkdir(parents=True, exist_ok=True)
        place.record.write_text("".join(result.to_json() + "\n" for result in made(count, seed)))
    start = time.perf_counter()
    write_report(folder, front, results, LAYERS, title="made up")
    print(f"{trials:,} trials, {len(front.members)} on the front; written in {time.perf_counter() - start:.1f} s", flush=True)
    return folder.front_json.with_suffix(".html")


def openings(page: Path) -> list[tuple[float, float]]:
    """Seconds of each opening, the first first: by the clock, and of the page's thread."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        return [opening(browser, page) for _ in range(OPENINGS)]
    finally:
        browser.quit()


def thread_seconds(browser: webdriver.Chrome) -> float:
    """CPU time of all tasks of the page's thread so far."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")


def opening(browser: webdriver.Chrome, page: Path) -> tuple[float, float]:
    browser.get("about:blank")
    start, before = time.perf_counter(), thread_seconds(browser)
    browser.get(page.as_uri())
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))")
    taken, after = time.perf_counter() - start, thread_seconds(browser)
    # A page in a process of its own begins to count anew.
    return taken, after - before if after > before else after


def main() -> None:
    print_machine()
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        page = written(RunFolder(Path(folder) / "run"), trials)
        first, *others = openings(page)
        print_goal("megabytes of the page", page.stat().st_size / 1e6, at_most=MEGABYTES)
        print_goal("seconds until it is drawn, the first time", first[0], at_most=SECONDS)
        print_goal("seconds until it is drawn, again (median)", median(taken for taken, _ in others), at_most=SECONDS)
        print(
            f"  CPU seconds of the page's thread: {first[1]:.2f} the first time, {median(cpu for _, cpu in others):.2f} again"
        )


if __name__ == "__main__":
    main()
