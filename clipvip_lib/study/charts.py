"""The kinds of charts that notebooks draw: each takes computed numbers and returns a figure for ``Study.figure``.

A notebook's cell computes and says what was found; how that is drawn stands here, once for all pages. Colours are names
of ``figures.PALETTE``. Series differ in marker or line too, for those who do not see the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipvip_lib.study.figures import INK, PALETTE, interval_rows, told_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LINES = ("-", "--", "-.", ":")
SERIES = (("blue", "o"), ("orange", "s"), ("green", "D"))  # (colour, marker)
Look = tuple[str, str, bool]  # colour, marker, whether it is drawn as an outline


def who_sees_whom(forms: Mapping[str, np.ndarray], proxy: np.ndarray) -> Figure:
    """Masks of attention side by side: rows are the tokens that look, columns the tokens that they look at.

    forms: bool [S, S] by name; proxy: bool [S, S], the pairs with a proxy, which have a colour of their own.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(forms), figsize=(7.4, 2.9))
    for axis, (form, sees) in zip(axes, forms.items(), strict=True):
        for colour, chosen in (("blue", sees & ~proxy), ("orange", sees & proxy)):
            rows, columns = chosen.nonzero()
            axis.scatter(columns, rows, s=42, marker="s", color=PALETTE[colour][0], linewidths=0)
        axis.set_title(f"{form}: {sees.sum()} pairs", fontsize=10)
        axis.set(aspect="equal", xlim=(-1, len(sees)), ylim=(len(sees), -1), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return fig


def pair_grid(terms: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Which pairs a term of the loss compares: a dot for a positive, a cross for a negative, or words.

    terms: by name an array of "positive", "negative" or any other word [rows, columns].
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(terms), figsize=(7.4, 2.1), sharey=True)
    for axis, (term, roles) in zip(axes, terms.items(), strict=True):
        for (row, column), role in np.ndenumerate(roles):
            if role == "positive":
                axis.scatter(column, row, s=130, marker="o", color=PALETTE["blue"][0])
            elif role == "negative":
                axis.scatter(column, row, s=60, marker="x", color=PALETTE["orange"][0])
            else:
                axis.text(column, row, role, ha="center", va="center", fontsize=8)
        axis.set(title=term, xlim=(-0.6, len(columns) - 0.4), ylim=(len(rows) - 0.4, -0.6))
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.grid(False)
    return fig


def interval_panels(
    panels: Mapping[str, pd.DataFrame],
    label: str,
    value: str,
    looks: Mapping[str, Look],
    xlabel: str,
    *,
    at: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Points with their intervals, a panel for each frame and the same rows in all.

    panels: by title a frame with the columns ``label``, ``value``, "low" and "high". looks: by label, in the order of
        the rows.
    at: where a line stands, such as chance. limits: of the axis of values.
    """
    import matplotlib.pyplot as plt

    there = {name for frame in panels.values() for name in frame[label]}
    labels = [name for name in looks if name in there]
    colours, markers, hollow = zip(*(looks[name] for name in labels), strict=True)
    size = (7.4, max(2.4, 0.5 + 0.42 * len(labels)))
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (title, frame) in zip(axes[0], panels.items(), strict=True):
        axis.set_title(title)
        found = frame.set_index(label).reindex(labels)  # where a panel lacks a row, nothing is drawn
        values, lows, highs = found[value], found["low"], found["high"]
        interval_rows(axis, labels, values, lows, highs, colours=colours, markers=markers, hollow=hollow)
        if at is not None:
            axis.axvline(at, color=INK["muted"][0], linewidth=1)
        axis.set(xlabel=xlabel, xlim=limits)
    return fig


def interval_series(
    panels: Mapping[str, Mapping[str, pd.DataFrame]],
    label: str,
    value: str,
    xlabel: str,
    limits: tuple[float, float],
) -> Figure:
    """Points with their intervals, in each row one of every series (at most three), with one legend.

    panels: by title, then by series, a frame with the columns ``label``, ``value``, "low" and "high", in one order.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(panels), figsize=(7.6, 3.2), sharex=True, sharey=True)
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        offsets = 0.26 * (np.arange(len(series)) - (len(series) - 1) / 2)
        for (name, frame), offset, (colour, marker) in zip(series.items(), offsets, SERIES, strict=False):
            axis.errorbar(
                frame[value],
                np.arange(len(frame)) + offset,
                xerr=[frame[value] - frame["low"], frame["high"] - frame[value]],
                color=PALETTE[colour][0],
                fmt=marker,
                capsize=3,
                label=name if axis is axes[0] else None,
            )
            for place, (_, row) in enumerate(frame.iterrows()):
                said = f"{title}, {row[label]}, {name}"
                told_interval(axis, row[value], place + offset, said, row[value], row["low"], row["high"])
        labels = list(next(iter(series.values()))[label])
        axis.set(title=title, xlabel=xlabel, xlim=limits, ylim=(len(labels) - 0.4, -0.6))
        axis.set_yticks(range(len(labels)), labels)
        axis.grid(False, axis="y")
    fig.legend(loc="outside lower center", ncols=len(offsets))
    return fig


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    *,
    marker: str | None = None,
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Lines with a legend. series: by name (x, y). marker: at every point of them. points: series drawn as circles,
    without a line. ticks: of x."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.4, 3.6))
    for i, (name, (x, y)) in enumerate(series.items()):
        axis.plot(x, y, LINES[i % len(LINES)], marker=marker, label=name)
    for name, (x, y) in (points or {}).items():
        axis.plot(x, y, "o", color=PALETTE["orange"][0], markerfacecolor="none", markersize=9, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if ticks is not None:
        axis.set_xticks(ticks)
    axis.legend(ncols=2)
    return fig


def curves_over_baseline(
    series: Mapping[str, pd.DataFrame],
    x: str,
    y: str,
    baseline: tuple[str, float, float, float],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Lines with error bars (at most three), and a dashed line with a band for what they are compared with.

    series: by name a frame with the columns ``x``, ``y``, "low" and "high"; baseline: its name, value, low and high.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    name, value, low, high = baseline
    axis.axhspan(low, high, color=PALETTE["grey"][0], alpha=0.18, linewidth=0)
    axis.axhline(value, color=PALETTE["grey"][0], linestyle="--", label=name)
    ticks = sorted({step for frame in series.values() for step in frame[x]})
    for place, ((name, frame), (colour, marker)) in enumerate(zip(series.items(), SERIES, strict=False)):
        at = (
            frame[x] + (place - 1) * 0.012 * ticks[-1]
        )  # a little apart, so that bars do not cover each other
        axis.errorbar(
            at,
            frame[y],
            yerr=[frame[y] - frame["low"], frame["high"] - frame[y]],
            color=PALETTE[colour][0],
            marker=marker,
            linestyle=("-", "-.", ":")[place],
            capsize=3,
            label=name,
        )
        for along, (_, row) in zip(at, frame.iterrows(), strict=True):
            said = f"{name}, {xlabel} {row[x]:,.6g}"
            told_interval(axis, along, row[y], said, row[y], row["low"], row["high"])
    axis.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, None))
    axis.set_xticks([0, *ticks])
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def growth(
    frame: pd.DataFrame,
    panels: Mapping[str, str],
    looks: Mapping[str, tuple[str, str]],
    slopes: Mapping[str, Mapping[str, float]],
) -> Figure:
    """How quantities grow with the number of frames, on logarithmic axes, a panel for each quantity.

    frame: columns "arm", "frames" and one for each of ``panels`` (column: title). looks: (matplotlib's format, colour)
    by arm. slopes: exponents by arm and column, shown in the legend.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    fig, axes = plt.subplots(1, len(panels), figsize=(7.4, 3.4), squeeze=False)
    for axis, (column, title) in zip(axes[0], panels.items(), strict=True):
        for arm, part in frame.groupby("arm", sort=False):
            style, colour = looks[arm]
            label = f"{arm}: frames^{slopes[arm][column]:.2f}"
            axis.loglog(part["frames"], part[column], style, color=PALETTE[colour][0], label=label)
        axis.set(xlabel="frames", title=title)
        axis.set_xticks(sorted(frame["frames"].unique()), sorted(frame["frames"].unique()))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:,.6g}")
        axis.minorticks_off()
        axis.legend(fontsize=8)
    return fig


def clouds(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Clouds of points in the plane, two a panel and two panels a row, with one legend.

    panels: by title, then by name, points [n, 2]. The legend has the names of the first panel.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(-(-len(panels) // 2), 2, figsize=(7.4, 6.4), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, drawn) in zip(axes.flat, panels.items(), strict=False):
        for (name, points), colour, marker in zip(drawn.items(), ("blue", "orange"), "o^", strict=True):
            look = {"s": 13, "marker": marker, "color": PALETTE[colour][0], "alpha": 0.7, "linewidths": 0}
            axis.scatter(*points.T, label=name, **look)
        axis.set(title=title, xticks=[], yticks=[])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def captioned_frames(frames: Sequence[np.ndarray], words: Sequence[Mapping[str, str]]) -> Figure:
    """Pictures one below the other, and beside each what is said of it.

    frames: uint8 [H, W, 3] each; words: for each frame what is said, by who says it (three at most).
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(frames), 1, squeeze=False, figsize=(7.4, 1.35 * len(frames)))
    for axis, frame, said in zip(axes[:, 0], frames, words, strict=True):
        axis.imshow(frame)
        axis.set_axis_off()
        axis.set_anchor("W")
        for place, (who, what) in zip((0.8, 0.5, 0.2), said.items(), strict=False):
            axis.text(1.1, place, who, transform=axis.transAxes, va="center", color=INK["muted"][0])
            axis.text(1.75, place, what, transform=axis.transAxes, va="center")
    return fig
