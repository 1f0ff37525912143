"""A run's verdicts beside those of the reference run, which is committed in ``reports/reference``.

Compared when pages are published, not when notebooks run: a new reference never costs a page, and a page of the
reference itself has nothing beside it.
"""

from __future__ import annotations

import html
from pathlib import Path

from clipvip_lib import files

FOLDER = files.CHECKOUT / "reports" / "reference"
CLAIMS = "results/claims.json"


def read(folder: Path = FOLDER) -> dict | None:
    """The reference run: {"profile", "claims": {id: row of claims.json}}; None if there is none."""
    if not (folder / CLAIMS).is_file():
        return None
    rows = files.read_json(folder / CLAIMS)
    profile = files.read_json(folder / "results" / "run.json")["profile"]
    return {"profile": profile, "claims": {row["id"]: row for row in rows}}


def beside(claims: list[dict], profile: str, reference: dict | None) -> list[dict]:
    """A row for each of a page's verdicts that the reference has too: both, and whether they agree.

    Nothing for another profile: a verdict at ``smoke`` has nothing to agree with. "Agree" is the same verdict;
    "disagree" is reproduced against contradicted; else one of the two is undecided.
    """
    if reference is None or reference["profile"] != profile:
        return []
    rows = []
    for here in claims:
        there = reference["claims"].get(here["id"])
        if there is not None:
            rows.append({"claim": here["id"], "here": here, "reference": there, "agree": _agree(here, there)})
    return rows


def _agree(here: dict, there: dict) -> str:
    pair = {here["verdict"], there["verdict"]}
    if len(pair) == 1:
        return "agree"
    return "disagree" if pair == {"reproduced", "contradicted"} else "one is undecided"


def section(rows: list[dict]) -> str:
    """The section of a page; nothing without rows."""
    if not rows:
        return ""
    import pandas as pd

    from clipvip_lib.study.evidence import effect_text
    from clipvip_lib.study.tables import table_html

    shown = []
    for row in rows:
        cells = {"claim": row["claim"]}
        for where in ("here", "reference"):
            effect, interval = effect_text(row[where])
            cells[where] = row[where]["verdict"]
            cells[f"effect {where}"] = f"{effect} ({interval})"
            cells[f"seeds {where}"] = ", ".join(map(str, row[where]["seeds"]))
        shown.append(cells | {"": row["agree"]})
    table = table_html(pd.DataFrame(shown), "Verdicts of this run and of the reference run")
    return (
        f'<section class="text"><h2>Beside the reference run</h2><p>{html.escape(_in_words(rows))}</p></section>'
        f'<section class="code"><div class="output">{table}</div></section>'
    )


def _in_words(rows: list[dict]) -> str:
    opposite = [str(row["claim"]) for row in rows if row["agree"] == "disagree"]
    undecided = [str(row["claim"]) for row in rows if row["agree"] == "one is undecided"]
    if opposite:
        return (
            f"This run and the reference say opposite things of claim {', '.join(opposite)}. Look at the seeds "
            "first: few seeds can mislead; then at versions and machine in the foot of the page."
        )
    if undecided:
        return (
            f"Of claim {', '.join(undecided)} one of the two runs is undecided and the other is not, most often "
            "for the number of seeds; no verdict is the opposite of the reference's."
        )
    return "Every verdict is the reference's."
