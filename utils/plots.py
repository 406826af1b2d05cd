"""Plots: one style for all figures, and the figures that more than one notebook draws.

Colours differ in lightness, so every figure reads in greyscale; bars differ in hatching as well. Functions return the Axes,
so a notebook can go on with matplotlib. Knows numbers and labels only.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Dark to light: lightness (CIE L*) about 19, 38, 54, 70 and 85.
COLORS = ["#14304e", "#9c3d22", "#3b8a7c", "#d99f3e", "#d5d3cd"]
HATCHES = ["", "//", "..", "xx", "\\\\"]
MARKERS = ["o", "s", "^", "D", "v", "P"]

Estimate = float | tuple[float, float, float]
"""A number, or (mean, low, high) such as `evaluation.Interval`."""


def use_course_style() -> None:
    """Set matplotlib's defaults for the whole notebook: light grid, no box, readable sizes, greyscale-safe colours."""
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLORS[:4]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "hatch.linewidth": 0.6,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": "cividis",
        }
    )


def bar_with_intervals(
    series: Mapping[str, Sequence[Estimate]],
    labels: Sequence[str],
    ylabel: str,
    *,
    baseline: float | None = None,
    baseline_label: str = "baseline",
    ax: "Axes | None" = None,
) -> "Axes":
    """Return grouped bars with error bars: one group per label, one bar per series ({"RAG": [0.6, 0.7], …}).

    A baseline is drawn as a dashed line. Raises ValueError if a series has not one estimate per label.
    """
    ax = ax or _new_axes()
    width = 0.8 / len(series)
    for i, (name, estimates) in enumerate(series.items()):
        if len(estimates) != len(labels):
            raise ValueError(f"Series {name!r} has {len(estimates)} estimates for {len(labels)} labels; give one per label.")
        means, errors = _means_and_errors(estimates)
        at = [group + (i - (len(series) - 1) / 2) * width for group in range(len(labels))]
        look: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
        bars = ax.bar(at, means, 0.92 * width, label=name, yerr=errors, ecolor="#555555", capsize=3, **look)
        ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    ax.set_xticks(range(len(labels)), labels)
    ax.grid(axis="x", visible=False)
    ax.set_ylabel(ylabel)
    if baseline is not None:
        ax.axhline(baseline, color="black", linestyle="--", linewidth=1, label=baseline_label)
    if len(series) > 1 or baseline is not None:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def tradeoff_scatter(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    *,
    sizes: Mapping[str, float] | None = None,
    log_x: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Return a scatter of cost (x, less is better) against quality (y, more is better), each point named.

    A line joins the points that no other beats on both. sizes: a third quantity, drawn as the marker's area.
    """
    ax = ax or _new_axes()
    largest = max(sizes.values()) if sizes else 1.0
    for i, (name, (cost, quality)) in enumerate(points.items()):
        area = 30 + 470 * sizes[name] / largest if sizes else 60
        ax.scatter(cost, quality, s=area, color=COLORS[i % 4], marker=MARKERS[i % len(MARKERS)], alpha=0.9, zorder=3)
        ax.annotate(name, (cost, quality), xytext=(area**0.5 / 2 + 3, 4), textcoords="offset points", fontsize=9)
    front = best_tradeoffs(points)
    ax.plot([points[n][0] for n in front], [points[n][1] for n in front], color="#999999", linewidth=1, linestyle=":", zorder=2)
    if log_x:
        ax.set_xscale("log")
    ax.margins(0.15)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def best_tradeoffs(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names, by rising cost, of the points that no cheaper point reaches in quality (the Pareto front)."""
    front: list[str] = []
    for name, (_, quality) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or quality > points[front[-1]][1]:
            front.append(name)
    return front


def _new_axes() -> "Axes":
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def _means_and_errors(estimates: Sequence[Estimate]) -> tuple[list[float], list[list[float]] | None]:
    """Return the means, and the lengths of the error bars below and above them (None if all are plain numbers)."""
    triples = [(e, e, e) if isinstance(e, int | float) else tuple(e) for e in estimates]
    means = [mean for mean, _, _ in triples]
    errors = [[max(0.0, mean - low) for mean, low, _ in triples], [max(0.0, high - mean) for mean, _, high in triples]]
    return means, errors if any(map(any, errors)) else None
