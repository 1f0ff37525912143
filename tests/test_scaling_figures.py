"""The figure of scaling on paper: what it draws is what it was given, in light and dark."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.scaling import StepTime
from clipvip_lib.study import figures
from clipvip_lib.study.scaling_figures import LOOKS, walls_and_waits

matplotlib.use("agg")
from matplotlib import pyplot as plt

STEPS = {
    8: StepTime(towers=2.0, loss=1.0, all_reduce=0.5, decode=9.0, read=0.25),
    64: StepTime(towers=0.25, decode=1.0),
}
PACKED = {8: StepTime(towers=2.0, decode=1.5), 64: StepTime(towers=0.25, decode=0.125)}
RATIOS = [0.5, 1.0, 1.5]


@pytest.fixture
def figure():
    with matplotlib.rc_context():
        figures.use_style()
        yield walls_and_waits(
            STEPS, PACKED, 3600, RATIOS, [0.5, 0.0, 0.0], {"one": [0.6, 0.2, 0.1], "two": [0.5, 0, 0]}
        )
    plt.close("all")


def test_it_draws_hours_of_each_resource_and_per_cent_of_waiting(figure):
    left, right = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert drawn.keys() == {label for _, _, label in LOOKS.values()}
    assert drawn["decode the clips"] == [9.0, 1.0] and drawn["decode packed clips"] == [1.5, 0.125]
    assert drawn["compute"] == [3.0, 0.25]  # towers and loss wait for each other
    assert drawn["all-reduce gradients"] == [0.5, 0.0] and drawn["read the clips"] == [0.25, 0.0]
    waits = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert waits["one"] == pytest.approx([60, 20, 10]) and waits["formula, no chance"] == [50, 0, 0]


def test_every_colour_has_a_dark_partner_and_text_stays_text(figure):
    svg = figures.figure_svg(figure)
    rules = figures.dark_rules()
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg.partition("</style>")[2]))
    assert len(used) > len(LOOKS) and all(colour in rules for colour in used)
    assert ">time that a GPU waits, %<" in svg


def test_series_of_other_lengths_or_too_many_are_refused():
    with pytest.raises(ClipVipError, match="series of 3 values"):
        walls_and_waits(STEPS, PACKED, 1.0, RATIOS, [0.5, 0.0], {})
    many = {str(i): np.zeros(3) for i in range(9)}
    with pytest.raises(ClipVipError, match="at most 4 series"):
        walls_and_waits(STEPS, PACKED, 1.0, RATIOS, [0.5, 0, 0], many)
