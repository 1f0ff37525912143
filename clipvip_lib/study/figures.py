"""matplotlib figures as self-contained SVG that follows the reader's light or dark setting.

Text stays text (no fonts inside, so files are small and searchable). Every colour that ``use_style`` hands out has a
partner for dark pages, and a ``prefers-color-scheme`` rule inside the SVG switches to it. The palette is Okabe and
Ito's, safe for colour-blind readers, darkened and lightened until each colour stands out from its background (a test
measures it). Photographs inside a figure are stored as JPEG.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import urllib.parse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipvip_lib.errors import ClipVipError
from clipvip_lib.say import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# role: (light, dark). Matplotlib is given the light one.
INK = {
    "text": ("#1c2128", "#e6e9ee"),
    "muted": ("#57606b", "#a6aeb9"),
    "grid": ("#d8dde3", "#353c46"),
    "paper": ("#fefefe", "#15191f"),
}
# In this order two neighbours differ in lightness too, so that grey prints keep them apart.
PALETTE = {
    "blue": ("#0067a5", "#4fb0f0"),
    "orange": ("#c2500a", "#ff9d4d"),
    "green": ("#00805e", "#3fd6a6"),
    "purple": ("#a34a80", "#ec9fcb"),
    "sky": ("#2a86bd", "#9bd7fb"),
    "ochre": ("#8a6a00", "#ecd24f"),
    "grey": ("#68707a", "#b4bbc5"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
JPEG_FROM_BYTES = 8_000  # smaller rasters (heat maps of a few cells) stay exact


def use_style() -> None:
    """Set matplotlib's defaults for the study: colours with dark partners, sizes, quiet axes."""
    import matplotlib
    from cycler import cycler

    text, muted, grid, paper = (INK[role][0] for role in ("text", "muted", "grid", "paper"))
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "clipvip",  # the same figure gives the same bytes
            "svg.id": None,
            "text.parse_math": False,  # a caption may hold dollar signs
            "figure.figsize": (7.2, 3.8),
            "figure.facecolor": paper,
            "figure.constrained_layout.use": True,
            "axes.facecolor": paper,
            "axes.edgecolor": muted,
            "axes.labelcolor": text,
            "axes.titlecolor": text,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=[light for light, _ in PALETTE.values()]),
            "grid.color": grid,
            "grid.linewidth": 0.8,
            "xtick.color": muted,
            "ytick.color": muted,
            "text.color": text,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.interpolation": "none",  # rasters are stored at their own size
            "image.cmap": "cividis",
        }
    )


def figure_svg(fig: Figure) -> str:
    """The figure as SVG text with its dark rules, and the figure closed.

    The same figure gives the same text: no date, no random ids.
    """
    import matplotlib.pyplot as plt

    for axis in fig.axes:
        if axis.images:
            axis.grid(False)
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", FONT, svg)
    svg = re.sub(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", _smaller_raster, svg)
    head, close, rest = svg.partition(">")
    return f"{head}{close}\n<style>{dark_rules()}</style>{rest}"


def dark_rules() -> str:
    """CSS that swaps each colour for its dark partner. matplotlib writes colours into style attributes, which
    only an ``!important`` rule overrides."""
    rules = []
    black = ("#000000", INK["text"][1])  # matplotlib's own choice for error bars
    for light, dark in (*INK.values(), *PALETTE.values(), black):
        rules.append(f'[style*="fill: {light}"]{{fill:{dark}!important}}')
        rules.append(f'[style*="stroke: {light}"]{{stroke:{dark}!important}}')
    # Text that matplotlib leaves black carries no colour at all.
    rules.insert(0, f"text{{fill:{INK['text'][1]}}}")
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}"


def _smaller_raster(match: re.Match) -> str:
    """A large opaque PNG as JPEG if that halves it."""
    from PIL import Image

    png = base64.b64decode(match[1])
    if len(png) >= JPEG_FROM_BYTES:
        image = Image.open(io.BytesIO(png))
        if image.mode in ("RGB", "L") or (image.mode == "RGBA" and image.getextrema()[3][0] == 255):
            jpeg = io.BytesIO()
            image.convert("RGB").save(jpeg, "JPEG", quality=85, optimize=True)
            if jpeg.tell() < len(png) / 2:
                return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    return "data:image/png;base64," + base64.b64encode(png).decode()


def figure_html(fig: Figure, title: str, caption: str, alt: str) -> str:
    """``<figure>`` with the drawing as an image, title and caption. What ``tell`` was given is kept beside it, with the
    place of each point, for the page's script."""
    image = figure_image(fig, alt)
    title, caption = shown(title), shown(caption)
    told = _told(fig)
    points = f' data-points="{html.escape(json.dumps(told, ensure_ascii=False), quote=True)}"' if told else ""
    return (
        f'<figure class="figure"{points}><p class="finding">{html.escape(title)}</p>{image}'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def figure_image(fig: Figure, alt: str) -> str:
    """``<img>`` with the SVG inside, so that its rules and ids stay there."""
    svg = figure_svg(fig)
    width = re.search(r'width="([\d.]+)pt"', svg)
    # A point is 4/3 of a CSS pixel. Wide figures shrink with the page.
    size = f' style="width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    source = "data:image/svg+xml," + urllib.parse.quote(svg, safe="/:;,=+ ()<>[]{}*@!$&'|?.-_~\n").replace(
        "\n", " "
    )
    source = source.replace("&", "&amp;").replace("<", "%3C").replace(">", "%3E")
    image = f'<img alt="{html.escape(shown(alt), quote=True)}" src="{source}"{size}>'
    return f'<div class="drawing">{image}</div>'


def renamed(fig: Figure, name: Callable[[str], str]) -> Figure:
    """The figure with every text in it, also of its ticks, and what it tells, as ``name`` says it."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    for axis in fig.axes:
        for ticks in (axis.xaxis, axis.yaxis):
            if isinstance(ticks.get_major_locator(), FixedLocator):
                labels = list(map(str, ticks.get_major_formatter().format_ticks(ticks.get_majorticklocs())))
                if any(name(label) != label for label in labels):
                    ticks.set_ticks(ticks.get_majorticklocs(), list(map(name, labels)))
    for text in fig.findobj(Text):
        if text.get_text() != name(text.get_text()):
            text.set_text(name(text.get_text()))
    vars(fig)["told"] = [(axis, x, y, name(text)) for axis, x, y, text in vars(fig).get("told", [])]
    return fig


def tell(axis: Axes, x: float, y: float, text: str) -> None:
    """Have a page's reader told a text at a point of an axis, in its data's units."""
    vars(axis.figure).setdefault("told", []).append((axis, float(x), float(y), text))


def told_interval(axis: Axes, x: float, y: float, name: str, value: float, low: float, high: float) -> None:
    """``tell`` a value with its interval: "proxy-4: 55.0 (53.1 to 56.2)"."""
    from clipvip_lib.workshop.tables import cell_text, decimals

    if not np.isfinite(value):
        return
    digits = decimals([value, low, high])
    said = [cell_text(float(number), digits) for number in (value, low, high)]
    tell(axis, x, y, shown(f"{name}: {said[0]} ({said[1]} to {said[2]})"))


def _told(fig: Figure) -> list[list]:
    """[[x, y, text], ...] of what was told, in shares of the drawn figure's width and height, from its top left."""
    width, height = fig.bbox.size
    places = [(axis.transData.transform((x, y)), text) for axis, x, y, text in vars(fig).get("told", [])]
    return [[round(x / width, 4), round(1 - y / height, 4), text] for (x, y), text in places]


def film_strip(clips: Sequence[np.ndarray], labels: Sequence[str] | None = None) -> Figure:
    """Clips as rows of frames with a label above each: a matplotlib figure for ``Study.figure``.

    clips: uint8 [N, H, W, 3] each, all frames of one size.
    Raises ClipVipError for frames of another kind, or another number of labels than clips.
    """
    import matplotlib.pyplot as plt

    for clip in clips:
        if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
            raise ClipVipError(
                f"film strip of {clip.dtype} {list(clip.shape)}: expected uint8 frames "
                "[N, H, W, 3]; convert it"
            )
    if not len(clips) or (labels is not None and len(labels) != len(clips)):
        raise ClipVipError(
            f"film strip of {len(clips)} clips and {len(labels or [])} labels: expected one each"
        )
    rows = [_joined(clip, gap=2) for clip in clips]
    height = 0.8  # inches of a row
    width = height * max(row.shape[1] / row.shape[0] for row in rows)
    extra = 0.3 if labels is not None else 0.08
    fig, axes = plt.subplots(len(rows), 1, squeeze=False, figsize=(width + 0.2, len(rows) * (height + extra)))
    for i, (axis, row) in enumerate(zip(axes[:, 0], rows, strict=True)):
        axis.imshow(row)
        axis.set_axis_off()
        axis.set_anchor("W")
        if labels is not None:
            axis.set_title(labels[i], fontsize=9, pad=3)
    return fig


def spotlight(clip: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """A clip that is bright where a map is high and dark where it is low, for ``film_strip``.

    clip: uint8 [N, H, W, 3]; maps: [N, rows, columns], not negative; the highest place of all frames is left as it
    is. Returns uint8 [N, H, W, 3]. Raises ClipVipError if the maps do not divide the frames.
    """
    N, H, W, _ = clip.shape
    if maps.shape[0] != N or H % maps.shape[1] or W % maps.shape[2]:
        raise ClipVipError(
            f"maps {list(maps.shape)} of frames {list(clip.shape)}: expected one per frame, on a grid that divides it"
        )
    light = maps.repeat(H // maps.shape[1], 1).repeat(W // maps.shape[2], 2) / max(float(maps.max()), 1e-9)
    return (clip * (0.15 + 0.85 * light[..., None])).astype(np.uint8)


def interval_rows(
    axis: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    colours: Sequence[str] | None = None,
    markers: Sequence[str] | None = None,
    hollow: Sequence[bool] | None = None,
) -> None:
    """Points with their intervals, one per row from the top down.

    colours: names of PALETTE (default blue); markers: matplotlib's (default circles); hollow: which are drawn
    as outlines. Markers and outlines keep series apart for those who do not see the colours.
    """
    for row, (value, low, high) in enumerate(zip(values, lows, highs, strict=True)):
        colour = PALETTE[colours[row] if colours else "blue"][0]
        axis.errorbar(
            value,
            row,
            xerr=[[max(value - low, 0.0)], [max(high - value, 0.0)]],
            fmt=markers[row] if markers else "o",
            color=colour,
            markerfacecolor=INK["paper"][0] if hollow and hollow[row] else colour,
            markeredgecolor=colour,
            markersize=7,
            capsize=3,
        )
        name = f"{named}, {labels[row]}" if (named := axis.get_title(loc="left")) else labels[row]
        told_interval(axis, value, row, " ".join(name.split()), value, low, high)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(False, axis="y")


def _joined(clip: np.ndarray, gap: int) -> np.ndarray:
    """Frames [N, H, W, 3] side by side as [H, N*W + (N-1)*gap, 3], grey between: fits both settings."""
    between = np.full((clip.shape[1], gap, 3), 128, np.uint8)
    parts = [part for frame in clip for part in (frame, between)][:-1]
    return np.concatenate(parts, axis=1)
