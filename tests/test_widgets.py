"""Widgets ask the live model only where somebody can touch them, and say of a frame what its attention is."""

import io

import numpy as np
import pytest
from PIL import Image

from clipvip_lib.study import widgets


def test_where_nobody_can_touch_them_nothing_is_shown_or_asked(capsys):
    widgets.sentence_box(lambda sentence: pytest.fail("asked"), ["a ring"])
    widgets.attention_sliders(lambda clip: pytest.fail("asked"), 3)
    assert capsys.readouterr().out == ""


@pytest.fixture
def shown(monkeypatch):
    """What is displayed in a front end that shows widgets."""
    found = []
    monkeypatch.setattr(widgets, "live", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda *each, **_: found.extend(each))
    return found


def test_a_sentence_is_answered_when_there_is_one(shown):
    asked = []
    widgets.sentence_box(
        lambda sentence: asked.append(sentence) or ({}, f"<{sentence}>", ""), ["a ring", "a ring"]
    )
    [box] = shown[0].children
    assert box.options == ("a ring",) and asked == []
    for sentence in ("a ring", " ", "a star"):
        box.value = sentence
    assert asked == ["a ring", "a star"]
    assert "&lt;a star&gt;" in shown[-1].data


def test_sliders_choose_clip_layer_head_and_proxy(shown):
    shares = np.zeros((2, 3, 4, 5, 2, 2))
    shares[1, 2, 3, 4, 1, 0] = 0.3  # layer 2, head 3, proxy 4: frame 5, row 2, column 1
    shares[1, 2, 3, 0, 0, 0] = 0.1
    frames = np.full((5, 8, 8, 3), 200, np.uint8)
    looked = []
    widgets.attention_sliders(lambda clip: looked.append(clip) or (frames, shares), 7)
    controls = {control.description: control for control in shown[0].children}
    for name, value in {"clip": 7, "layer": 2, "proxy": 4, "frame": 5}.items():
        assert controls[name].max >= value
        controls[name].value = value
    controls["head"].index = 3
    assert looked[-1] == 6 and len(controls["head"].options) == 4
    assert "75 % of what the proxy gives the frames goes to frame 5" in shown[-1].data
    assert "row 2, column 1" in shown[-1].data and shown[-1].data.count("<img ") == 5


def test_a_frame_is_as_dark_as_it_is_little_looked_at():
    shares = np.array([[[0.4, 0.0]], [[0.2, 0.2]]])
    groups, said, where = widgets._looked_at(np.full((2, 4, 4, 3), 200, np.uint8), shares, 1)
    [(first, second)] = groups.values()
    assert (first.text, second.text) == ("50 %", "50 %") and first.own and not second.own
    assert said.startswith("50 %") and where == "Most of it to row 1, column 1."
    light = np.asarray(Image.open(io.BytesIO(first.content))).mean((0, 2))
    assert abs(light[0] - 200) < 6 and abs(light[-1] - 30) < 6
