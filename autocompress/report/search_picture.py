"""How the hypervolume grew with the compute spent, as a picture for a README or MLflow."""

import io
import textwrap
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autocompress.report.worth import Curve, Worth, verdict

_INK, _SOFT, _GRID, _OURS = "#1d2733", "#66717d", "#e6e9ed", "#1f6f8b"
# Told apart with any colour vision, and by their dashes without colour.
_RIVALS = (
    ("#c2410c", "-"),
    ("#6d3fb0", (0, (6, 2))),
    ("#8a6100", (0, (1.5, 1.5))),
    ("#b0336e", (0, (6, 2, 1.5, 2))),
    ("#3d6b1f", (0, (3, 1.5))),
    ("#5b6672", (0, (1, 3))),
)
# Labels are that share of the height apart, at least.
_APART = 0.05


def search_picture(worth: Worth, title: str) -> bytes:
    """A PNG of 1600 x 900: a line for the run and for each of its rivals, named at its end."""
    figure = Figure(figsize=(10, 5.625), dpi=160, facecolor="white")
    figure.subplots_adjust(left=0.075, right=0.77, bottom=0.12, top=0.83)
    axes = figure.subplots()
    curves = worth.curves
    styles = dict(zip([curve.name for curve in curves[1:]], _RIVALS * len(curves), strict=False))
    for curve in reversed(curves):
        colour, dashes = styles.get(curve.name, (_OURS, "-"))
        axes.plot(
            curve.seconds,
            curve.volumes,
            drawstyle="steps-post",
            color=colour,
            ls=dashes,
            lw=3.2 if curve.ours else 1.8,
            solid_capstyle="round",
        )
    longest, highest = max(curve.seconds[-1] for curve in curves), max(curve.volumes[-1] for curve in curves)
    axes.set_xlim(0, longest * 1.01 or 1)
    axes.set_ylim(0, highest * 1.08 or 1)
    _write_names(axes, curves, styles)
    _draw_bracket(axes, worth)
    _dress(axes)
    figure.text(
        0.014,
        0.965,
        textwrap.shorten(title, 84, placeholder=" ..."),
        fontsize=15,
        fontweight="bold",
        color=_INK,
        va="top",
        parse_math=False,
    )
    figure.text(0.014, 0.9, "\n".join(textwrap.wrap(verdict(worth), 145)), fontsize=10, color=_SOFT, va="top", parse_math=False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _write_names(axes: Axes, curves: tuple[Curve, ...], styles: Mapping[str, tuple[str, object]]) -> None:
    """At the right edge, at the height of each curve's end, moved apart where they would lie on one another."""
    top, height = axes.get_ylim()[1], 1.0 + _APART
    ordered = sorted(curves, key=lambda curve: -curve.volumes[-1])
    for below, curve in zip(reversed(range(len(ordered))), ordered, strict=True):
        height = max(min(curve.volumes[-1] / top, height - _APART), below * _APART)
        axes.annotate(
            f"{curve.name}  {curve.volumes[-1]:.3f}",
            (1, height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=styles.get(curve.name, (_OURS,))[0],
            fontsize=10.5,
            fontweight="bold" if curve.ours else "normal",
            annotation_clip=False,
            parse_math=False,
        )


def _draw_bracket(axes: Axes, worth: Worth) -> None:
    """From where the search had what the best rival had in the end, to that end."""
    best = worth.best
    if best is None or best.reached is None or best.share is None or best.share >= 1:
        return
    across, height = (best.worker_seconds, best.reached, best.reached), (best.hypervolume, best.hypervolume, 0)
    axes.plot(across, height, color=_INK, lw=1, ls=(0, (2, 2)), zorder=1)
    axes.scatter([best.reached], [best.hypervolume], s=46, color=_INK, zorder=5)
    side = 1 if best.reached < 0.6 * axes.get_xlim()[1] else -1
    axes.annotate(
        f"{best.share:.0%} of the best rival's compute",
        (best.reached, 0),
        xytext=(7 * side, 6),
        textcoords="offset points",
        color=_INK,
        fontsize=10,
        ha="left" if side > 0 else "right",
    )


def _dress(axes: Axes) -> None:
    axes.set_xlabel("worker-seconds, sensitivities and costs included", color=_INK, labelpad=8)
    axes.set_ylabel("hypervolume of the front", color=_INK, labelpad=8)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 or not value else f"{value:g}")
    )
    axes.tick_params(color=_GRID, labelcolor=_SOFT, length=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(color=_GRID, lw=0.9)
    axes.set_axisbelow(True)
