"""The paper's numbers that were verified, as data with their sources; everything else reads NOT VERIFIED.

Verified means: read in the authors' code, in an author's reply, or in a later paper's table that quotes it.
Pages ask here and never type a number; a lookup that finds nothing gives the two words, not an error and not
a guess.

Paper: CLIP-ViP, arXiv 2209.06430, ICLR 2023. Code: microsoft/XPretrain, folder CLIP-ViP, commit c37c904.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOT_VERIFIED = "NOT VERIFIED"

QUOTED = "quoted by VidLA (CVPR 2024, tables 2-3), VALOR, DITS or MARS"
AUTHOR_13 = "the author in XPretrain#13"


@dataclass(frozen=True)
class Result:
    """R@1, R@5, R@10 in per cent. scoring: simple or dsl; setting: fine-tuned or zero-shot."""

    benchmark: str
    model: str
    scoring: str
    recall: tuple[float, float, float]
    source: str
    method: str = "CLIP-ViP"
    direction: str = "text_to_video"
    setting: str = "fine-tuned"
    note: str = ""


RESULTS = (
    Result("msrvtt", "B/32", "simple", (50.1, 74.8, 84.6), AUTHOR_13),
    Result("msrvtt", "B/32", "dsl", (55.9, 77.0, 86.8), AUTHOR_13),
    Result("msrvtt", "B/16", "simple", (54.2, 77.2, 84.8), QUOTED),
    Result("msrvtt", "B/16", "dsl", (57.7, 80.5, 88.2), QUOTED),
    Result("didemo", "B/32", "simple", (48.6, 77.1, 84.4), QUOTED),
    Result("didemo", "B/32", "dsl", (53.8, 79.6, 86.5), QUOTED),
    Result("didemo", "B/16", "simple", (50.5, 78.4, 87.1), QUOTED),
    Result("didemo", "B/16", "dsl", (55.3, 82.0, 89.3), QUOTED),
    Result("activitynet", "B/32", "simple", (51.1, 78.4, 88.3), QUOTED),
    Result("activitynet", "B/32", "dsl", (59.1, 83.9, 91.3), QUOTED),
    Result("activitynet", "B/16", "simple", (53.4, 81.4, 90.0), QUOTED),
    Result("activitynet", "B/16", "dsl", (61.4, 85.7, 92.6), QUOTED),
    Result("lsmdc", "B/32", "simple", (25.6, 45.3, 54.4), QUOTED),
    Result("lsmdc", "B/16", "simple", (29.4, 50.6, 59.0), QUOTED),
    Result("lsmdc", "B/16", "dsl", (30.7, 51.4, 60.6), QUOTED),
    Result(
        "msrvtt",
        "B/32",
        "simple",
        (49.1, 76.2, 84.0),
        AUTHOR_13,
        direction="video_to_text",
        note="495, 768, 847 of 1008: ties counted twice",
    ),
    Result(
        "msrvtt",
        "B/32",
        "simple",
        (31.5, 53.9, 63.4),
        "the author in XPretrain#15",
        setting="zero-shot",
        note="after one epoch of post-pretraining",
    ),
    Result("msrvtt", "B/16", "simple", (31.7, 53.8, 63.2), "the author in XPretrain#26", setting="zero-shot"),
    Result(
        "msrvtt",
        "B/32",
        "simple",
        (43.1, 70.4, 80.8),
        "CLIP4Clip (arXiv 2104.08860)",
        method="CLIP4Clip mean pooling",
    ),
)
# Figure of section 3: the average of R@1, R@5 and R@10 on MSR-VTT after fine-tuning mean pooling (ViT-B/32), by corpus
# and share of an epoch of HD-VILA-100M. first: at 45 %, where WebVid's curve ends; last: at 100 %.
NOT_POSTPRETRAINED = 65.1
DATA_SCALES = {
    "webvid-2.5m": {"first": 63.0},
    "hdvila-10m": {"first": 64.7, "last": 62.8},
    "hdvila-100m": {"first": 65.2, "last": 65.7},
}
CORPUS_NAMES = {"webvid-2.5m": "WebVid-2.5M", "hdvila-10m": "HD-VILA-10M", "hdvila-100m": "HD-VILA-100M"}
BENCHMARK_NAMES = {
    "msrvtt": "MSR-VTT 1k-A",
    "didemo": "DiDeMo",
    "activitynet": "ActivityNet",
    "lsmdc": "LSMDC",
}


def find(
    benchmark: str,
    model: str = "B/32",
    scoring: str = "simple",
    *,
    method: str = "CLIP-ViP",
    direction: str = "text_to_video",
    setting: str = "fine-tuned",
) -> Result | None:
    """The verified result with these names, or None."""
    asked = (benchmark, model, scoring, method, direction, setting)
    for r in RESULTS:
        if (r.benchmark, r.model, r.scoring, r.method, r.direction, r.setting) == asked:
            return r
    return None


def number(benchmark: str, metric: str = "R@1", **names: str) -> float | str:
    """A verified R@1, R@5 or R@10 in per cent, or the words NOT VERIFIED; names as in ``find``.

    Example: ``number("msrvtt", "R@1", model="B/16", scoring="dsl")`` is 57.7.
    """
    found = find(benchmark, **names)
    places = {"R@1": 0, "R@5": 1, "R@10": 2}
    return found.recall[places[metric]] if found and metric in places else NOT_VERIFIED


def text(benchmark: str, metric: str = "R@1", **names: str) -> str:
    """``number`` as a page prints it: one decimal, or NOT VERIFIED."""
    value = number(benchmark, metric, **names)
    return value if isinstance(value, str) else f"{value:.1f}"


def results_table() -> list[dict[str, str]]:
    """Rows for a page: benchmark by model and scoring, "R@1 / R@5 / R@10", text-to-video, fine-tuned."""
    columns = [(model, scoring) for model in ("B/32", "B/16") for scoring in ("simple", "dsl")]
    rows = []
    for benchmark, title in BENCHMARK_NAMES.items():
        row = {"benchmark": title}
        for model, scoring in columns:
            found = find(benchmark, model, scoring)
            name = model if scoring == "simple" else f"{model} + DSL"
            row[name] = " / ".join(f"{r:.1f}" for r in found.recall) if found else NOT_VERIFIED
        rows.append(row)
    return rows


def other_results_table() -> list[dict[str, str]]:
    """Rows for a page: what is verified beside that table (video-to-text, zero-shot, the baseline)."""
    rows = []
    for r in RESULTS:
        if (r.method, r.direction, r.setting) != ("CLIP-ViP", "text_to_video", "fine-tuned"):
            rows.append(
                {
                    "method": f"{r.method} {r.model}",
                    "benchmark": BENCHMARK_NAMES[r.benchmark],
                    "setting": f"{r.setting}, {r.direction.replace('_', '-')}",
                    "R@1 / R@5 / R@10": " / ".join(f"{value:.1f}" for value in r.recall),
                    "note": r.note,
                    "source": r.source,
                }
            )
    return rows


# The paper without units, for study/regime.py: its recipe as ratios (from the configs and sizes of data), ...
REGIME = {
    "clips of the large, medium and small corpus": "40 : 4 : 1",
    "passes over the smallest corpus": "40",
    "pairs seen in fine-tuning / in post-pretraining": "0.009",
    "pairs seen by CLIP / in post-pretraining": "128",
    "peak rate of fine-tuning / of post-pretraining": "0.2",
    "peak rate of post-pretraining / of CLIP's own training": "0.01",
    "rate of new parameters / of CLIP's, in post-pretraining": "1",
}
# ... and its effects on MSR-VTT, (before, after): R@1 of zero-shot CLIP by the tables that quote it, the author's and
# CLIP4Clip's numbers above, and the figure of data scales.
EFFECTS = {
    "CLIP, zero-shot to fine-tuned (mean pooling)": (31.0, 43.1),
    "zero-shot, CLIP to CLIP-ViP": (31.0, 31.5),
    "fine-tuned, CLIP4Clip to CLIP-ViP": (43.1, 50.1),
    "post-pretraining on the largest corpus with subtitles, mean pooling, fine-tuned": (
        NOT_POSTPRETRAINED,
        DATA_SCALES["hdvila-100m"]["last"],
    ),
}


def effect(contrasts: Sequence[Mapping[str, object]], metric: str) -> float | None:
    """The paper's smallest effect among a statement's contrasts, in points of the average recall or of R@1, where it
    follows from verified numbers; else None.

    contrasts: rows with "name" as in ``statistics/claims.py``.
    """
    known = [_effects(metric).get(str(row["name"])) for row in contrasts]
    return min((value for value in known if value is not None), default=None)


@functools.cache
def _effects(metric: str) -> dict[str, float]:
    found = {}
    places = (0, 1, 2) if metric == "average recall" else (0,) if metric == "R@1" else ()
    if not places:
        return found

    def recall(benchmark: str, **names: str) -> float | None:
        result = find(benchmark, **names)
        return sum(result.recall[place] for place in places) / len(places) if result else None

    for benchmark in ("msrvtt", "didemo"):
        method, dsl = recall(benchmark), recall(benchmark, scoring="dsl")
        baseline = recall(benchmark, method="CLIP4Clip mean pooling")
        found[f"clip-vip: DSL over simple, {benchmark}"] = dsl - method
        if baseline is not None:
            found[f"clip-vip over clip4clip, {benchmark}"] = method - baseline
    if metric == "average recall":  # the figure's only metric
        points = {f"{name}@{which}": value for name, at in DATA_SCALES.items() for which, value in at.items()}
        points["clip4clip"] = NOT_POSTPRETRAINED
        found |= {
            f"{a} over {b}, msrvtt": x - y for a, x in points.items() for b, y in points.items() if a != b
        }
    return found


@dataclass(frozen=True)
class Published:
    """What a study of the paper did and concluded; values: NOT VERIFIED, or where they are."""

    notebook: str
    setup: str
    conclusion: str
    values: str = NOT_VERIFIED


PUBLISHED = (
    Published(
        "01_data_size",
        "CLIP4Clip mean pooling, ViT-B/32, 12 frames, post-pretrained on WebVid-2.5M, HD-VILA-10M (a random "
        "subset) and HD-VILA-100M, each for the steps of one epoch of HD-VILA-100M; checkpoints fine-tuned "
        "on MSR-VTT",
        "on the two smaller corpora post-pretraining ends below none, the smaller the sooner; on the largest it "
        "gains; use large, diverse data",
        "the points of its figure (DATA_SCALES)",
    ),
    Published(
        "02_language_gap",
        "CLIP text features, k-means with k = 2 on the union of two text sets, NMI of cluster and set; "
        "HD-VILA subtitles, WebVid, MS-COCO and CC12M against MSR-VTT and DiDeMo",
        "HD-VILA's subtitles are by far the furthest from both; hence auxiliary captions",
    ),
    Published(
        "03_ofa_captions",
        "OFA-Caption on the middle frame of each clip, large caption weights (XPretrain#22), at most 16 "
        "generated tokens",
        "captions as an auxiliary source of text",
    ),
    Published(
        "04_video_proxy",
        "MeanPool, SeqTransformer, Full Attention and proxies with several M; each post-pretrained one epoch "
        "on HD-VILA-100M, fine-tuned on MSR-VTT and DiDeMo; default M = 4",
        "proxies beat full attention and mean pooling",
    ),
    Published(
        "05_ocl_losses",
        "baseline V-S; V-S + F-C; V-S + V-C; V-S + V-C + F-C; V-S,C + F-C",
        "all variants with captions are near each other and well above subtitles alone; V-S,C + F-C is the "
        "released default",
    ),
)


def published(notebook: str) -> Published | None:
    """What the paper did and concluded in the study that a notebook repeats, or None."""
    return next((f for f in PUBLISHED if f.notebook == notebook), None)
