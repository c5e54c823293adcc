"""The front as a picture, for a README or MLflow."""

import io
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from autocompress.objective import SCORE
from autocompress.report.data import Report, show, times_faster, times_smaller
from autocompress.words import times

# Fast to slow: lightness rises evenly, so that it can be read without colour too.
COLOURS = ("#3d2b8c", "#2f6db3", "#1f9a8a", "#74b843", "#f0b429")
_INK, _SOFT, _GRID = "#1d2733", "#66717d", "#e6e9ed"
# A front of this many points is drawn with smaller ones.
_MANY = 150
# Steps at which a logarithmic axis is labelled.
_STEPS = (1, 2, 3, 5, 7)
# Dots an inch among text: 960 x 600.
_ON_A_PAGE = 96


class Picture(Figure):
    """A figure that a notebook shows. Of those made without pyplot it would print the name alone."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=_ON_A_PAGE)
        return content.getvalue()


def front_picture(report: Report) -> bytes:
    """`front_figure` as a PNG of 1600 x 1000."""
    content = io.BytesIO()
    front_figure(report).savefig(content, format="png")
    return content.getvalue()


def front_figure(report: Report) -> Picture:
    """Size against accuracy, latency as colour; the uncompressed and the recommended model are marked."""
    figure = Picture(figsize=(10, 6.25), dpi=160, facecolor="white")
    figure.set_layout_engine("constrained", rect=(0.005, 0.005, 0.99, 0.87), h_pad=0.05, w_pad=0.05)
    axes = figure.subplots()
    shown = _main(report)
    low, high = _frame(report, shown)
    _draw_points(figure, axes, report, shown)
    _draw_marks(axes, report)
    _draw_limits(axes, report)
    _dress(axes, report, low, high)
    scores = report.table[SCORE]
    worse = scores < low if report.front.scoring.goal == "max" else scores > high
    _write_head(figure, report, int(worse.sum()))
    return figure


def _main(report: Report) -> pd.DataFrame:
    """The rows that matter: the front, or the nearest when there is none."""
    numbers = [result.number for result in report.front.members or report.front.nearest]
    return report.table[report.table["number"].isin(numbers)]


def _frame(report: Report, shown: pd.DataFrame) -> tuple[float, float]:
    """The accuracies that fill the height: trials that failed to learn would press all others into a line."""
    scores = [*shown[SCORE], report.front.baseline[SCORE]]
    scores += [limit.bound(report.front.baseline) for limit in report.front.limits if limit.metric == SCORE]
    span = max(max(scores) - min(scores), 0.02 * abs(max(scores)), 1e-6)
    middle = (max(scores) + min(scores)) / 2
    return middle - 0.62 * span, middle + 0.62 * span


def _draw_points(figure: Figure, axes: Axes, report: Report, shown: pd.DataFrame) -> None:
    others = report.table.drop(shown.index)
    everything = report.table["latency_ms"]
    if everything.empty:
        return
    colours: Colormap = LinearSegmentedColormap.from_list("fast to slow", COLOURS)
    norm = LogNorm(everything.min(), max(everything.max(), 1.01 * everything.min()))
    axes.scatter(
        others["size_bytes"] / 1e3, others[SCORE], c=others["latency_ms"], s=26, cmap=colours, norm=norm, alpha=0.3, lw=0
    )
    points = axes.scatter(
        shown["size_bytes"] / 1e3,
        shown[SCORE],
        c=shown["latency_ms"],
        s=105 if len(shown) < _MANY else 50,
        cmap=colours,
        norm=norm,
        edgecolors="white",
        linewidths=1.2,
        zorder=3,
    )
    _draw_spread(axes, report)
    bar = figure.colorbar(points, ax=axes, aspect=32, pad=0.015, shrink=0.96)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(FixedLocator(_round_steps(*points.get_clim())))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.ax.tick_params(color=_SOFT, labelcolor=_SOFT, length=3)
    bar.set_label("latency, ms", color=_INK, labelpad=8)


def _draw_spread(axes: Axes, report: Report) -> None:
    """A line over the accuracies of the seeds: one standard deviation on either side of their mean."""
    some = report.table[report.table["seeds"].notna()]
    below = some[SCORE] - some["accuracy_mean"] + some["accuracy_deviation"]
    above = some["accuracy_mean"] + some["accuracy_deviation"] - some[SCORE]
    axes.errorbar(
        some["size_bytes"] / 1e3,
        some[SCORE],
        yerr=[below, above],
        fmt="none",
        ecolor=_INK,
        elinewidth=1.2,
        capsize=3.5,
        zorder=2.5,
    )


def _draw_marks(axes: Axes, report: Report) -> None:
    base = report.front.baseline
    axes.scatter([base["size_bytes"] / 1e3], [base[SCORE]], marker="D", s=80, c=_INK, zorder=3)
    axes.annotate(
        f"uncompressed\n{show('latency_ms', base['latency_ms'], report.front.scoring)}",
        (base["size_bytes"] / 1e3, base[SCORE]),
        xytext=(0, -13),
        textcoords="offset points",
        ha="center",
        va="top",
        color=_SOFT,
        fontsize=9.5,
    )
    chosen = report.front.recommended()
    if chosen is not None:
        at = (chosen.metrics["size_bytes"] / 1e3, chosen.metrics[SCORE])
        axes.scatter(*at, s=330, facecolors="none", edgecolors=_INK, linewidths=1.6, zorder=4)
        axes.annotate(
            f"trial {chosen.number}, recommended",
            at,
            xytext=(0, 17),
            textcoords="offset points",
            ha="center",
            color=_INK,
            fontweight="bold",
            fontsize=10,
            zorder=5,
        )


def _draw_limits(axes: Axes, report: Report) -> None:
    for limit in report.front.limits:
        bound = limit.bound(report.front.baseline)
        if limit.metric == SCORE:
            axes.axhline(bound, color=_SOFT, lw=1, ls=(0, (4, 4)), zorder=1)
            _write_limit(axes, limit.text, (0, bound), ("axes fraction", "data"), 0)
        if limit.metric == "size_bytes":
            axes.axvline(bound / 1e3, color=_SOFT, lw=1, ls=(0, (4, 4)), zorder=1)
            _write_limit(axes, limit.text, (bound / 1e3, 0), ("data", "axes fraction"), 90)


def _write_limit(axes: Axes, text: str, at: tuple[float, float], where: tuple[str, str], angle: int) -> None:
    axes.annotate(
        text,
        at,
        xytext=(4, 4),
        xycoords=where,
        textcoords="offset points",
        rotation=angle,
        color=_SOFT,
        fontsize=9,
        in_layout=False,
    )


def _dress(axes: Axes, report: Report, low: float, high: float) -> None:
    base = report.front.baseline
    limits = [limit.bound(base) for limit in report.front.limits if limit.metric == "size_bytes"]
    sizes = [size / 1e3 for size in (*report.table["size_bytes"], base["size_bytes"], *limits)]
    left, right = min(sizes) / 1.25, max(sizes) * 1.35
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_round_steps(left, right)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    if report.front.scoring.share:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_xlabel("size of the exported file, kB (logarithmic)", color=_INK, labelpad=8)
    axes.set_ylabel(f"{report.front.scoring.name} on validation data", color=_INK, labelpad=8)
    whole = base["size_bytes"] / 1e3
    ratio = axes.secondary_xaxis("top", functions=(lambda size: whole / np.maximum(size, 1e-9),) * 2)
    ratio.xaxis.set_major_locator(FixedLocator(_round_steps(whole / right, whole / left)))
    ratio.xaxis.set_minor_locator(NullLocator())
    ratio.xaxis.set_minor_formatter(NullFormatter())
    ratio.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))
    ratio.set_xlabel("times smaller than uncompressed", color=_SOFT, fontsize=9.5, labelpad=6)
    for side in (axes, ratio):
        side.tick_params(color=_GRID, labelcolor=_SOFT, length=3)
        for spine in side.spines.values():
            spine.set_visible(False)
    axes.grid(color=_GRID, lw=0.9)
    axes.set_axisbelow(True)


def _write_head(figure: Figure, report: Report, worse: int) -> None:
    parts = [f"{report.trials} trials, {len(report.front.members)} on the Pareto front", _recommendation(report)]
    if worse:
        where = "below" if report.front.scoring.goal == "max" else "above"
        parts.append(f"{worse} trial{'s' if worse > 1 else ''} {where} the frame")
    # A title may hold a dollar sign: no formula is meant.
    title = textwrap.shorten(report.title, 84, placeholder=" ...")
    figure.text(0.014, 0.965, title, fontsize=15, fontweight="bold", color=_INK, va="top", parse_math=False)
    figure.text(0.014, 0.913, "   ·   ".join(part for part in parts if part), fontsize=10, color=_SOFT, va="top")


def _recommendation(report: Report) -> str:
    base, chosen = report.front.baseline, report.front.recommended()
    if chosen is None:
        return "no trial meets the limits: the nearest are shown" if report.front.nearest else ""
    scoring = report.front.scoring
    return (
        f"recommended: {times(times_smaller(chosen.metrics, base), 'smaller', 'larger')}, "
        f"{times(times_faster(chosen.metrics, base), 'faster', 'slower')}, "
        f"{scoring.show(chosen.metrics[SCORE])} ({scoring.change(chosen.metrics[SCORE], base[SCORE])})"
    )


def _round_steps(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`, at most nine of them, evenly thinned on a logarithmic scale."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in (_STEPS, (1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(found) <= 9:
            break
    return found
