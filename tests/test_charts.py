"""Charts: what each draws is what it was given, in colours that dark pages have too."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest

from clipvip_lib.study import charts, figures

matplotlib.use("agg")
from matplotlib import pyplot as plt

SCORES = pd.DataFrame(
    {"arm": ["full", "proxy"], "R@1": [20.0, 30.0], "low": [15.0, 26.0], "high": [27.0, 31.0]}
)
LOOKS = {"full": ("orange", "s", True), "proxy": ("blue", "o", False)}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def points(collection) -> set[tuple[float, float]]:
    return {tuple(map(float, place)) for place in collection.get_offsets()}


def bars(container) -> list[list[float]]:
    """(low, high) of each bar of an errorbar, along its own axis."""
    [lines] = container[2]
    along = int(np.ptp(np.array(lines.get_segments()[0]), axis=0).argmax())
    return [sorted(float(end[along]) for end in segment) for segment in lines.get_segments()]


def test_masks_are_drawn_pair_by_pair_and_proxies_apart():
    proxy = np.array([[True, True], [True, False]])
    fig = charts.who_sees_whom({"apart": np.eye(2, dtype=bool), "all": np.ones((2, 2), bool)}, proxy)
    apart, together = fig.axes
    assert apart.get_title(loc="left") == "apart: 2 pairs"
    within, with_proxies = together.collections
    assert points(within) == {(1, 1)} and points(with_proxies) == {(0, 0), (1, 0), (0, 1)}
    assert [points(part) for part in apart.collections] == [{(1, 1)}, {(0, 0)}]


def test_a_grid_of_pairs_marks_positives_and_negatives_and_writes_the_rest():
    roles = np.array([["positive", "negative", "left out"]], dtype=object)
    [axis] = charts.pair_grid({"V to S": roles, "V to C": roles[:, ::-1]}, ["V1"], ["S1", "S2", "C1"]).axes[
        :1
    ]
    assert [points(part) for part in axis.collections] == [{(0, 0)}, {(1, 0)}]
    assert [(text.get_text(), text.get_position()) for text in axis.texts] == [("left out", (2, 0))]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["S1", "S2", "C1"]


def test_panels_of_intervals_hold_values_ends_and_looks_in_the_same_rows():
    panels = {"msrvtt": SCORES, "didemo": SCORES[1:]}  # full attention was not run on didemo
    left, right = charts.interval_panels(panels, "arm", "R@1", LOOKS, "R@1", at=25).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["full", "proxy"]
    assert right.get_ylim() == left.get_ylim()
    drawn = [
        (*map(float, container[0].get_xydata()[0]), *bars(container)[0]) for container in left.containers
    ]
    assert drawn == [(20, 0, 15, 27), (30, 1, 26, 31)]
    absent, proxy = right.containers
    assert np.isnan(absent[0].get_xydata()[0][0]) and list(proxy[0].get_xydata()[0]) == [30, 1]
    fills = [container[0].get_markerfacecolor() for container in left.containers]
    assert fills == [figures.INK["paper"][0], figures.PALETTE["blue"][0]]  # full attention is hollow
    assert any(list(line.get_xdata()) == [25, 25] for line in left.lines)


def test_series_of_intervals_share_rows_and_have_one_legend():
    cases = {"encoder": {"msrvtt": SCORES, "didemo": SCORES + {"arm": "", "R@1": 1, "low": 1, "high": 1}}}
    cases["tf-idf"] = cases["encoder"]
    fig = charts.interval_series(cases, "arm", "R@1", "NMI", (0, 50))
    first, second = fig.axes[0].containers
    assert list(first[0].get_xdata()) == [20, 30] and list(second[0].get_xdata()) == [21, 31]
    assert bars(second) == [[16, 28], [27, 32]]
    heights = first[0].get_ydata(), second[0].get_ydata()
    assert all(0 < below - above < 0.5 for above, below in zip(*heights, strict=True))
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["msrvtt", "didemo"]


def test_curves_differ_in_line_and_points_have_none():
    fig = charts.curves(
        {"a": ([1, 2], [3, 4]), "b": ([1, 2], [5, 6])}, "step", "loss", points={"c": ([1], [3])}, ticks=[1, 2]
    )
    a, b, c = fig.axes[0].lines
    assert (list(a.get_ydata()), list(b.get_ydata()), list(c.get_ydata())) == ([3, 4], [5, 6], [3])
    assert a.get_linestyle() != b.get_linestyle() and c.get_linestyle() == "None"
    assert list(fig.axes[0].get_xticks()) == [1, 2]


def test_curves_over_a_baseline_keep_its_band_and_their_bars():
    part = SCORES.assign(step=[10, 20])
    fig = charts.curves_over_baseline(
        {"small": part, "large": part}, "step", "R@1", ("none", 22.0, 21.0, 23.0), "steps", "R@1"
    )
    [axis] = fig.axes
    assert [bars(container) for container in axis.containers] == [[[15, 27], [26, 31]]] * 2
    [band] = axis.patches
    assert (band.get_y(), band.get_height()) == (21, 2)
    assert any(line.get_label() == "none" and set(line.get_ydata()) == {22} for line in axis.lines)
    assert list(axis.get_xticks()) == [0, 10, 20]


def test_growth_has_a_panel_a_quantity_and_the_exponents_in_words():
    frame = pd.DataFrame({"arm": ["full"] * 2, "frames": [2, 4], "pairs": [4, 16], "seconds": [1.0, 2.5]})
    slopes = {"full": {"pairs": 2.0, "seconds": 1.32}}
    fig = charts.growth(frame, {"pairs": "pairs", "seconds": "time"}, {"full": ("o-", "blue")}, slopes)
    assert [list(axis.lines[0].get_ydata()) for axis in fig.axes] == [[4, 16], [1, 2.5]]
    assert fig.axes[1].lines[0].get_label() == "full: frames^1.32" and fig.axes[0].get_xscale() == "log"


def test_clouds_show_every_point_and_no_empty_panel():
    one, two = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[4.0, 5.0]])
    fig = charts.clouds({name: {"people": one, "the source": two} for name in "abc"})
    assert [axis.get_visible() for axis in fig.axes] == [True, True, True, False]
    assert [points(part) for part in fig.axes[2].collections] == [{(0, 1), (2, 3)}, {(4, 5)}]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["people", "the source"]


def test_frames_stand_beside_what_is_said_of_them():
    frame = np.full((8, 8, 3), 200, np.uint8)
    fig = charts.captioned_frames([frame, frame // 2], [{"OFA": "a disc"}, {"OFA": "", "a person": "a star"}])
    said = [[text.get_text() for text in axis.texts] for axis in fig.axes]
    assert said == [["OFA", "a disc"], ["OFA", "", "a person", "a star"]]
    assert np.array_equal(fig.axes[1].images[0].get_array(), frame // 2)


def test_every_colour_has_a_dark_partner():
    series = {name: ([1, 2], [i, i + 1]) for i, name in enumerate("abcdefg")}
    svg = figures.figure_svg(charts.curves(series, "x", "y", points={"z": ([1], [1])}))
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg.partition("</style>")[2]))
    assert len(used) > len(series) and all(colour in figures.dark_rules() for colour in used)
