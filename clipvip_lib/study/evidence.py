"""From finished stages to the evidence of statements: per-query hits, paired over seeds and queries.

Notebooks 01 to 06 and 08 read the same few functions, so a number means the same thing on every page.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipvip_lib.data.benchmarks import BENCHMARKS
from clipvip_lib.data.world import MOTIONS, OPPOSITE
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json
from clipvip_lib.profiles import Profile
from clipvip_lib.retrieval import QueryRanks
from clipvip_lib.statistics import claims, intervals
from clipvip_lib.statistics import verdicts as rule
from clipvip_lib.statistics.claims import NMI, R1, RECALL, Contrast, Measure, Statement
from clipvip_lib.statistics.verdicts import Verdict
from clipvip_lib.study import experiments
from clipvip_lib.workshop.stages import Stage

BETWEEN = "difference of the two"  # of the queries that tell the order and those that do not
SHOWN_IN = {
    ("tell the order",): "the queries that tell the order alone",
    ("do not",): "the queries that do not tell the order alone",
    ("tell the order", "do not"): "both groups",
    (): "neither group on its own",
}
DIFFER = {
    1: "it is larger where the order is told",
    0: "that the groups differ is not shown",
    -1: "it is smaller where the order is told",
}

if TYPE_CHECKING:
    import pandas as pd

MOST_SEEDS = 200  # with more, more queries are the better choice
VERIFY = "expected arrays as a stage stores them; run `clipvip reproduce --verify`, which makes it again"
TEXT_TO_VIDEO = "text_to_video"
PLACES = {RECALL: (1, 5, 10), R1: (1,)}  # over which K a metric takes the mean of R@K
Metric = str | int  # a name of PLACES, or K for R@K


def ranks(
    stage: Stage, direction: str = TEXT_TO_VIDEO, scoring: str = "simple", home: Path | None = None
) -> QueryRanks:
    """The ranks of every test query of a scored arm."""
    return _ranks(stage.folder(home) / "ranks.npz", direction, scoring)


@functools.lru_cache(maxsize=512)  # a page asks for the same ranks in several metrics and tables
def _ranks(path: Path, direction: str, scoring: str) -> QueryRanks:
    columns = [f"{direction}/{scoring}/{column}" for column in ("better", "tied", "positives")]
    return QueryRanks(*arrays(path, VERIFY, columns))


def arrays(
    path: Path, advice: str, names: Sequence[str] | None = None
) -> list[np.ndarray] | dict[str, np.ndarray]:
    """Arrays of an .npz file: those named, in this order, or all by name.

    Raises ClipVipError, ending with what to do, if there is no such file or array, or it is damaged.
    """
    try:
        # Opened here: numpy would leave a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if names is None:
                return {name: stored[name] for name in stored.files}
            return [stored[name] for name in names]
    except Exception as error:  # a damaged archive may raise nearly anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise ClipVipError(f"cannot read {path} ({why:.120}); {advice}") from error


def hits(
    stages: Sequence[Stage], metric: Metric = RECALL, home: Path | None = None, **which: str
) -> np.ndarray:
    """What every query adds to a metric of one arm, one stage per seed: float64 [seeds, queries], 0 to 1."""
    found = [ranks(stage, home=home, **which) for stage in stages]
    return np.stack(
        [np.mean([each.hits(k) for k in PLACES.get(metric, (metric,))], axis=0) for each in found]
    )


def tells_order(profile: Profile, benchmark: str, home: Path | None = None) -> np.ndarray:
    """For each test query of a benchmark, in order, whether its text tells the events: bool [queries]."""
    truth = read_json(experiments.benchmark(profile, benchmark).folder(home) / "truth.json")
    return np.array([row["tells_order"] for row in truth.values() if row["split"] == "test"])


def stages_of(profile: Profile, arm: str, benchmark: str, seeds: Sequence[int]) -> list[Stage]:
    """The fine-tuned stages behind a claim's arm name, one per seed. Raises KeyError for an unknown name."""
    which, step = experiments.scored_arms(profile)[arm, benchmark]
    return [experiments.finetuned(profile, which, benchmark, seed, step) for seed in seeds]


def stages_at_hand(profile: Profile, arm: str, benchmark: str, seeds: Sequence[int]) -> list[Stage]:
    """As ``stages_of``, but none if their data or weights are not at hand."""
    return experiments.at_hand(lambda: stages_of(profile, arm, benchmark, seeds))


def evidence(
    profile: Profile, seeds: Sequence[int], home: Path | None = None, metric: Metric = RECALL
) -> dict[Contrast, object]:
    """Evidence for every contrast whose stages have all run; retrieval in this metric."""
    gaps_found = gap_rows(profile, seeds, home)
    return rule.evidence_from_hits(hit_tables(profile, seeds, home, metric)) | {
        contrast: pooled(rows) for contrast, rows in gaps_found.items()
    }


def hit_tables(
    profile: Profile, seeds: Sequence[int], home: Path | None = None, metric: Metric = RECALL
) -> dict[Measure, np.ndarray]:
    """``hits`` [seeds, queries] of every measure that a statement names and whose stages have all run."""
    tables: dict[Measure, np.ndarray] = {}
    for measure in claims.MEASURES:
        stages = stages_at_hand(profile, measure.arm, measure.benchmark, seeds)
        if stages and all(stage.done(home) for stage in stages):
            tables[measure] = hits(stages, metric, home, scoring=measure.scoring)
    return tables


def needed(
    profile: Profile, seeds: Sequence[int], statements: Sequence[Statement] = claims.STATEMENTS
) -> list[Stage]:
    """The stages whose results some statements are judged on."""
    found = [
        stage
        for measure in claims.measures(statements)
        for stage in stages_of(profile, measure.arm, measure.benchmark, seeds)
    ]
    if any(statement.metric == NMI for statement in statements):
        found += [experiments.language_gap(profile, seed) for seed in seeds]
    return [*dict.fromkeys(found)]


def gap_rows(profile: Profile, seeds: Sequence[int], home: Path | None = None) -> dict[Contrast, list[dict]]:
    """Differences of NMI (subtitles minus another source), one row per seed; none unless all seeds have run."""
    stages = experiments.at_hand(lambda: [experiments.language_gap(profile, seed) for seed in seeds])
    if not stages or not all(stage.done(home) for stage in stages):
        return {}
    found = {}
    rows = [row for stage in stages for row in stage.result(home)["differences"]]
    for contrast in claims.CONTRASTS:
        if claims.metric_of(contrast) == NMI:
            place = (contrast.less.arm, contrast.less.benchmark)
            chosen = [row for row in rows if (row["source"], row["benchmark"]) == place]
            if chosen:  # a source of real texts may not be at hand
                found[contrast] = chosen
    return found


def pooled(rows: Sequence[Mapping]) -> intervals.Difference:
    """A measure of texts over seeds, from its row of each seed's ``language_gap`` stage."""
    return intervals.pool_draws(
        [row["value"] for row in rows], [row["draws"] for row in rows], min(row["texts"] for row in rows)
    )


def verdicts(
    profile: Profile, seeds: Sequence[int], notebook: str | None = None, home: Path | None = None
) -> list[Verdict]:
    """The verdicts on the statements of one notebook, or on all. Smoke judges nothing."""
    chosen = [s for s in claims.STATEMENTS if notebook in (None, claims.claim(s.claim).notebook)]
    r1 = rule.evidence_from_hits(hit_tables(profile, seeds, home, R1))
    found = rule.verdicts(evidence(profile, seeds, home), seeds, chosen, r1)
    if profile.name != "smoke":
        return found
    note = "the smoke profile only tests the machinery"
    return [
        v if v.verdict == rule.NOT_RUN else dataclasses.replace(v, verdict=rule.NOT_JUDGED, note=note)
        for v in found
    ]


# ------------------------------------------------------------------------------------- what pages say of it


def score(
    stages: Sequence[Stage], metric: Metric = RECALL, home: Path | None = None, **which: str
) -> intervals.Difference:
    """A metric of one arm in per cent, one stage per seed, with its interval over seeds and queries."""
    return intervals.paired_difference(100.0 * hits(stages, metric, home, **which))


def score_frame(
    profile: Profile, seeds: Sequence[int], arms: Sequence[str], over: str = "", home: Path | None = None
) -> pd.DataFrame:
    """The arms at hand: columns arm, benchmark, average recall, low, high (95 %), R@1, queries, parameters.

    over: the arm that the others are compared with; then also over, effect, effect low and effect high, paired, in
    points of the average recall (zero for the arm itself).
    """
    import pandas as pd

    rows = []
    for benchmark in BENCHMARKS:
        base = stages_at_hand(profile, over, benchmark, seeds) if over else []
        for arm in arms:
            if not (stages := stages_at_hand(profile, arm, benchmark, seeds)):
                continue
            found = score(stages, home=home)
            numbers = {RECALL: found.effect, "low": max(found.low, 0.0), "high": min(found.high, 100.0)}
            numbers |= {R1: 100.0 * float(hits(stages, R1, home).mean()), "queries": found.queries}
            numbers["parameters"] = stages[0].result(home)["parameters"]
            if base:
                numbers |= {"over": over, "effect": 0.0, "effect low": 0.0, "effect high": 0.0}
                if arm != over:
                    gain = intervals.paired_difference(
                        100 * hits(stages, home=home), 100 * hits(base, home=home)
                    )
                    numbers |= {"effect": gain.effect, "effect low": gain.low, "effect high": gain.high}
            rows.append({"arm": arm, "benchmark": benchmark, **numbers})
    columns = ["arm", "benchmark", RECALL, "low", "high", R1, "queries", "parameters"]
    return pd.DataFrame(rows, columns=None if rows else columns)


def told_apart(
    profile: Profile, seeds: Sequence[int], arms: Sequence[str], benchmark: str, home: Path | None = None
) -> pd.DataFrame:
    """How often a text that tells the events prefers its clip to the one in which they are undone; chance: 50 %.

    Columns arm, events (a pair of opposite motions, "several", or "all"), asked, share (per cent), low, high (95 %
    over seeds and queries). A clip and its undoing show the same frames, so only their order can tell.
    """
    import pandas as pd

    truth = read_json(experiments.benchmark(profile, benchmark).folder(home) / "truth.json")
    test = [row for row in truth.values() if row["split"] == "test"]
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(test):
        groups.setdefault(row["group"], []).append(place)
    asked = [i for i, row in enumerate(test) if row["tells_order"]]
    undone = [next(j for j in groups[test[i]["group"]] if j != i) for i in asked]
    kinds = np.array([_kind([event["motion"] for event in test[i]["events"]]) for i in asked])
    rows = []
    for arm in arms:
        table = []
        for stage in stages_of(profile, arm, benchmark, seeds):
            stored = arrays(stage.folder(home) / "features.npz", VERIFY, ["text", "video"])
            text, video = (each.astype(np.float32) for each in stored)
            own, other = ((text[asked] * video[which]).sum(1) for which in (asked, undone))
            table.append((own > other) + 0.5 * (own == other))
        for kind in ("all", *dict.fromkeys(sorted(kinds))):
            chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
            if chosen.sum() > 1:
                found = intervals.paired_difference(100.0 * np.stack(table)[:, chosen])
                ends = {"low": max(0.0, found.low), "high": min(100.0, found.high)}
                row = {"arm": arm, "events": kind, "asked": int(chosen.sum()), "share": found.effect}
                rows.append(row | ends)
    return pd.DataFrame(rows)


def _kind(motions: Sequence[str]) -> str:
    """One event by its pair of opposites, "grows / shrinks"; else "several"."""
    if len(motions) > 1:
        return "several"
    return " / ".join(sorted((motions[0], OPPOSITE[motions[0]]), key=MOTIONS.index))


def side_by_side(scores: pd.DataFrame) -> pd.DataFrame:
    """A ``score_frame`` for people: one row per arm; on each benchmark the effect over the arm that it is compared
    with, average recall, its interval, and R@1."""
    import pandas as pd

    rows: dict[str, dict] = {}
    records = scores.to_dict("records")
    for row in records:
        shown = rows.setdefault(row["arm"], {"arm": row["arm"]})
        if "effect" in row:
            known = row["arm"] != row["over"]
            shown[f"{row['benchmark']}, over {row['over']}"] = signed(row["effect"], 1) if known else "–"
            ends = " to ".join(signed(row[f"effect {end}"], 1) for end in ("low", "high")) if known else "–"
            shown[f"95 % on {row['benchmark']}"] = ends
    for row in records:
        shown = rows[row["arm"]]
        shown[row["benchmark"]] = row[RECALL]
        shown[f"{row['benchmark']}, 95 %"] = f"{row['low']:.1f} to {row['high']:.1f}"
        shown[f"{row['benchmark']} R@1"] = row[R1]
    return pd.DataFrame(rows.values())


def in_words(scores: pd.DataFrame, metric: str = RECALL) -> str:
    """A ``score_frame`` as alt text: "proxy-4 on msrvtt 31.2 (28.1 to 34.3); ..."."""
    parts = [
        f"{row['arm']} on {row['benchmark']} {row[metric]:.1f} ({row['low']:.1f} to {row['high']:.1f})"
        for row in scores.to_dict("records")
    ]
    return f"{metric[0].upper()}{metric[1:]} with its interval: " + "; ".join(parts)


def leaders(scores: pd.DataFrame, benchmark: str) -> str:
    """The arm with the highest average recall on a benchmark; several if they are level ("full and proxy-4")."""
    chosen = scores[scores["benchmark"] == benchmark]
    best = chosen[chosen[RECALL] >= chosen[RECALL].max() - 1e-9]["arm"].tolist()
    return best[0] if len(best) == 1 else f"{', '.join(best[:-1])} and {best[-1]}"


def by_order(
    profile: Profile, seeds: Sequence[int], arm: str, other: str, home: Path | None = None
) -> list[dict[str, object]]:
    """``arm`` minus ``other`` in points of average recall: over all queries, those that tell the order and those that
    do not, and by how much the difference of the former is larger than that of the latter.

    Rows with benchmark, queries (which), n, effect, low, high; a group of fewer than two queries has none.
    """
    rows = []
    for benchmark in BENCHMARKS:
        tables = [hits(stages_of(profile, name, benchmark, seeds), home=home) for name in (arm, other)]
        tells = tells_order(profile, benchmark, home)
        difference = 100.0 * tables[0] - 100.0 * tables[1]
        groups = {"all": difference, "tell the order": difference[:, tells], "do not": difference[:, ~tells]}
        enough = min(tells.sum(), (~tells).sum()) > 1
        groups[BETWEEN] = _between(difference, tells) if enough else None
        for group, values in groups.items():
            n = len(tells) if values is None else values.shape[1]
            row = {"contrast": f"{arm} over {other}", "benchmark": benchmark, "queries": group, "n": n}
            row |= {"effect": None, "low": None, "high": None}
            if values is not None and n > 1:
                effect, low, high = intervals.paired_difference(values)
                row |= {"effect": effect, "low": low, "high": high}
            rows.append(row)
    return rows


def _between(difference: np.ndarray, tells: np.ndarray) -> np.ndarray:
    """Values [seeds, queries] whose mean is that of the queries that ``tells`` less that of the others.

    A group's own mean is taken out of its queries' spread, because the distance between the groups is not query noise.
    """
    means = [difference[:, group].mean() for group in (tells, ~tells)]
    weight = np.where(tells, len(tells) / tells.sum(), -len(tells) / (~tells).sum())
    return weight * (difference - np.where(tells, *means)) + means[0] - means[1]


def where_from(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """For each contrast and benchmark of ``by_order`` a sentence: which queries a difference comes from.

    If one group shows it and the other does not, the groups need not differ: their difference has its own interval.
    """
    sentences = []
    for total in (row for row in rows if row["queries"] == "all"):
        same = [r for r in rows if (r["contrast"], r["benchmark"]) == (total["contrast"], total["benchmark"])]
        found = {row["queries"]: _side(row) for row in same}
        where = f"{total['contrast']} on {total['benchmark']}"
        if not found["all"]:
            sentences.append(f"{where}: no difference is shown over all queries.")
            continue
        word = "gain" if found["all"] > 0 else "loss"
        carriers = tuple(name for name in ("tell the order", "do not") if found[name] == found["all"])
        empty = [row["queries"] for row in same if row["low"] is None and row["queries"] != BETWEEN]
        if empty:
            text = f"a {word} is shown; too few queries are in the group {empty[0]!r} to set it apart"
        else:
            differ = DIFFER[found[BETWEEN] * found["all"]]
            text = f"the {word} is shown in {SHOWN_IN[carriers]}; {differ}"
        sentences.append(f"{where}: {text}.")
    return sentences


def _side(row: Mapping[str, object]) -> int:
    """+1 or -1 if the interval lies on that side of zero, else 0."""
    if row["low"] is None:
        return 0
    return int(row["low"] > 0) - int(row["high"] < 0)


def effect_text(verdict: Verdict | Mapping[str, object]) -> tuple[str, str]:
    """Effect and interval of a verdict, or of its row in claims.json, for people: ("+3.1 pt", "−0.2 to +6.4").

    Dashes if not run.
    """
    row = verdict if isinstance(verdict, Mapping) else verdict.row()
    if row["effect"] is None:
        return "–", "–"
    digits, unit = (3, "") if row["metric"] == NMI else (1, " pt")
    effect, low, high = (signed(row[key], digits) for key in ("effect", "low", "high"))
    return f"{effect}{unit}", f"{low} to {high}"


def signed(number: float, digits: int) -> str:
    """A number with its sign, as people write it: no hyphen for a minus, and no sign before zero."""
    text = f"{number:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def verdict_frame(found: Sequence[Verdict | Mapping[str, object]]) -> pd.DataFrame:
    """The table under every page's verdict: a row for each statement, with the effect and the interval of the
    contrast on which its verdict hangs."""
    import pandas as pd

    rows = []
    for row in (v if isinstance(v, Mapping) else v.row() for v in found):
        effect, interval = effect_text(row)
        shown = {"#": row["id"], "statement": row["statement"], "verdict": row["verdict"], "effect": effect}
        level = f"{100 * row['confidence']:.1f} %"
        rows.append(shown | {"interval": interval, "level": level, "seeds": len(row["seeds"])})
    return pd.DataFrame(rows)


def notes(found: Sequence[Verdict]) -> str:
    """What each claim comes to and what stands behind its verdicts, as a Markdown list."""
    lines = []
    for claim in rule.claims_of(found):
        lines.append(f"* **Claim {claim.id}: {rule.sum_up(claim, found)}.** {claim.sentence}")
        lines += [f"    * {v.id}: {v.note}." for v in found if v.statement.claim == claim.id]
    return "\n".join(lines)


def contrast_frame(found: Sequence[Verdict]) -> pd.DataFrame:
    """Every contrast of the statements with its interval at the statement's level."""
    import pandas as pd

    rows = [
        {
            "#": v.id,
            "contrast": c.name,
            "effect": c.effect,
            "low": c.low,
            "high": c.high,
            "level": f"{100 * rule.confidence(v.statement):.1f} %",
            **({"in R@1": float(np.mean(c.r1_by_seed))} if c.r1_by_seed else {}),
            # one seed judges no contrast either
            "alone": c.verdict if v.verdict != rule.NOT_JUDGED else rule.NOT_JUDGED,
        }
        for v in found
        for c in v.contrasts
    ]
    return pd.DataFrame(rows)


def in_a_line(found: Sequence[Verdict]) -> str:
    """Verdicts as a headline: "Claim 6 holds: 6 reproduced (+1.2 points, +0.4 to +2.8). Claim 7 ...". Points are those
    of the average recall."""
    parts = []
    for claim in rule.claims_of(found):
        own = [_in_short(v, v is found[0]) for v in found if v.statement.claim == claim.id]
        parts.append(f"Claim {claim.id} {rule.sum_up(claim, found)}: {'; '.join(own)}")
    return ". ".join(parts)


def _in_short(v: Verdict, first: bool) -> str:
    effect, interval = effect_text(v)
    effect = (
        f"{effect} NMI"
        if v.statement.metric == NMI
        else effect.replace("pt", "points of average recall" if first else "points")
    )
    word = "" if v.verdict == rule.NOT_JUDGED else f" {v.verdict}"
    return f"{v.id}{word}" + ("" if v.effect is None else f" ({effect}, {interval})")


def basis(profile: Profile, seeds: Sequence[int]) -> str:
    """A sentence on what the intervals of a page cover: how many seeds, how many queries, which profile."""
    listed = ", ".join(map(str, seeds))
    queries = "the" if experiments.is_real(profile) else f"{profile.world.test:,}"
    if len(seeds) == 1:
        text = (
            f"One seed ({listed}) and {queries} test queries per benchmark: intervals say how these trained "
            "models would do on other queries, not what another seed would train. One seed judges no statement."
        )
    else:
        text = (
            f"{len(seeds)} seeds ({listed}), {queries} test queries per benchmark: intervals cover both, in one world "
            "that is drawn once."
        )
    if profile.name == "smoke":
        text += " The smoke profile trains for seconds, to test the machinery: its numbers mean nothing."
    return text


def to_decide(judged: rule.Verdict, found: Mapping[Contrast, object]) -> dict[str, object]:
    """With how many seeds the rule would decide an open statement, if effects and spreads are as measured.

    Returns {"id", "effect", "seeds" (None: more than 200, or the spread is not known), "verdict" (what it would be),
    "needs" (in words)}.
    """
    statement = judged.statement
    row = {"id": judged.id, "effect": judged.effect, "seeds": None, "verdict": rule.OPEN}
    measured = [rule.difference(found[contrast]) for contrast in statement.contrasts]
    if any(d.seeds < 2 for d in measured):
        return row | {"needs": f"{rule.MIN_SEEDS} seeds or more: one does not tell the spread"}
    for seeds in range(max(d.seeds for d in measured) + 1, MOST_SEEDS + 1):
        ends = [intervals.expected_interval(d, seeds, rule.confidence(statement)) for d in measured]
        words = [rule.word_of(low, high, statement.margin, statement.level) for low, high in ends]
        within = all(-statement.margin < low and high < statement.margin for low, high in ends)
        if (word := rule.combined(words, within)) != rule.OPEN:
            return row | {"seeds": seeds, "verdict": word, "needs": f"{seeds} seeds"}
    more = "texts" if statement.metric == NMI else "queries"
    return row | {"needs": f"more {more}: {MOST_SEEDS} seeds would not do"}


def gaps(profile: Profile, seeds: Sequence[int], home: Path | None = None) -> list[dict[str, object]]:
    """Rows (space, benchmark, source, nmi, low, high, texts) of the language gap, pooled over the seeds."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for seed in seeds:
        for row in experiments.language_gap(profile, seed).result(home)["gaps"]:
            found.setdefault((row["space"], row["benchmark"], row["source"]), []).append(row)
    table = []
    for (space, benchmark, source), rows in found.items():
        measured = pooled(rows)
        low, high = np.clip(measured.interval(), 0.0, 1.0)  # an NMI lies between 0 and 1
        names = {"space": space, "benchmark": benchmark, "source": source}
        numbers = {"nmi": measured.effect, "low": float(low), "high": float(high), "texts": measured.queries}
        table.append(names | numbers)
    return table


def gap_basis(profile: Profile, seeds: Sequence[int]) -> str:
    """A sentence on what the intervals of NMI cover, like ``basis`` for recall."""
    listed, texts = ", ".join(map(str, seeds)), profile.nmi_texts
    text = f"{profile.nmi_draws} draws of at most {texts:,} texts of each kind: intervals say what others would give, "
    text += (
        f"in the text encoder of one seed ({listed}). One seed judges no statement."
        if len(seeds) == 1
        else f"and with it other text encoders ({len(seeds)} seeds: {listed})."
    )
    if profile.name == "smoke":
        text += " The smoke profile trains for seconds, to test the machinery: its numbers mean nothing."
    return text
