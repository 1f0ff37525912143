"""A run's verdicts beside those of the reference run, which is committed in ``reports/reference``.

They are compared when pages are published, not when notebooks run, so a new reference never makes a page run again.
The reference itself is compared with what other seeds, and its own seeds on a GPU, say about its claims;
``more_seeds.py`` writes that.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipvip_lib import files
from clipvip_lib.profiles import PROFILES
from clipvip_lib.statistics.claims import VERDICTS

if TYPE_CHECKING:
    import pandas as pd

FOLDER = files.CHECKOUT / "reports" / "reference"
CLAIMS = "results/claims.json"
THE_REFERENCE = "the reference run"
OTHER_SEEDS, ON_GPU = "more-seeds.json", "on-gpu.json"
OTHERS = {OTHER_SEEDS: "other seeds", ON_GPU: "the same seeds on a GPU"}
IN_SHORT = {
    THE_REFERENCE: "reference",
    "other seeds": "other",
    "the same seeds on a GPU": "on a GPU",
}  # in headings
ONE_OPEN = "one open"


def read(folder: Path = FOLDER) -> dict | None:
    """The reference run: {"profile", "claims": {id: row of claims.json}}; None if there is none."""
    if not (folder / CLAIMS).is_file():
        return None
    rows = files.read_json(folder / CLAIMS)
    profile = files.read_json(folder / "results" / "run.json")["profile"]
    return {"profile": profile, "claims": {row["id"]: row for row in rows}}


def others(folder: Path = FOLDER) -> dict[str, dict]:
    """What the reference itself is compared with: title -> verdicts in the form of ``read``. For other seeds also the
    verdicts of these and the reference's seeds "together", with the numbers of seeds after which somebody "looks".

    Leaves out what ``make more-seeds`` has not written.
    """
    found = {}
    for file, title in OTHERS.items():
        if (folder / file).is_file():
            stored = files.read_json(folder / file)
            by_claim = {
                name: {row["id"]: row for row in stored.get(name, [])} for name in ("claims", "together")
            }
            found[title] = {"profile": stored["from"]["profile"], "looks": stored.get("looks", [])} | by_claim
            found[title]["made"] = made_on(stored)
    return found


def made_on(stored: dict) -> str:
    """Where and with what a file of ``others`` was made, as a sentence."""
    origin = stored["from"]
    versions = ", ".join(f"{name} {origin['versions'][name]}" for name in ("torch", "transformers"))
    where = ", ".join([*stored.get("gpus", ()), origin["machine"]])
    return f"Made on {where}; {versions}; commit {origin['commit']}."


def compared_with(out: Path, reference: Path = FOLDER) -> dict[str, dict]:
    """What the pages in ``out`` are compared with: the reference run or, if they are its own, ``others``."""
    if out.resolve() == reference.resolve():
        return others(reference)
    found = read(reference)
    return {} if found is None else {THE_REFERENCE: found}


def beside(claims: list[dict], profile: str, those: dict[str, dict]) -> dict[str, list[dict]]:
    """A page's verdicts beside others': title -> ``compared``, without titles that have no row.

    Empty for another study: a verdict at ``smoke`` has nothing to agree with.
    """
    found = {}
    for title, other in those.items():
        if _study(other["profile"]) == _study(profile) and (rows := compared(claims, other["claims"])):
            together = other.get("together", {})
            found[title] = [
                row | ({"together": together[row["claim"]]} if row["claim"] in together else {})
                for row in rows
            ]
    return found


def _study(profile: str) -> str:
    """``mini`` for ``mini-gpu``: the same study on another device."""
    return PROFILES[profile].name if profile in PROFILES else profile


def compared(here: list[dict], there: dict[int, dict]) -> list[dict]:
    """A row for each claim that both have: both rows of claims.json, and whether they agree.

    "Agree" means the same verdict, "disagree" reproduced against contradicted; otherwise one of the two is undecided.
    """
    return [
        {
            "claim": row["id"],
            "here": row,
            "reference": there[row["id"]],
            "agree": _agree(row, there[row["id"]]),
        }
        for row in here
        if row["id"] in there
    ]


def _agree(here: dict, there: dict) -> str:
    pair = {here["verdict"], there["verdict"]}
    if len(pair) == 1:
        return "agree"
    return "disagree" if pair == {"reproduced", "contradicted"} else ONE_OPEN


def frame(rows: list[dict], here: str = "here", there: str = "reference") -> pd.DataFrame:
    """``compared`` as a table: verdicts, effects with their intervals, seeds, whether the first two agree.

    Seeds that are the same for every claim stand in the heading.
    """
    import pandas as pd

    from clipvip_lib.study.evidence import effect_text
    from clipvip_lib.workshop.tables import in_short

    sides = {here: "here", there: "reference"} | {"together": "together"}
    sides = {name: side for name, side in sides.items() if any(side in row for row in rows)}
    seeds = {
        name: {in_short(row[side]["seeds"]) for row in rows if side in row} for name, side in sides.items()
    }
    shown = []
    for row in rows:
        cells = {"claim": row["claim"]}
        for name, side in sides.items():
            which = row.get(side)
            effect, interval = effect_text(which) if which else ("", "")
            alike = f", seeds {min(seeds[name])}" if len(seeds[name]) == 1 else ""
            cells[name + alike] = which["verdict"] if which else None
            cells[f"effect {name}"] = f"{effect} ({interval})" if which else None
            if not alike:
                cells[f"seeds {name}"] = in_short(which["seeds"]) if which else None
        shown.append(cells | {"": row["agree"]})
    return pd.DataFrame(shown)


def sections(found: dict[str, list[dict]], those: dict[str, dict]) -> str:
    """The sections of a page, one per title; "" without rows. found: from ``beside``; those: what it compared with."""
    return "".join(section(rows, title, those[title]) for title, rows in found.items())


def section(rows: list[dict], there: str, about: dict) -> str:
    """A section of a page. there: what this run is compared with; about: it, as ``compared_with`` has it."""
    from clipvip_lib.workshop.tables import table_html

    table = table_html(frame(rows, there=IN_SHORT[there]), f"Verdicts of this run and of {there}")
    made = [about["made"]] if "made" in about else []
    words = html.escape(
        " ".join([*made, in_words(rows, there=there), *together_in_words(rows, about.get("looks", ()))])
    )
    return (
        f'<section class="text"><h2>Beside {there}</h2><p>{words}</p></section>'
        f'<section class="code"><div class="output">{table}</div></section>'
    )


def in_words(rows: list[dict], here: str = "This run", there: str = THE_REFERENCE) -> str:
    """Whether the verdicts agree, and what to look at where they do not."""
    opposite = [str(row["claim"]) for row in rows if row["agree"] == "disagree"]
    undecided = [str(row["claim"]) for row in rows if row["agree"] == ONE_OPEN]
    if opposite:
        return (
            f"{here} and {there} say opposite things of claim {', '.join(opposite)}. Look at the seeds "
            "first: few seeds can mislead; then at versions and machine in the foot of the page."
        )
    if undecided:
        return (
            f"Of claim {', '.join(undecided)} one of the two is undecided and the other is not; no verdict is the "
            f"opposite of that of {there}."
        )
    return f"Every verdict is that of {there}."


def together_in_words(rows: list[dict], looks: Sequence[int]) -> list[str]:
    """What all seeds together say, and how often somebody looked: each look is a chance to be wrong."""
    verdicts: dict[str, list[str]] = {}
    for row in (row["together"] for row in rows if "together" in row):
        verdicts.setdefault(row["verdict"], []).append(str(row["id"]))
    if not verdicts:
        return []
    said = "; ".join(
        f"{verdict} {', '.join(verdicts[verdict])}" for verdict in VERDICTS if verdict in verdicts
    )
    sentences = [f"All seeds together: {said}."]
    if len(looks) > 1:
        *earlier, last = map(str, looks)
        sentences.append(
            f"They were looked at after {', '.join(earlier)} and {last} seeds, and seeds were added because claims "
            "were open. No interval is corrected for that: one that ends near zero is weaker than it looks."
        )
    return sentences
