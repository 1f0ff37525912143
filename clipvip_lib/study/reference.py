"""The reference run: its verdicts, and what a reader's own run says beside them.

``reports/reference`` holds the evidence (evidence_file.py) and verdicts.json, the verdicts on it. Files evidence-*.npz
are the same study on another machine, or in another precision; they are judged by the same rule, and seeds that both
have are compared. Those in conditions/ hold the headline
contrasts under other conditions (conditions.py); no statement is judged on them. Pages are joined with the reference
when they are published, so a new one never makes a notebook run again.

A run of one seed cannot judge a statement, but it can be checked: is its effect where the reference expects that of
one more seed (95 % prediction interval), and does a seed that both have give the same numbers?
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import PROFILES
from clipvip_lib.statistics import claims, intervals
from clipvip_lib.statistics import verdicts as rule
from clipvip_lib.study.words import miniatures, named_frame

if TYPE_CHECKING:
    import pandas as pd

    from clipvip_lib.study.evidence_file import Stored

FOLDER = files.shipped("reports", "reference")
EVIDENCE, VERDICTS = "evidence.npz", "verdicts.json"
KEYS = {
    "registered",
    "metric",
    "profile",
    "seeds",
    "statements",
    "machines",
}  # without these nothing can be said
SAME = 2e-3  # points; hits are kept in half precision, and a third of a hit is off by 1e-4


def judge(folder: Path = FOLDER) -> dict:
    """Judge the evidence in a folder and write verdicts.json. Raises ClipVipError for files that cannot be read."""
    from clipvip_lib.study import conditions, evidence_file

    stored = evidence_file.read(folder / EVIDENCE)
    machines, compared = {}, {}
    for path in sorted(folder.glob("evidence-*.npz")):
        other = evidence_file.read(path)
        title = path.stem.removeprefix("evidence-").replace("-", " ")
        machines[title] = [row for row in judged(other, stored.metric) if row["verdict"] != rule.NOT_RUN]
        compared[title] = apart(stored, other, stored.metric)
    found = {
        "registered": evidence_file.is_registered(stored),
        "metric": stored.metric,
        "profile": stored.profile,
        "seeds": list(stored.seeds),
        "runs": list(stored.runs),
        "statements": judged(stored, stored.metric),
        "machines": machines,
        "apart": compared,
        "headlines": conditions.headlines(stored.found(), len(stored.seeds), stored.metric),
        "conditions": conditions.effects(folder / conditions.FOLDER),
    }
    files.write_json(folder / VERDICTS, found)
    return found


def judged(stored: Stored, metric: str) -> list[dict]:
    """All statements judged on a file's evidence, as rows of claims.json; those on retrieval in this metric. An open
    one has "to_decide", what would decide it."""
    from clipvip_lib.study import evidence

    found = {contrast: rule.difference(value) for contrast, value in stored.found(metric).items()}
    rows = []
    for verdict in rule.verdicts(found, stored.seeds):
        rows.append(verdict.row())
        if verdict.verdict == rule.OPEN:
            told = evidence.to_decide(verdict, found)
            rows[-1]["to_decide"] = told["needs"] + (f", then {told['verdict']}" if told["seeds"] else "")
    return [row | {"metric": metric if row["metric"] == claims.RECALL else row["metric"]} for row in rows]


def apart(here: Stored, there: Stored, metric: str) -> list[dict]:
    """How far the seeds that two files share are apart: for each contrast of retrieval its effect there less its effect
    here, in points, as {"contrast", "effect", "low", "high"} (95 %, over seeds and queries).

    [] if they share no seed, or if recipe and world differ; a profile's name may ("mini-gpu").
    """
    both = [seed for seed in here.seeds if seed in there.seeds]
    if not both or _recipe(here.profile) != _recipe(there.profile):
        return []
    ours, theirs = here.found(metric), there.found(metric)
    rows, measured = [], set()
    for contrast in ours:
        if claims.metric_of(contrast) == claims.NMI or contrast not in theirs:
            continue
        if (values := ours[contrast].tobytes()) not in measured:  # some contrasts have two names
            measured.add(values)
            tables = (
                found[contrast][[stored.seeds.index(seed) for seed in both]]
                for stored, found in ((there, theirs), (here, ours))
            )
            effect, low, high = intervals.paired_difference(*tables)
            rows.append({"contrast": contrast.name, "effect": effect, "low": low, "high": high})
    return rows


def read(folder: Path = FOLDER) -> dict | None:
    """What ``judge`` wrote; None if there is no reference. Raises ClipVipError if the file is damaged."""
    path = folder / VERDICTS
    if not path.is_file():
        return None
    found = files.read_json(path)
    if not isinstance(found, dict) or not found.keys() >= KEYS:
        raise ClipVipError(
            f"{path}: expected {', '.join(sorted(KEYS))}, got something else; run `make answer`, which writes it again"
        )
    return found


def of_the_same_study(reference: dict | None, profile: str) -> dict | None:
    """The reference, if it is one of this profile (``mini-gpu`` is ``mini`` on another device); else None."""
    known = PROFILES.get(profile)
    return reference if reference and known and _name(repr(known)) == _name(reference["profile"]) else None


def of_an_earlier_recipe(reference: Mapping) -> bool:
    """Whether the reference was run in another world or by another recipe than a run of today."""
    return all(reference["profile"] != repr(profile) for profile in PROFILES.values())


def _name(profile: str) -> str:
    return profile.partition(",")[0]


def _recipe(profile: str) -> str:
    return profile.partition(",")[2]


def beside(rows: Sequence[Mapping], reference: dict | None) -> dict:
    """What a run's rows of claims.json are beside the reference: {"statements": the reference's rows on the same
    claims, "checks": ``checked``, none if the reference is of an earlier recipe}; {} without a reference."""
    if not reference or not rows:
        return {}
    numbers = {row["claim"] for row in rows}
    there = [row for row in reference["statements"] if row["claim"] in numbers]
    known = not of_an_earlier_recipe(reference)
    return {"statements": there, "checks": checked(rows, there, reference["seeds"]) if known else []}


def checked(rows: Iterable[Mapping], reference: Iterable[Mapping], seeds: Sequence[int]) -> list[dict]:
    """A row for each contrast that a run and the reference have in a metric: contrast, here (the mean over the
    run's seeds), low and high (where the reference's other seeds expect it: a seed cannot foretell itself), inside,
    and same (whether the seeds that both have gave the same numbers; None if they share none).

    rows, reference: rows of claims.json. seeds: those of the reference.
    """
    there = {(row["metric"], c["name"]): c for row in reference for c in row["contrasts"]}
    found = {}
    for row in rows:
        for contrast in row["contrasts"]:
            own = {row["metric"]: contrast["by_seed"], claims.R1: contrast["r1_by_seed"]}
            metric = next((m for m in own if own[m] and (m, contrast["name"]) in there), None)
            if metric is None:
                continue
            values, other = own[metric], there[metric, contrast["name"]]
            known = dict(zip(seeds, other["by_seed"], strict=True))
            others = [value for seed, value in known.items() if seed not in row["seeds"]]
            if len(others) < 2:
                continue
            low, high = intervals.prediction_interval(others, len(values))
            both = [
                abs(value - known[seed]) <= SAME
                for seed, value in zip(row["seeds"], values, strict=True)
                if seed in known
            ]
            found[contrast["name"]] = {
                "contrast": contrast["name"],
                "here": sum(values) / len(values),
                "low": low,
                "high": high,
                "inside": low <= sum(values) / len(values) <= high,
                "same": all(both) if both else None,
            }
    return list(found.values())


def sums(found: Mapping) -> list[tuple[str, str, str]]:
    """What the reference says of a page's claims: their sentence, the kind of verdict, and the verdict in words."""
    statements = found.get("statements", [])
    return [
        (claim.sentence, rule.kind(word), f"Claim {claim.id} {word}")
        for claim in rule.claims_of(statements)
        for word in [rule.sum_up(claim, statements)]
    ]


def basis(reference: Mapping, rows: Sequence[Mapping] = ()) -> str:
    """What the reference's verdicts rest on, in a sentence; those of a page in the metric of its ``rows``, too."""
    words = {claims.R1: "in R@1", claims.RECALL: "in the average of R@1, R@5 and R@10", claims.NMI: "in NMI"}
    metric = " and ".join(
        words[name] for name in {row["metric"]: None for row in rows} or [reference["metric"]]
    )
    kind = (
        "registered before the run"
        if reference["registered"]
        else "exploratory: nothing was registered before"
    )
    count = len(reference["seeds"])
    kind += "; by an earlier recipe" if of_an_earlier_recipe(reference) else ""
    return f"{count} seed{'s' if count > 1 else ''}, {metric}; {kind}."


def checks_in_words(checks: Sequence[Mapping], seeds: Sequence[int]) -> str:
    """How many of a run's effects lie where the reference expects them, which do not, and whether seeds that both
    have gave the same numbers."""
    if not checks:
        return "Its effects cannot be checked here: the reference has none in the same metric and by the same recipe."
    outside = [row["contrast"] for row in checks if not row["inside"]]
    count = f"{len(checks) - len(outside)} of {len(checks)}"
    one = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    said = f"Of this run's effects {count} lie where the reference expects those of {one} (95 % prediction interval)"
    said += f"; outside: {'; '.join(outside)}. By chance one in twenty lies outside." if outside else "."
    known = [row["same"] for row in checks if row["same"] is not None]
    if known:
        same = (
            "the same numbers"
            if all(known)
            else "other numbers"
            if not any(known)
            else "partly the same numbers"
        )
        said += f" Seeds that both have gave {same}"
        said += "." if all(known) else ": other processors, precisions and versions round differently."
    return said


def section(found: Mapping, reference: Mapping, seeds: Sequence[int]) -> str:
    """The first section of a page: what the reference says of its claims, and the check of this run."""
    from clipvip_lib.study.evidence import verdict_frame
    from clipvip_lib.workshop.tables import table_html

    statements = found["statements"]
    said = "".join(
        f'<li>{html.escape(sentence)} <span data-verdict="{html.escape(kind)}">{html.escape(word)}</span></li>'
        for sentence, kind, word in sums(found)
    )
    tables = [(verdict_frame(statements), "The reference's verdicts on this page's statements")]
    if found["checks"]:
        tables.append(
            (check_frame(found["checks"]), "This run's effects and where the reference expects them")
        )
    shown = "".join(table_html(named_frame(frame), caption) for frame, caption in tables)
    words = miniatures(f"{basis(reference, statements)} {checks_in_words(found['checks'], seeds)}")
    return (
        '<section class="text"><h2 id="what-the-reference-run-found">What the reference run found</h2>'
        f'<ul class="verdicts">{said}</ul><p>{html.escape(words)}</p></section>'
        f'<section class="code"><div class="output">{shown}</div></section>'
    )


def check_frame(checks: Sequence[Mapping]) -> pd.DataFrame:
    """``checked`` as a table."""
    import pandas as pd

    words = {True: "yes", False: "no", None: "–"}
    return pd.DataFrame(
        [
            {
                "contrast": row["contrast"],
                "here": row["here"],
                "expected from": row["low"],
                "to": row["high"],
                "inside": words[row["inside"]],
                "identical to the reference's": words[row["same"]],
            }
            for row in checks
        ]
    )
