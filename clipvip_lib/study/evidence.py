"""From finished stages to the evidence of claims: per-query hits, paired over seeds and queries.

Notebooks 01 to 06 and 08 read the same few functions, so a number means the same thing on every page.
"""

from __future__ import annotations

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
from clipvip_lib.statistics.claims import Claim, Contrast, Measure, Verdict
from clipvip_lib.study import experiments, rates
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

VERIFY = "expected arrays as a stage stores them; run `clipvip reproduce --verify`, which makes it again"
TEXT_TO_VIDEO, VIDEO_TO_TEXT = "text_to_video", "video_to_text"


def ranks(
    stage: Stage, direction: str = TEXT_TO_VIDEO, scoring: str = "simple", home: Path | None = None
) -> QueryRanks:
    """The ranks of every test query of a scored arm."""
    columns = [f"{direction}/{scoring}/{column}" for column in ("better", "tied", "positives")]
    return QueryRanks(*arrays(stage.folder(home) / "ranks.npz", VERIFY, columns))


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


def hits(stages: Sequence[Stage], k: int = 1, home: Path | None = None, **which: str) -> np.ndarray:
    """Expected hits at ``k`` of one arm, one stage per seed: float64 [seeds, queries], 0 to 1."""
    return np.stack([ranks(stage, home=home, **which).hits(k) for stage in stages])


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


def evidence(profile: Profile, seeds: Sequence[int], home: Path | None = None) -> dict[Contrast, object]:
    """Evidence for every contrast whose stages have all run."""
    gaps_found = gap_rows(profile, seeds, home)
    return claims.evidence_from_hits(hit_tables(profile, seeds, home)) | {
        contrast: pooled(rows) for contrast, rows in gaps_found.items()
    }


def hit_tables(profile: Profile, seeds: Sequence[int], home: Path | None = None) -> dict[Measure, np.ndarray]:
    """Hits at 1 [seeds, queries] of every arm that a claim names and whose stages have all run."""
    tables: dict[Measure, np.ndarray] = {}
    for arm, benchmark in experiments.scored_arms(profile):
        stages = stages_at_hand(profile, arm, benchmark, seeds)
        if stages and all(stage.done(home) for stage in stages):
            tables[Measure(arm, benchmark)] = hits(stages, home=home)
            if arm == "clip-vip":
                tables[Measure(arm, benchmark, scoring="dsl")] = hits(stages, home=home, scoring="dsl")
    return tables


def gap_rows(profile: Profile, seeds: Sequence[int], home: Path | None = None) -> dict[Contrast, list[dict]]:
    """Differences of NMI (subtitles minus another source), one row per seed; none unless all seeds have run."""
    stages = experiments.at_hand(lambda: [experiments.language_gap(profile, seed) for seed in seeds])
    if not stages or not all(stage.done(home) for stage in stages):
        return {}
    found = {}
    rows = [row for stage in stages for row in stage.result(home)["differences"]]
    for source in ("alt-text", "caption pairs", "ofa captions"):
        for benchmark in BENCHMARKS:
            chosen = [row for row in rows if (row["source"], row["benchmark"]) == (source, benchmark)]
            if chosen:  # a source of real texts may not be at hand
                found[claims.over("subtitles", source, benchmark, "NMI")] = chosen
    return found


def pooled(rows: Sequence[Mapping]) -> intervals.Difference:
    """A measure of texts over seeds, from its row of each seed's ``language_gap`` stage."""
    return intervals.pool_draws(
        [row["value"] for row in rows], [row["draws"] for row in rows], min(row["texts"] for row in rows)
    )


def verdicts(
    profile: Profile, seeds: Sequence[int], notebook: str | None = None, home: Path | None = None
) -> list[Verdict]:
    """The verdicts on the claims of one notebook, or on all ten."""
    chosen: list[Claim] = [claim for claim in claims.CLAIMS if notebook in (None, claim.notebook)]
    found = evidence(profile, seeds, home)
    return [claims.verdict(claim, found, seeds) for claim in chosen]


# ------------------------------------------------------------------------------------- what pages say of it


def score(
    stages: Sequence[Stage], k: int = 1, home: Path | None = None, **which: str
) -> intervals.Difference:
    """R@k of one arm in per cent, one stage per seed, with its interval over seeds and queries."""
    return intervals.paired_difference(100.0 * hits(stages, k, home, **which))


def score_frame(
    profile: Profile, seeds: Sequence[int], arms: Sequence[str], home: Path | None = None
) -> pd.DataFrame:
    """R@1 of the arms at hand: columns arm, benchmark, R@1, low, high (95 %), queries, parameters."""
    import pandas as pd

    rows = []
    for benchmark in BENCHMARKS:
        for arm in arms:
            if not (stages := stages_at_hand(profile, arm, benchmark, seeds)):
                continue
            found = score(stages, home=home)
            low, high = max(found.low, 0.0), min(found.high, 100.0)
            numbers = {"R@1": found.effect, "low": low, "high": high, "queries": found.queries}
            parameters = stages[0].result(home)["parameters"]
            rows.append({"arm": arm, "benchmark": benchmark, **numbers, "parameters": parameters})
    columns = ["arm", "benchmark", "R@1", "low", "high", "queries", "parameters"]
    return pd.DataFrame(rows, columns=columns)


def rates_frame(profile: Profile, slugs: Mapping[str, str]) -> pd.DataFrame:
    """How each arm's learning rate was chosen: arm, best validation R@1 of every rate of the list, rate taken.

    slugs: {name of the arm: its slug}. Scores are missing where the rate was not chosen by ``make rates``.
    """
    import pandas as pd

    known, rows = rates.table(profile.name), []
    for name, slug in slugs.items():
        scores = known.get(slug, {}).get("validation", {})
        columns = {f"{rate:g}": scores.get(f"{rate:g}") for rate in profile.finetune_rates}
        rows.append({"arm": name} | columns | {"taken": f"{rates.chosen(profile, slug):g}"})
    return pd.DataFrame(rows)


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
    """A ``score_frame`` for people: one row per arm, R@1 and its interval on each benchmark."""
    import pandas as pd

    rows = {}
    for row in scores.to_dict("records"):
        shown = rows.setdefault(row["arm"], {"arm": row["arm"]})
        shown[f"{row['benchmark']} R@1"] = row["R@1"]
        shown[f"{row['benchmark']}, 95 %"] = f"{row['low']:.1f} to {row['high']:.1f}"
    return pd.DataFrame(rows.values())


def in_words(scores: pd.DataFrame) -> str:
    """A ``score_frame`` as alt text: "proxy-4 on msrvtt 31.2 (28.1 to 34.3); ..."."""
    parts = [
        f"{row['arm']} on {row['benchmark']} {row['R@1']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
        for row in scores.to_dict("records")
    ]
    return "R@1 with its interval: " + "; ".join(parts)


def leaders(scores: pd.DataFrame, benchmark: str) -> str:
    """The arm with the highest R@1 on a benchmark; several if they are level ("full and proxy-4")."""
    chosen = scores[scores["benchmark"] == benchmark]
    best = chosen[chosen["R@1"] >= chosen["R@1"].max() - 1e-9]["arm"].tolist()
    return best[0] if len(best) == 1 else f"{', '.join(best[:-1])} and {best[-1]}"


def by_order(
    profile: Profile, seeds: Sequence[int], arm: str, other: str, home: Path | None = None
) -> list[dict[str, object]]:
    """``arm`` minus ``other`` in points of R@1: all queries, those that tell the order, those that do not, and by how
    much the difference of the former is larger than that of the latter.

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
    digits, unit = (3, "") if row["metric"] == "NMI" else (1, " pt")
    effect, low, high = (f"{row[key]:+.{digits}f}".replace("-", "−") for key in ("effect", "low", "high"))
    return f"{effect}{unit}", f"{low} to {high}"


def verdict_frame(found: Sequence[Verdict]) -> pd.DataFrame:
    """The table under every page's verdict: one row per claim, the deciding contrast's effect and interval, and how
    many of its contrasts hold."""
    import pandas as pd

    rows = []
    for v in found:
        effect, interval = effect_text(v)
        row = {"#": v.id, "claim": v.claim, "verdict": v.verdict, "effect": effect, "interval": interval}
        row["claimed"] = "> 0" if claims.claim(v.id).contrasts[0].sign > 0 else "< 0"
        row |= {"seeds": len(v.seeds), "queries": v.queries}
        row["hold"] = f"{sum(c.verdict == 'reproduced' for c in v.contrasts)}/{len(v.contrasts)}"
        rows.append(row)
    return pd.DataFrame(rows)


def notes(found: Sequence[Verdict]) -> str:
    """What stands behind each verdict, as a Markdown list: what decided, or what is missing."""
    return "\n".join(f"* Claim {v.id}: {v.note}." for v in found)


def contrast_frame(found: Sequence[Verdict]) -> pd.DataFrame:
    """Every contrast of the claims with its plain 95 % interval and its p-value after Holm's correction."""
    import pandas as pd

    rows = [
        {
            "claim": v.id,
            "contrast": c.name,
            "effect": c.effect,
            "low": c.low,
            "high": c.high,
            "p (Holm)": f"{c.holm:.3f}" if c.holm >= 0.001 else "< 0.001",
            "alone": c.verdict,
        }
        for v in found
        for c in v.contrasts
    ]
    return pd.DataFrame(rows)


def in_a_line(found: Sequence[Verdict]) -> str:
    """Verdicts as a headline: "Claim 6 inconclusive (+1.2 points, −0.4 to +2.8); claim 7 ..."."""
    parts = []
    for v in found:
        effect, interval = effect_text(v)
        effect = f"{effect} NMI" if v.metric == "NMI" else effect.replace("pt", "points")
        parts.append(f"claim {v.id} {v.verdict}" + ("" if v.effect is None else f" ({effect}, {interval})"))
    line = "; ".join(parts)
    return (
        line[0].upper()
        + line[1:]
        + (". Provisional: too few seeds" if any(v.provisional for v in found) else "")
    )


def basis(profile: Profile, seeds: Sequence[int]) -> str:
    """A sentence on what the intervals of a page cover: how many seeds, how many queries, which profile."""
    listed = ", ".join(map(str, seeds))
    queries = "the" if experiments.is_real(profile) else f"{profile.world.test:,}"
    if len(seeds) == 1:
        text = (
            f"One seed ({listed}) and {queries} test queries per benchmark: intervals say how these trained "
            "models would do on other queries, not what another seed would train. Verdicts are provisional."
        )
    else:
        text = (
            f"{len(seeds)} seeds ({listed}), {queries} test queries per benchmark: intervals cover both, in one world "
            "that is drawn once."
        )
    if profile.name == "smoke":
        text += " The smoke profile trains for seconds, to test the machinery: its numbers mean nothing."
    return text


def to_decide(claim: Claim, found: Mapping[Contrast, object]) -> list[dict[str, object]]:
    """What would decide an inconclusive claim, if effects and spreads are as measured; the first row is the answer.

    A single contrast on the other side contradicts a claim. If there is one, the contrast that needs least decides.
    Otherwise all must hold, and the one that needs most decides. Rows: claim, undecided ("1 of 4"), contrast, effect,
    would be (the verdict), seeds (on these queries), queries (for these models), needs (words). The level is
    Bonferroni's, because Holm may ask for it. Estimating a number of seeds takes two seeds or more.
    """
    judged, rows = claims.verdict(claim, found), []
    level = 1 - claims.ALPHA / len(claim.contrasts)
    for contrast, result in zip(claim.contrasts, judged.contrasts, strict=True):
        if result.verdict != "inconclusive":
            continue
        d = claims.difference(found[contrast])
        low, high = d.interval(level)
        seeds = queries = None
        against = contrast.sign * d.effect < 0
        if abs(d.effect) < 1e-9:  # a sum of hits that should be zero may be off by rounding
            needs, order, against = "no effect to size a study by", np.inf, False
        elif d.components and d.seeds > 1:
            seeds = intervals.seeds_to_decide(d, level)
            more = "texts" if contrast.metric == "NMI" else "queries"
            needs, order = (
                (f"{seeds} seeds", seeds) if seeds else (f"more {more}: 100 seeds would not do", 101)
            )
        else:
            queries = order = int(np.ceil(d.queries * ((high - low) / 2 / d.effect) ** 2))
            needs = f"{queries:,} {'texts' if contrast.metric == 'NMI' else 'queries'}"
            needs += "" if d.seeds > 1 else " and a second seed"
        row = {"claim": claim.id, "contrast": contrast.name, "effect": d.effect}
        row |= {"would be": "contradicted" if against else "reproduced", "seeds": seeds}
        rows.append((against, order, {**row, "queries": queries, "needs": needs}))
    rows.sort(key=lambda each: (not each[0], each[1] if each[0] else -each[1]))
    return [{**row, "undecided": f"{len(rows)} of {len(claim.contrasts)}"} for _, _, row in rows]


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
    """A sentence on what the intervals of NMI cover, like ``basis`` for R@1."""
    listed, texts = ", ".join(map(str, seeds)), profile.nmi_texts
    text = f"At most {texts:,} texts per set: intervals say what another draw of texts would give, "
    text += (
        f"in the text encoders of one seed ({listed}). Verdicts are provisional."
        if len(seeds) == 1
        else f"and with it other text encoders ({len(seeds)} seeds: {listed})."
    )
    if profile.name == "smoke":
        text += " The smoke profile trains for seconds, to test the machinery: its numbers mean nothing."
    return text
