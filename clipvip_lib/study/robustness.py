"""How far the reference's answers reach: its headline contrasts under other conditions, as figures and sentences.

The index shows them under the answer, from the rows that verdicts.json holds (conditions.py makes them).
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipvip_lib.statistics import claims
from clipvip_lib.study import figures
from clipvip_lib.study.conditions import HEADLINES, POST, RIVAL, TUNING, WORLD
from clipvip_lib.study.evidence import signed
from clipvip_lib.study.words import miniatures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AS_IT_IS = "as in the study"
LOOKS = (
    ("blue", "o"),
    ("orange", "s"),
    ("green", "D"),
    ("purple", "^"),
    ("ochre", "v"),
)  # of the headline statements
SIDES = {
    1: "still shown:",
    0: "not shown:",
    -1: "turned round:",
}  # of an effect that the reference shows
SHOWN = (
    "The headline contrasts were trained again under other conditions. An effect is shown if its interval leaves zero "
    "out; with three or five seeds, one that is not shown may be there all the same."
)
Rows = Sequence[Mapping]


def lead(found: Mapping) -> str:
    """The part of the index below the answer; "" if nothing was run under another condition."""
    rows, base = found.get("conditions", []), found.get("headlines", [])
    if not rows:
        return ""
    shown = ""
    parts = (
        ((TUNING, POST), doses, by_dose, "1: the reference"),
        ((WORLD, RIVAL), elsewhere, by_world, "grey: the reference"),
    )
    for kinds, draw, title, which in parts:
        if some := [row for row in rows if row["kind"] in kinds]:
            drawn = figures.renamed(draw(some, base), miniatures)
            words = [miniatures(text) for text in (title(some, base), caption(some, base, which), alt(some))]
            shown += figures.figure_html(drawn, *words)
    each = _bullets(sentences(rows, base))
    return (
        f'<section class="answer"><h2>How far the answer reaches</h2><p>{SHOWN}</p>'
        f"{_bullets(by_statement(rows, base))}{shown}"
        f"<details><summary>Condition by condition</summary>{each}</details></section>"
    )


def on_page(found: Mapping, statements: Rows) -> str:
    """For a page: how its own headline statements fare under the conditions, and what each rival explanation changes
    of them; "" if it has none, or nothing was run."""
    ids = {row["id"] for row in statements} & {statement.id for statement in HEADLINES}
    rows, base = (
        [row for row in found.get(kind, []) if row["statement"] in ids]
        for kind in ("conditions", "headlines")
    )
    if not rows:
        return ""
    said = [*by_statement(rows, base), *sentences([row for row in rows if row["kind"] == RIVAL], base)]
    return f'<section class="text"><h3>Under other conditions</h3><p>{SHOWN}</p>{_bullets(said)}</section>'


def _bullets(said: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(miniatures(each))}</li>' for each in said)}</ul>"


def by_statement(rows: Rows, base: Rows) -> list[str]:
    """For each headline statement, on each benchmark: under how many conditions it has the reference's sign, and
    under how many the interval shows that, or the opposite; where the reference shows nothing, on which side of zero
    the intervals are that show something."""
    found = []
    for statement in HEADLINES:
        parts = []
        for known in (row for row in base if row["statement"] == statement.id):
            own = [row for row in rows if row["contrast"] == known["contrast"]]
            where = f"on {known['contrast'].rpartition(', ')[2]} (reference {signed(known['effect'], 1)}"
            if _side(known):
                same, shown, turned = _agreement(own, known)
                against = f", the opposite under {_counted(turned)}" if turned else ""
                parts.append(
                    f"{where}) the same sign under {same} of {len(own)} conditions, shown under {shown}{against}"
                )
            else:
                above, below = ([_named(row) for row in own if _side(row) == side] for side in (1, -1))
                parts.append(
                    f"{where}, not shown) shown above zero under {_counted(above)}, below under {_counted(below)} of "
                    f"{len(own)} conditions"
                )
        if parts:
            found.append(f"{statement.id} {statement.sentence.rstrip('.')}: {'; '.join(parts)}.")
    return found


def _counted(conditions: Sequence[str]) -> str:
    return f"{len(conditions)} ({', '.join(conditions)})" if conditions else "none"


def _named(row: Mapping) -> str:
    return row["condition"].replace("-", " ")


def _agreement(own: Rows, known: Mapping) -> tuple[int, int, list[str]]:
    """Of a contrast under conditions: how many effects have the reference's sign, how many intervals show it, and
    the conditions whose interval shows the other sign."""
    side = _side(known)
    return (
        sum(row["effect"] * side > 0 for row in own),
        sum(_side(row) == side for row in own),
        [_named(row) for row in own if _side(row) == -side],
    )


def by_dose(rows: Rows, base: Rows) -> str:
    """What the amount of training changes: for each of its kinds the headline contrast that moves most, of those whose
    effects at the least and the largest amount are further apart than their intervals explain."""
    found = []
    for kind in (TUNING, POST):
        points = [row for row in rows if row["kind"] == kind] + [row | {"dose": 1.0} for row in base]
        moved = []
        for statement in HEADLINES:
            name = statement.contrasts[0].name
            amounts = {row["dose"]: row for row in points if row["contrast"] == name}
            least, most = (amounts[end] for end in (min(amounts), max(amounts)))
            distance = abs(most["effect"] - least["effect"])
            reach = math.hypot(*((row["high"] - row["low"]) / 2 for row in (least, most)))
            moved.append((distance > reach, distance, statement.id, least, most))
        clear, distance, name, least, most = max(moved, key=lambda each: each[:2])
        if least["dose"] == most["dose"]:
            continue
        amount = f"{kind} from {least['dose']:.2g} to {most['dose']:.2g} times the study's"
        found.append(
            f"{amount} moves {name} most, from {signed(least['effect'], 1)} to {signed(most['effect'], 1)} points"
            if clear
            else f"{amount} moves no contrast by more than chance does"
        )
    return _capital("; ".join(found))


def by_world(rows: Rows, base: Rows) -> str:
    """How many effects in other worlds and under rival explanations have the reference's sign."""
    found = [
        (len(own), *_agreement(own, known))
        for known in base
        if _side(known) and (own := [row for row in rows if row["contrast"] == known["contrast"]])
    ]
    count, same, shown = (sum(each[i] for each in found) for i in range(3))
    turned = sum(len(each[3]) for each in found)
    return (
        f"Of the effects that the reference shows, {same} of {count} keep their sign in other worlds and where a rival "
        f"explanation is true; it is shown for {shown}, and the opposite for {turned or 'none'}"
    )


def sentences(rows: Rows, base: Rows) -> list[str]:
    """For each condition which of the headline contrasts that the reference shows it shows too."""
    sides = {row["contrast"]: _side(row) for row in base}
    found = []
    for name in dict.fromkeys(row["condition"] for row in rows):
        own = [row for row in rows if row["condition"] == name and sides.get(row["contrast"])]
        groups: dict[str, list[str]] = {word: [] for word in SIDES.values()}
        for row in own:
            groups[SIDES[_side(row) * sides[row["contrast"]]]].append(
                f"{_short(row)} {signed(row['effect'], 1)}"
            )
        first = next(row for row in rows if row["condition"] == name)
        parts = [f"{word} {', '.join(those)}" for word, those in groups.items() if those]
        what = f"{first['kind']}, {first['what']}" if first["kind"] in (TUNING, POST) else first["what"]
        told = "; ".join(parts) or "the reference shows none of the contrasts"
        found.append(f"{_capital(what)} ({first['seeds']} seeds). {_capital(told)}.")
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(row: Mapping) -> str:
    """The statement, and the benchmark if it is about both: "10a on didemo"."""
    both = len(claims.statement(row["statement"]).contrasts) > 1
    return row["statement"] + (f" on {row['contrast'].rpartition(', ')[2]}" if both else "")


def _title(statement: claims.Statement, width: int = 24) -> str:
    return textwrap.fill(miniatures(f"{statement.id}  {statement.sentence.rstrip('.')}"), width)


def _side(row: Mapping) -> int:
    return int(row["low"] > 0) - int(row["high"] < 0)


def doses(rows: Rows, base: Rows) -> Figure:
    """Effects against the amount of fine-tuning and of post-pretraining, a line for each headline statement (on the
    benchmark that comes first); 1 is the study's amount."""
    import matplotlib.pyplot as plt

    figures.use_style()
    kinds = [kind for kind in (TUNING, POST) if any(row["kind"] == kind for row in rows)]
    fig, axes = plt.subplots(1, len(kinds), figsize=(4.6 * len(kinds), 3.8), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        points = [row for row in rows if row["kind"] == kind] + [row | {"dose": 1.0} for row in base]
        amounts = sorted({row["dose"] for row in points})
        offsets = np.linspace(-0.12, 0.12, len(HEADLINES))
        for statement, (colour, marker), offset in zip(HEADLINES, LOOKS, offsets, strict=True):
            own = {row["dose"]: row for row in points if row["contrast"] == statement.contrasts[0].name}
            if not own:
                continue
            at = [amount for amount in amounts if amount in own]
            values = np.array([[own[amount][end] for amount in at] for end in ("effect", "low", "high")])
            axis.errorbar(
                [amounts.index(amount) + offset for amount in at],
                values[0],
                yerr=[values[0] - values[1], values[2] - values[0]],
                color=figures.PALETTE[colour][0],
                marker=marker,
                capsize=3,
                label=_title(statement, 60),
            )
        axis.axhline(0, color=figures.INK["muted"][0], linewidth=1)
        axis.set_xticks(range(len(amounts)), [f"{amount:.2g}" for amount in amounts])
        axis.set_xlabel(f"{kind} (1: the study's)")
    axes[0, 0].set_ylabel(f"points of {rows[0]['metric']}")
    lines = axes[0, 0].get_legend_handles_labels()
    fig.legend(*lines, fontsize=8, loc="outside lower left", ncols=len(kinds))
    return fig


def elsewhere(rows: Rows, base: Rows) -> Figure:
    """Effects under each condition, a panel for each headline statement; the first row is the reference."""
    import matplotlib.pyplot as plt

    figures.use_style()
    names = [AS_IT_IS, *dict.fromkeys(row["condition"] for row in rows)]
    looks = {AS_IT_IS: ("grey", "o", False)}
    looks |= {
        row["condition"]: ("blue", "o", False) if row["kind"] == WORLD else ("orange", "s", False)
        for row in rows
    }
    everything = [*[row | {"condition": AS_IT_IS} for row in base], *rows]
    fig, axes = plt.subplots(
        1, len(HEADLINES), figsize=(9.6, 0.9 + 0.34 * len(names)), sharey=True, squeeze=False
    )
    for axis, statement in zip(axes[0], HEADLINES, strict=True):
        own = {r["condition"]: r for r in everything if r["contrast"] == statement.contrasts[0].name}
        values = [
            [own[name][end] if name in own else np.nan for name in names] for end in ("effect", "low", "high")
        ]
        figures.interval_rows(
            axis, [name.replace("-", " ") for name in names], *values,
            colours=[looks[name][0] for name in names], markers=[looks[name][1] for name in names],
        )  # fmt: skip
        axis.axvline(0, color=figures.INK["muted"][0], linewidth=1)
        axis.set_title(_title(statement), fontsize=8)
    fig.supxlabel(f"points of {rows[0]['metric']} on {claims.BENCHMARKS[0]}", fontsize=9)
    return fig


def caption(rows: Rows, base: Rows, which: str) -> str:
    """What such a figure shows. which: how the reference looks in it."""
    seeds, first = sorted({row["seeds"] for row in rows}), claims.BENCHMARKS[0]
    drawn = {statement.contrasts[0].name: statement.id for statement in HEADLINES}
    unclear = [drawn[row["contrast"]] for row in base if row["contrast"] in drawn and not _side(row)]
    left_out = f" The reference itself does not show {', '.join(unclear)} on {first}." if unclear else ""
    return (
        f"Effects on {first} with 95 % intervals, {' or '.join(map(str, seeds))} seeds; {which}.{left_out} No "
        "statement is judged on these."
    )


def alt(rows: Rows) -> str:
    """The figure in words."""
    return "; ".join(
        f"{row['condition']}, {row['contrast']}: {signed(row['effect'], 1)} from {signed(row['low'], 1)} to "
        f"{signed(row['high'], 1)}"
        for row in rows
    )
