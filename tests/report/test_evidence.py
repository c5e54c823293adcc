import io
import json
import logging
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from autocompress.compute import curves, standings
from autocompress.folder import RunFolder
from autocompress.importance import Importance
from autocompress.layer import Group, Layer, Layers
from autocompress.option import Option, channel_shares
from autocompress.report import write_report
from autocompress.report.evidence import evidence_of
from autocompress.report.heat_map import heat_map, option_words
from autocompress.report.worth import Worth, control, verdict, worth_of
from autocompress.tables import Divergence, Sensitivity
from tests.made import LAYERS, LIMITS, made_folder, made_front, made_many, made_result
from tests.made_evidence import IMPORTANCE, made_run, made_sensitivity


def worth_in(folder: RunFolder) -> Worth:
    worth = worth_of(curves(folder), standings(folder))
    assert worth is not None
    return worth


def data_in(folder: RunFolder) -> dict[str, Any]:
    page = (folder.path / "front.html").read_text()
    data: dict[str, Any] = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    return data


def test_the_verdict_says_after_which_share_of_the_best_rivals_compute_the_search_had_as_much(tmp_path: Path) -> None:
    folder, front, _ = made_run(tmp_path / "run")
    worth = worth_in(folder)
    assert [curve.name for curve in worth.curves] == ["this run", "tpe", "uniform"]
    assert verdict(worth) == (
        "The search had the final hypervolume of its best rival, tpe (0.416), after 19% of that rival's compute, "
        "and ended 76% above it, at 0.733."
    )
    assert control(worth, front) == (
        "Fine-tuned in the same way but not compressed, the model scores 98.4% at best (98.2% before)."
    )
    own, _, uniform = worth.curves
    assert list(uniform.seconds) == [0, 20.5, 164], "only where it rises, and both ends"
    assert own.volumes[-1] == pytest.approx(front.hypervolume())


def test_the_verdict_without_a_rival_that_found_anything(tmp_path: Path) -> None:
    folder, _, _ = made_run(tmp_path / "alone", rivals=False)
    assert verdict(worth_in(folder)).endswith("`autocompress baseline RUN` gives plain searches the same compute.")
    assert control(worth_in(folder), made_front([])) == ""
    made_folder(folder.baselines / "random", [made_result(0, 10_000, 0.1, 0.1)])
    assert verdict(worth_in(folder)) == (
        "No rival found a model within the limits that is better than the uncompressed one; "
        "the search reached a hypervolume of 0.733."
    )


def test_a_search_that_lost_is_told_so(tmp_path: Path) -> None:
    folder, _, _ = made_run(tmp_path / "run")
    made_folder(folder.baselines / "random", [made_result(0, 4_000, 0.05, 0.982), made_result(1, 90_000, 0.2, 0.98)])
    assert verdict(worth_in(folder)) == (
        "The search did not reach what random came to: with the same compute it had a hypervolume of 0.530, and random 0.929."
    )
    assert worth_in(folder).best == standings(folder)[0]


def test_a_front_that_meets_no_limit_has_an_answer_too(tmp_path: Path) -> None:
    results = [made_result(0, 20_000, 0.2, 0.5)]
    folder = made_folder(tmp_path / "run", results)
    front = made_front(results, LIMITS)
    folder.front_json.write_text(front.to_json())
    made_folder(folder.baselines / "random", results)
    write_report(folder, front, results, LAYERS, title="nothing")
    assert data_in(folder)["worth"]["verdict"].endswith("; nor did the search.")
    assert (folder.path / "search.png").exists()


def test_the_map_has_a_row_a_layer_and_a_column_an_option_from_mild_to_strong() -> None:
    drawn = heat_map(made_sensitivity(), LAYERS)
    assert drawn.rows == ("features.0", "features.3", "classifier")
    assert [(column.what, column.value) for column in drawn.columns] == [
        *(("channel_sparsity", share) for share in ("25%", "50%", "75%")),
        *(("weight_bits", bits) for bits in "842"),
        *(("weight_sparsity", share) for share in ("25%", "50%")),
        ("activation_bits", "8"),
    ]
    values = [[None if cell is None else cell.divergence for cell in row] for row in drawn.cells]
    assert values[0] == [None, 0.2, None, 0.0, 0.03, None, None, None, None]
    assert values[2] == [None, None, None, 0.0002, 0.002, 0.35, 0.001, 0.02, None]
    two_bits = drawn.cells[0][5]
    assert two_bits is not None
    assert (two_bits.divergence, two_bits.words) == (None, "weights in 2 bits")
    assert drawn.cells[0][0] is None
    assert drawn.span == (0.0001, 2.5)


def test_many_channel_shares_are_gathered_into_eighths() -> None:
    layer = Layer(name="wide", kind="conv2d", weight_shape=(60, 3, 3, 3), params=1680, macs=1, group="wide")
    group = Group(name="wide", channels=60, writers=("wide",), readers={}, branch=("wide",))
    layers = Layers(layers=(layer,), groups=(group,))
    shares = [*channel_shares(60, 1), 1.0]
    entries = tuple(
        Divergence(option=Option(what="channel_sparsity", name="wide", value=share), value=share) for share in shares
    )
    assert len(entries) == 60
    drawn = heat_map(made_sensitivity().model_copy(update={"entries": entries}), layers)
    assert [column.value for column in drawn.columns] == ["12%", "25%", "38%", "50%", "62%", "75%", "88%", "100%"]
    cells = [cell for cell in drawn.cells[0] if cell is not None]
    assert [cell.divergence for cell in cells] == pytest.approx([k / 8 for k in range(1, 9)], abs=1 / 60)
    assert cells[3].words == "30 of 60 channels removed"
    assert cells[-1].words == "the branch of 1 layer left out"


def test_what_an_option_does_in_words() -> None:
    shared = Layers(
        layers=LAYERS.layers,
        groups=(Group(name="features.0", channels=64, writers=("features.0", "features.3"), readers={"classifier": 1}),),
    )
    words = [
        option_words(Option(what="channel_sparsity", name="features.0", value=0.25), shared),
        option_words(Option(what="weight_bits", name="features.0", value=3), shared),
        option_words(Option(what="weight_sparsity", name="features.0", value=0.7), shared),
        option_words(Option(what="activation_bits", name="features.0", value=8), shared),
    ]
    assert words == [
        "16 of 64 channels removed, together with 1 other layer",
        "weights in 3 bits",
        "70% of the weights zero",
        "weights and activations in 8 bits",
    ]


def test_the_page_holds_all_three_answers(tmp_path: Path) -> None:
    folder, front, results = made_run(tmp_path / "run")
    write_report(folder, front, results, LAYERS, title="whole")
    data = data_in(folder)
    assert data["counts"] == "9 trials, 1 stopped early at a rung, 1 failed, 3 trained further"
    assert [curve["name"] for curve in data["worth"]["curves"]] == ["this run", "tpe", "uniform"]
    assert data["worth"]["bracket"]["share"] == pytest.approx(30.5 / 164)
    assert data["knobs"]["objectives"][0] == {"name": "Size", "shares": IMPORTANCE.shares["size_bytes"]}
    assert data["knobs"]["missing"] == ["Accuracy: it is the same in all 40 trials."]
    assert data["sensitive"]["cells"][0][5] == [None, "weights in 2 bits"]
    assert data["sensitive"]["span"] == [0.0001, 2.5]


def test_the_picture_of_the_search_shows_every_rival(tmp_path: Path) -> None:
    coloured = []
    for rivals in (False, True):
        folder, front, results = made_run(tmp_path / str(rivals), rivals=rivals)
        write_report(folder, front, results, LAYERS, title="a $x_1$ title")
        picture = np.asarray(matplotlib.image.imread(io.BytesIO((folder.path / "search.png").read_bytes())))
        assert picture.shape[:2] == (900, 1600)
        coloured.append((np.ptp(picture[..., :3], axis=2) > 0.2).sum())
    assert coloured[1] > coloured[0] + 2000


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 9}\n', b"\xff\xfe\n"])
@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("sensitivity.json", {"sensitivity", "worth"}),  # without it nobody knows how much compute the run has spent
        ("importance.json", {"importance"}),
        ("baselines/tpe/trials.jsonl", {"worth"}),
    ],
)
def test_what_is_damaged_is_left_out_and_the_rest_is_shown(
    tmp_path: Path, name: str, lost: set[str], damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder, front, results = made_run(tmp_path / "run")
    (folder.path / name).write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        write_report(folder, front, results, LAYERS, title="damaged")
    found = evidence_of(folder)
    torn = name.endswith("jsonl") and not damage.endswith(b"\n")  # a record that ends in the middle of its first line
    assert {part for part in ("worth", "importance", "sensitivity") if getattr(found, part) is None} == (
        set() if torn else lost
    )
    assert ("is left out of the report" in caplog.text) is not torn
    assert data_in(folder)["front"] == [4, 7, 0]


def test_figures_that_are_not_finite_do_not_break_the_page(tmp_path: Path) -> None:
    folder, front, results = made_run(tmp_path / "run")
    shares = {"size_bytes": {"budget": float("nan"), "balance": 1.0}}
    folder.importance.write_text(Importance(trials=20, shares=shares).to_json())
    entries = (
        *made_sensitivity().entries,
        Divergence(option=Option(what="weight_bits", name="classifier", value=3), value=1e999),
    )
    folder.sensitivity.write_text(made_sensitivity().model_copy(update={"entries": entries}).to_json())
    write_report(folder, front, results, LAYERS, title="not finite")
    data = data_in(folder)
    assert data["knobs"]["objectives"][0]["shares"] == {"budget": None, "balance": 1.0}
    assert [None, "weights in 3 bits"] in data["sensitive"]["cells"][2]


def test_a_long_search_with_rivals_is_thinned_out(tmp_path: Path) -> None:
    results = made_many(1000)
    folder = made_folder(tmp_path / "run", results)
    for seed, rival in enumerate(("uniform", "random", "tpe")):
        made_folder(folder.baselines / rival, made_many(1000, seed=seed + 1))
    front = made_front(results)
    folder.front_json.write_text(front.to_json())
    write_report(folder, front, results, LAYERS, title="long")
    assert max(len(curve["seconds"]) for curve in data_in(folder)["worth"]["curves"]) < 400
    assert (folder.path / "front.html").stat().st_size < 6_500_000


def test_sensitivities_of_layers_that_are_gone_are_shown_last(tmp_path: Path) -> None:
    stray = Divergence(option=Option(what="weight_bits", name="old.conv", value=8), value=0.1)
    table: Sensitivity = made_sensitivity().model_copy(update={"entries": (stray, *made_sensitivity().entries)})
    assert heat_map(table, LAYERS).rows == ("features.0", "features.3", "classifier", "old.conv")
