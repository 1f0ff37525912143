"""The answer first: what the reference run found, in a sentence, a line for each claim, and one figure.

The index of the pages opens with it, README shows it (``make answer`` writes both), and notebook 08 draws the same
figure from a run of its own. All text is made from verdicts.json; a test compares the places.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clipvip_lib import paper
from clipvip_lib.statistics import claims
from clipvip_lib.statistics import verdicts as rule
from clipvip_lib.study import figures, reference, robustness
from clipvip_lib.study.evidence import effect_text, signed
from clipvip_lib.study.words import miniatures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "answer.svg"
BLOCK = re.compile(r"<!--answer-->.*?<!--/answer-->", re.DOTALL)
SUMS = {  # what a claim comes to, in the order in which it is told: said of one, and of several
    "holds": ("holds", "hold"),
    "holds in part": ("holds in part", "hold in part"),
    "does not hold": ("does not hold", "do not hold"),
    rule.OPEN: ("is open", "are open"),
    rule.NOT_JUDGED: ("is not judged", "are not judged"),
    rule.IN_FULL: ("is not run in full", "are not run in full"),
    rule.NOT_RUN: ("is not run", "are not run"),
}
LOOKS = {  # colour, marker, hollow
    rule.REPRODUCED: ("blue", "o", False),
    rule.CONTRADICTED: ("orange", "X", False),
    rule.NO_DIFFERENCE: ("green", "s", True),
    rule.OPEN: ("grey", "D", True),
    rule.NOT_JUDGED: ("grey", ".", False),
    rule.NOT_RUN: ("grey", "|", True),
}

OPPOSITE = {rule.REPRODUCED, rule.CONTRADICTED}
FONT = 9.5  # of the figure's words, in points: a phone shows it at half its width
# Of the table at the figure's right, in widths of the plot: verdict, the paper's number, then a mark per machine
VERDICT_AT, PAPER_AT, MACHINES_AT, MACHINE_WIDTH = 1.04, 1.38, 1.58, 0.22


def sentence(found: Mapping) -> str:
    """What verdicts.json says, in short: how the claims came out, how many statements are decided, on what basis."""
    rows = found["statements"]
    decided = sum(row["verdict"] in rule.DECIDED for row in rows)
    words = [rule.kind(word) for _, word, _ in by_claim(found)]
    counts = [f"{count} {SUMS[word][count > 1]}" for word in SUMS if (count := words.count(word))]
    counts = [f"{each}{_refuted(rows)}" if "in part" in each else each for each in counts]
    return (
        f"In the reference run, of the paper's {len(words)} claims {_listed(counts)}; {decided} of their {len(rows)} "
        f"statements are decided ({reference.basis(found).rstrip('.')}). Where a "
        "statement has several contrasts, its number is the effect of the least favourable one, or one for each "
        "benchmark where their verdicts differ; plus supports the statement, minus contradicts it."
        f"{_twice(rows)}{_together(rows)}"
    )


def _refuted(rows: Sequence[Mapping]) -> str:
    """Of claims that hold in part, those with statements that are contradicted."""
    told = []
    for claim in claims.CLAIMS:
        own = [row["verdict"] for row in rows if row["claim"] == claim.id]
        if rule.kind(rule.sum_up(claim, rows)) == "holds in part" and rule.CONTRADICTED in own:
            told.append(
                f"claim {claim.id} with {own.count(rule.CONTRADICTED)} of its {len(own)} statements contradicted"
            )
    return f" ({_listed(told)})" if told else ""


def _twice(rows: Sequence[Mapping]) -> str:
    """Statements of several claims that rest on the same contrasts under other names: their numbers are the same."""
    by_numbers: dict[str, list[Mapping]] = {}
    for row in rows:
        if any(each["by_seed"] for each in row["contrasts"]):
            by_numbers.setdefault(repr([each["by_seed"] for each in row["contrasts"]]), []).append(row)
    same = [group for group in by_numbers.values() if len({row["claim"] for row in group}) > 1]
    return "".join(
        f" {_listed([row['id'] for row in group])} are one result, asked by two claims." for group in same
    )


def _together(rows: Sequence[Mapping]) -> str:
    """What claim 1 does not show by itself."""
    came = {row["id"]: row["verdict"] for row in rows}
    if rule.REPRODUCED not in (came.get("1a"), came.get("1b")) or came.get("3a") != rule.CONTRADICTED:
        return ""
    return (
        " Read claim 1 with 3a: the largest corpus, too, ends below no post-pretraining, so the fall of the small "
        "ones is not over-fitting alone."
    )


def how_judged() -> str:
    """The rule of verdicts.py in short."""
    margin = claims.MARGIN
    return (
        "A statement is reproduced if the intervals of all its contrasts lie above zero, contradicted if one lies "
        f"below, and no difference if all lie within {margin[claims.RECALL]:g} point ({margin[claims.NMI]:g} NMI) of "
        "zero; otherwise it is open. Intervals are of 95 % (98.3 % where there are six contrasts). Statement 9b, that "
        "the other losses lie within a point of the best, is reproduced if all intervals do, and contradicted if one "
        "lies outside. NMI says how well two kinds of texts can be told apart, from 0 to 1."
    )


def to_decide(rows: Sequence[Mapping]) -> str:
    """What would decide the statements that are open; "" if none is."""
    told = [
        f"{row['id']} {row['to_decide']}"
        for row in rows
        if row["verdict"] == rule.OPEN and "to_decide" in row
    ]
    if not told:
        return ""
    return f"What would decide the open ones, if effects and spreads are as measured: {'; '.join(told)}."


def by_claim(found: Mapping) -> list[tuple[claims.Claim, str, str]]:
    """Each claim with what it comes to and its sentence with the effects of its statements; those that hold first."""
    rows = found["statements"]
    told = [(claim, rule.sum_up(claim, rows), _said(claim, rows)) for claim in claims.CLAIMS]
    return sorted(told, key=lambda line: list(SUMS).index(rule.kind(line[1])))


def _said(claim: claims.Claim, rows: Sequence[Mapping]) -> str:
    """A claim with the effects of its statements: "Video proxies beat full attention (points: 6 +1.1)"."""
    known = [row for row in rows if row["claim"] == claim.id and row["effect"] is not None]
    level = {statement.id for statement in claim.statements if statement.level}
    effects = [f"{row['id']} {_effect(row, row['id'] in level)}" for row in known]
    unit = "NMI" if claim.statements[0].metric == claims.NMI else "points"
    return (
        f"{claim.sentence.rstrip('.')} ({unit}: {', '.join(effects)})"
        if effects
        else claim.sentence.rstrip(".")
    )


def _effect(row: Mapping, level: bool) -> str:
    """An effect without its unit, or one for each benchmark if their verdicts differ: "+0.3 on msrvtt and +5.8 on
    didemo"; of a statement that things are level, how far off the farthest is."""
    effect = effect_text(row)[0].removesuffix(" pt")
    if level:
        return f"off by {effect.lstrip('+−')}"
    contrasts = {contrast["name"].rpartition(", ")[2]: contrast for contrast in row["contrasts"]}
    verdicts = {contrast["verdict"] for contrast in row["contrasts"]}
    if len(row["contrasts"]) != 2 or contrasts.keys() != {*claims.BENCHMARKS} or len(verdicts) == 1:
        return effect
    return " and ".join(
        f"{effect_text(row | contrast)[0].removesuffix(' pt')} on {miniatures(benchmark)}"
        for benchmark, contrast in contrasts.items()
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def figure(rows: Sequence[Mapping], metric: str = claims.RECALL, machines: Mapping = {}) -> Figure:
    """Every statement with the effect and the interval of the contrast on which its verdict hangs.

    rows: of claims.json; metric: that of retrieval; machines: {title: rows} of the same statements elsewhere, shown
    as a strip of marks at the right. The paper's own number stands beside where it is verified.
    """
    import matplotlib.pyplot as plt

    figures.use_style()
    groups = {
        unit: [row for row in rows if (row["metric"] == claims.NMI) == (unit == claims.NMI)]
        for unit in (metric, claims.NMI)
    }
    groups = {unit: group for unit, group in groups.items() if group}
    heights = [len(group) for group in groups.values()]
    height = 0.36 * sum(heights) + 0.7 * len(groups) + 0.2
    fig, axes = plt.subplots(
        len(groups), 1, figsize=(9.6, height), height_ratios=heights, squeeze=False, layout="none"
    )
    # by hand: matplotlib's own layouts do not count what is written beside the axes
    fig.subplots_adjust(
        left=0.40,
        right=0.70,
        top=1 - 0.35 / height,
        bottom=0.5 / height,
        hspace=1.6 / height,
    )
    for axis, (unit, group) in zip(axes[:, 0], groups.items(), strict=True):
        looks = [LOOKS[row["verdict"]] for row in group]
        figures.interval_rows(
            axis,
            [textwrap.fill(f"{row['id']}  {row['statement'].rstrip('.')}", 46) for row in group],
            *(
                [math.nan if row[end] is None else row[end] for row in group]
                for end in ("effect", "low", "high")
            ),
            colours=[colour for colour, _, _ in looks],
            markers=[marker for _, marker, _ in looks],
            hollow=[hollow for _, _, hollow in looks],
        )
        margin = claims.MARGIN[unit]
        axis.axvspan(-margin, margin, color=figures.INK["grid"][0], alpha=0.5, linewidth=0)
        axis.axvline(0, color=figures.INK["muted"][0], linewidth=1)
        axis.tick_params(axis="y", labelsize=FONT)
        axis.set_xlabel("difference of NMI" if unit == claims.NMI else f"points of {unit}", fontsize=FONT)
        for place, row in enumerate(group):
            effects = [contrast["effect"] for contrast in row["contrasts"]]
            axis.plot(
                effects, [place] * len(effects), "|", color=figures.INK["muted"][0], markersize=6, zorder=1
            )
            _beside(axis, place, row, paper.effect(row["contrasts"], unit), machines)
    heads = {"verdict": VERDICT_AT, "paper": PAPER_AT}
    heads |= {title: MACHINES_AT + MACHINE_WIDTH * place for place, title in enumerate(machines)}
    for head, x in heads.items():
        _write(axes[0, 0], x, -1.1, head)
    return fig


def _beside(axis: Axes, place: int, row: Mapping, published: float | None, machines: Mapping) -> None:
    """What stands at the right of a row: its verdict, the paper's number, the marks of other machines."""
    _write(axis, VERDICT_AT, place, row["verdict"])
    _write(axis, PAPER_AT, place, "–" if published is None else signed(published, 1))
    for column, others in enumerate(machines.values()):
        x = MACHINES_AT + MACHINE_WIDTH * column
        for other in (other for other in others if other["id"] == row["id"]):
            colour, marker, hollow = LOOKS[other["verdict"]]
            light = figures.PALETTE[colour][0]
            axis.plot(
                [x + 0.02], [place], marker, color=light, markersize=6, clip_on=False,
                markerfacecolor=figures.INK["paper"][0] if hollow else light,
                transform=axis.get_yaxis_transform(),
            )  # fmt: skip


def _write(axis: Axes, x: float, place: float, text: str) -> None:
    axis.annotate(
        text,
        (x, place),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=FONT,
        annotation_clip=False,
    )


def alt(rows: Sequence[Mapping]) -> str:
    """The figure in words."""
    return "; ".join(
        f"{row['id']} {row['verdict']}"
        + (f", {' from '.join(effect_text(row))}" if row["effect"] is not None else "")
        for row in rows
    )


def caption(found: Mapping) -> str:
    """What the figure shows, under it."""
    counts = {title: max(len(row["seeds"]) for row in rows) for title, rows in found["machines"].items()}
    basis = reference.basis(found)
    elsewhere = "".join(
        f" {title[0].upper()}{title[1:]}: the same study with {counts[title]} seeds; "
        f"{_otherwise(found['statements'], rows)}."
        f"{_apart(found.get('apart', {}).get(title, []))}"
        for title, rows in found["machines"].items()
    )
    return (
        "For each statement the contrast on which its verdict hangs, with its interval; ticks are all its contrasts. "
        "The band is the margin within which a difference does not matter. Filled circle: reproduced; cross: "
        "contradicted; hollow square: no difference; "
        "hollow diamond: open. Paper: its own number, – where it is not verified. V video, S subtitle, F middle frame, "
        f"C caption; DSL: dual softmax. {basis[0].upper()}{basis[1:]}{elsewhere}"
    )


def _otherwise(rows: Sequence[Mapping], others: Sequence[Mapping]) -> str:
    """The verdicts that differ elsewhere: "there 2a, 6 are open"."""
    here = {row["id"]: row["verdict"] for row in rows}
    told: dict[str, list[str]] = {}
    for row in others:
        if row["verdict"] not in (here.get(row["id"]), rule.NOT_RUN):
            told.setdefault(row["verdict"], []).append(row["id"])
    words = [f"{', '.join(ids)} {'is' if len(ids) == 1 else 'are'} {word}" for word, ids in told.items()]
    if not words:
        return "all verdicts are the same"
    reversed_ = any({here.get(row["id"]), row["verdict"]} == OPPOSITE for row in others)
    return f"there {_listed(words)}{'' if reversed_ else '; no verdict is reversed'}"


def _apart(rows: Sequence[Mapping]) -> str:
    """How far the effects of seeds that both have are apart; "" if they have none."""
    if not rows:
        return ""
    level = sum(row["low"] <= 0 <= row["high"] for row in rows)
    mean = sum(abs(row["effect"]) for row in rows) / len(rows)
    reach = sum(row["high"] - row["low"] for row in rows) / 2 / len(rows)
    return (
        f" Effects of the seeds that both have differ by {mean:.1f} points on average; of {len(rows)} differences "
        f"{level} have a 95 % interval that includes zero (chance alone leaves it out once in twenty). They "
        f"reach {reach:.1f} points to either side on average, so a smaller shift would not be seen."
    )


def lead(found: Mapping | None) -> str:
    """The answer as HTML, for the index; "" without a reference."""
    if not found:
        return ""
    rows = found["statements"]
    drawn = figures.renamed(figure(rows, found["metric"], found["machines"]), miniatures)
    shown = figures.figure_html(
        drawn, "What the paper states, and what was found", miniatures(caption(found)), miniatures(alt(rows))
    )
    first = html.escape(sentence(found))
    if found["metric"] != claims.RECALL:
        first += " The pages below count the average of R@1, R@5 and R@10: their numbers do not compare with these."
    first += " How the reference came about is told in the project's reports/README.md."
    answer = (
        f'<section class="answer"><h2>The answer</h2><p>{first}</p>{claims_html(found)}'
        f"<p>{html.escape(how_judged())} {html.escape(to_decide(rows))}</p>{shown}</section>"
    )
    return answer + robustness.lead(found)


def claims_html(found: Mapping) -> str:
    """What each claim comes to: its sentence with effects, and the verdict."""
    lines = (
        f"<li>{html.escape(said)} {verdict_html(f'claim {claim.id}', word)}</li>"
        for claim, word, said in by_claim(found)
    )
    return f'<ul class="verdicts">{"".join(lines)}</ul>'


def verdict_html(what: str, word: str) -> str:
    """A verdict with its colour and shape: "claim 6 holds"."""
    kind = html.escape(rule.kind(word), quote=True)
    return f'<span data-verdict="{kind}">{html.escape(f"{what} {word}")}</span>'


def readme(text: str, found: Mapping) -> str:
    """README with the answer written into its block."""
    lines = [f"* Claim {claim.id} **{word}**: {said}." for claim, word, said in by_claim(found)]
    picture = f"![{alt(found['statements'])}](reports/reference/{FIGURE})"
    parts = [
        sentence(found),
        "\n".join(lines),
        picture,
        f"{how_judged()} {to_decide(found['statements'])}".rstrip(),
    ]
    block = "\n".join(["<!--answer-->", "\n\n".join(parts), "<!--/answer-->"])
    return BLOCK.sub(lambda _: block, text)
