"""Figures: self-contained SVG, the same every time, legible on light and dark pages."""

import re
import urllib.parse
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.study import figures
from clipvip_lib.workshop import pages

matplotlib.use("agg")
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def chart():
    fig, axes = plt.subplots()
    for i, name in enumerate(figures.PALETTE):
        axes.errorbar([0, 1], [i, i + 1], yerr=[0.1, 0.2], label=f"{name} & <co>")
    axes.set_title("Proxies win")
    axes.legend()
    return fig


def film(seed=0, n=4, size=64):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size]
    frames = [
        np.stack([x * 3 + 9 * i, y * 2, x + y], -1) + rng.integers(0, 9, (size, size, 3)) for i in range(n)
    ]
    return np.clip(frames, 0, 255).astype(np.uint8)


def test_the_svg_is_well_formed_and_fetches_nothing():
    svg = figures.figure_svg(chart())
    ET.fromstring(svg)
    assert not re.search(r"(?:href|src|url)\s*[=(]\s*[\"']?(?:https?:)?//", svg)
    assert "<script" not in svg and "@import" not in svg
    assert ">Proxies win<" in svg  # text stays text
    assert "&amp; &lt;co&gt;" in svg


def test_the_same_figure_gives_the_same_bytes():
    assert figures.figure_svg(chart()) == figures.figure_svg(chart())


def test_every_colour_that_is_used_has_a_dark_partner():
    svg = figures.figure_svg(chart())
    rules = figures.dark_rules()
    body = svg.partition("</style>")[2]
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", body))
    assert len(used) >= len(figures.PALETTE) + 3
    for colour in used:
        assert f"{colour}" in rules, colour
    assert "@media (prefers-color-scheme: dark)" in svg


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_with_the_background(scheme):
    paper = figures.INK["paper"][scheme]
    for name, pair in figures.PALETTE.items():
        assert contrast(pair[scheme], paper) >= 3.0, name  # WCAG for graphics
    for role in ("text", "muted"):
        assert contrast(figures.INK[role][scheme], paper) >= 4.5, role  # WCAG for text


def test_the_page_style_has_the_same_ink():
    text = (Path(pages.__file__).with_name("templates") / "style.css").read_text()
    for role in ("text", "muted", "paper"):
        for colour in figures.INK[role]:
            assert colour in text


def test_film_strips_are_small_and_show_the_frames():
    frames = film(n=8, size=128)
    html = figures.figure_html(figures.film_strip([frames, frames], ["a", "b"]), "Two clips", "", "strips")
    assert len(html) < 80_000
    assert html.count("data:image/jpeg") == 2


def test_small_rasters_stay_exact():
    fig, axes = plt.subplots()
    axes.imshow(np.arange(81).reshape(9, 9))
    svg = figures.figure_svg(fig)
    assert "data:image/png" in svg and "jpeg" not in svg


def test_the_html_keeps_alt_title_and_caption_and_can_be_parsed_back():
    html = figures.figure_html(chart(), 'A "finding" <1>', "n = 3 & more", 'lines "rise"')
    assert '<img alt="lines &quot;rise&quot;"' in html
    assert '<p class="finding">A &quot;finding&quot; &lt;1&gt;</p>' in html and "n = 3 &amp; more" in html
    import html as escapes

    source = escapes.unescape(re.search(r'src="data:image/svg\+xml,([^"]*)"', html)[1])
    assert ET.fromstring(urllib.parse.unquote(source)).tag.endswith("svg")
    assert not plt.get_fignums()  # closed: nothing is drawn twice


@pytest.mark.parametrize(
    ("clips", "labels"),
    [
        ([np.zeros((2, 4, 4), np.uint8)], None),
        ([np.zeros((2, 4, 4, 3))], None),
        ([], None),
        ([film()], ["a", "b"]),
    ],
)
def test_film_strips_of_something_else_are_refused(clips, labels):
    with pytest.raises(ClipVipError, match="film strip of"):
        figures.film_strip(clips, labels)


def test_spotlight_is_bright_where_the_map_is_high():
    clip, maps = np.full((2, 4, 6, 3), 200, np.uint8), np.zeros((2, 2, 3))
    maps[1, 0, 2], maps[0, 1, 0] = 0.5, 0.25
    lit = figures.spotlight(clip, maps)
    assert (lit[1, :2, 4:] == 200).all() and (lit[1, 2:] == 30).all()
    assert (lit[0, 2:, :2] == int(200 * (0.15 + 0.85 / 2))).all()
    with pytest.raises(ClipVipError, match="expected one per frame, on a grid that divides it"):
        figures.spotlight(clip, maps[:1])


def rows():
    fig, axes = plt.subplots(1, 2, sharey=True)
    for axis, title in zip(axes, ("msrvtt", "didemo"), strict=True):
        axis.set_title(title)
        figures.interval_rows(axis, ["on msrvtt", "full"], [1.0, 2.0], [0.5, 1.5], [1.25, np.nan])
        axis.set_xticks([0, 1, 2])
    return fig


def test_what_a_figure_tells_stands_at_its_points():
    import html as escapes
    import json

    made = figures.figure_html(rows(), "t", "c", "a")
    told = json.loads(escapes.unescape(re.search(r'data-points="([^"]*)"', made)[1]))
    assert [text for _, _, text in told][:2] == [
        "msrvtt, on msrvtt: 1.00 (0.50 to 1.25)",
        "msrvtt, full: 2.00 (1.50 to –)",
    ]
    assert all(0 < x < 1 and 0 < y < 1 for x, y, _ in told)
    assert told[0][0] < told[1][0] < told[2][0] and told[0][1] < told[1][1]  # from the left, from the top
    assert "data-points" not in figures.figure_html(chart(), "t", "c", "a")


def test_a_renamed_figure_keeps_all_other_labels():
    def name(text):
        return text.replace("msrvtt", "mini-MSRVTT")

    plain, named = (
        re.findall(r">([^<>]+)</text>", figures.figure_svg(fig))
        for fig in (rows(), figures.renamed(rows(), name))
    )
    assert named == [name(text) for text in plain] and "on mini-MSRVTT" in named and "0" in named
    assert vars(figures.renamed(rows(), name))["told"][0][3].startswith("mini-MSRVTT, on mini-MSRVTT")
