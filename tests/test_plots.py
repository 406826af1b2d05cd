"""Figures carry what they are given, and read in greyscale."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from utils import plots
from utils.evaluation import Interval


@pytest.fixture(autouse=True)
def _styled():
    with matplotlib.rc_context():
        plots.use_course_style()
        yield
    plt.close("all")


def lightness(color: str) -> float:
    """CIE L*, 0 (black) to 100 (white)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * luminance ** (1 / 3) - 16


def test_colours_differ_in_greyscale():
    levels = [lightness(color) for color in plots.COLORS]
    assert all(lighter - darker >= 12 for darker, lighter in zip(levels, levels[1:], strict=False)), levels


def test_bars_show_means_intervals_and_baseline():
    series = {"closed-book": [Interval(0.1, 0.05, 0.2), Interval(0.2, 0.1, 0.3)], "RAG": [Interval(0.6, 0.5, 0.7), 0.7]}
    ax = plots.bar_with_intervals(series, ["EM", "F1"], "score", baseline=0.5, baseline_label="random")
    assert [bar.get_height() for bar in ax.patches] == [0.1, 0.2, 0.6, 0.7]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["EM", "F1"]
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"closed-book", "RAG", "random"}
    lows = [segment[0][1] for segment in ax.containers[1].errorbar.lines[2][0].get_segments()]
    assert lows == pytest.approx([0.05, 0.1])
    assert ax.get_ylabel() == "score"
    ax.figure.canvas.draw()


def test_one_series_of_plain_numbers_needs_no_legend():
    ax = plots.bar_with_intervals({"speed": [1, 2.5]}, ["a", "b"], "tokens/s")
    assert ax.get_legend() is None and ax.containers[0].errorbar is None


def test_series_of_another_length_is_refused():
    with pytest.raises(ValueError, match="'RAG' has 1 estimates for 2 labels"):
        plots.bar_with_intervals({"RAG": [0.5]}, ["EM", "F1"], "score")


def test_scatter_names_every_point_and_joins_the_front():
    points = {"flat": (10.0, 1.0), "ivf": (2.0, 0.9), "pq": (1.0, 0.6), "slow": (20.0, 0.8)}
    ax = plots.tradeoff_scatter(points, "latency (ms)", "recall@10", sizes={"flat": 4, "ivf": 4, "pq": 1, "slow": 2})
    assert {text.get_text() for text in ax.texts} == set(points)
    assert ax.lines[0].get_xdata().tolist() == [1.0, 2.0, 10.0]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "latency (ms)"
    ax.figure.canvas.draw()


def test_front_leaves_out_what_another_point_equals_at_less_cost():
    assert plots.best_tradeoffs({"a": (1, 0.5), "b": (1, 0.6), "c": (2, 0.6), "d": (3, 0.7)}) == ["b", "d"]
    assert plots.best_tradeoffs({}) == []


def test_figures_go_onto_given_axes():
    _, (left, right) = plt.subplots(1, 2)
    assert plots.bar_with_intervals({"x": [1.0]}, ["a"], "y", ax=left) is left
    assert plots.tradeoff_scatter({"a": (1, 1)}, "x", "y", log_x=False, ax=right) is right
