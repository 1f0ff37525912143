"""The paper's claims as statements that can be decided, declared before they are tested.

* A claim of the paper is one to four statements. A statement is a sentence and its contrasts: weighted sums of arms
  on the same test queries (mostly one arm minus another), on both benchmarks where the paper has both.
* Most statements say that something is larger: every contrast lies above zero. One says that something is level:
  every contrast lies within the margin of zero.
* ``verdicts.py`` judges them. Nothing here knows a result. Change a row only before the run that tests it.

Source of the statements: CLIP-ViP (arXiv 2209.06430), sections 3 (1 to 5), 4 and 5 (6 to 11).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from clipvip_lib.data.benchmarks import BENCHMARKS
from clipvip_lib.errors import unknown
from clipvip_lib.omnisource import RELEASED

CORPORA = ("webvid-2.5m", "hdvila-10m", "hdvila-100m")
LOSS_ARMS = ("V-S", "V-S + F-C", "V-S + V-C", "V-S + V-C + F-C", "V-S,C", "V-S,C + F-C")
TEXT_ARMS = ("no texts", "subtitles", "captions", "both texts")  # four proxies, post-pretrained on these
METHOD_ARMS = ("clip4clip", "clip-vip")  # mean pooling, not post-pretrained; proxies with V-S,C + F-C
TEXT_SOURCES = ("subtitles", "ofa captions", "alt-text", "caption pairs")

RECALL, R1, NMI = "average recall", "R@1", "NMI"
#: Of what size a difference matters. Recall: a point, less than half of the smallest loss that the paper's figure of
#: data scales reports at its end (65.1 to 62.8, in the average of R@1, R@5 and R@10). NMI: a twentieth of its scale.
MARGIN = {RECALL: 1.0, R1: 1.0, NMI: 0.05}


class Measure(NamedTuple):
    """One measured column: which arm, where, under which scoring."""

    arm: str
    benchmark: str
    scoring: str = "simple"

    def __str__(self) -> str:
        extra = "" if self.scoring == "simple" else f" with {self.scoring}"
        return f"{self.arm}{extra} on {self.benchmark}"


@dataclass(frozen=True)
class Contrast:
    """``more`` minus ``less``, two measures on the same queries."""

    name: str
    more: Measure
    less: Measure


@dataclass(frozen=True)
class Statement:
    """A sentence that its contrasts decide. level: not that they lie above zero is claimed but that they lie within
    the margin of it. metric: RECALL (the average of R@1, R@5 and R@10, as in the paper's figure) or NMI."""

    id: str
    sentence: str
    contrasts: tuple[Contrast, ...]
    level: bool = False
    metric: str = RECALL

    @property
    def claim(self) -> int:
        """The number of the claim that it belongs to."""
        return int(self.id.rstrip("abcde"))

    @property
    def margin(self) -> float:
        """From where on a difference matters, in points or NMI."""
        return MARGIN[self.metric]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the notebook that asks for it."""

    id: int
    sentence: str
    notebook: str
    statements: tuple[Statement, ...]


def over(left: str, right: str, benchmarks: tuple[str, ...] = BENCHMARKS) -> tuple[Contrast, ...]:
    """``left`` minus ``right``, on each benchmark."""
    return tuple(
        Contrast(f"{left} over {right}, {b}", Measure(left, b), Measure(right, b)) for b in benchmarks
    )


def checkpoint(corpus: str, which: str) -> str:
    """Name of the arm that was post-pretrained on a corpus up to its ``first`` or ``last`` checkpoint."""
    return f"{corpus}@{which}"


def _by_size(which: str) -> tuple[Contrast, ...]:
    """Of each two neighbours in size, the larger corpus over the smaller one, at one checkpoint."""
    pairs = ((MIDDLE, SMALL), (LARGE, MIDDLE))
    return tuple(c for pair in pairs for c in over(*(checkpoint(name, which) for name in pair), MSRVTT))


def _dsl(arm: str) -> tuple[Contrast, ...]:
    """DSL scoring over simple scoring of one arm."""
    return tuple(
        Contrast(f"{arm}: DSL over simple, {b}", Measure(arm, b, "dsl"), Measure(arm, b)) for b in BENCHMARKS
    )


SMALL, MIDDLE, LARGE = CORPORA
MSRVTT = ("msrvtt",)  # where the paper looked at data scales
CLIP4CLIP, CLIP_VIP = METHOD_ARMS
PAPERS_WITH_CAPTIONS = ("V-S + F-C", "V-S + V-C", "V-S + V-C + F-C", RELEASED)
NOTHING, SUBTITLES, CAPTIONS, BOTH = TEXT_ARMS


def _end(corpus: str) -> str:
    return checkpoint(corpus, "last")


CLAIMS = (
    Claim(
        1,
        "Post-pretraining on a small corpus over-fits.",
        "01_data_size",
        (
            Statement(
                "1a",
                f"Post-pretrained on {SMALL}, mean pooling ends below no post-pretraining.",
                over(CLIP4CLIP, _end(SMALL), MSRVTT),
            ),
            Statement(
                "1b",
                f"Post-pretrained on {MIDDLE}, mean pooling ends below no post-pretraining.",
                over(CLIP4CLIP, _end(MIDDLE), MSRVTT),
            ),
        ),
    ),
    Claim(
        2,
        "The smaller the corpus, the more it over-fits.",
        "01_data_size",
        (
            Statement(
                "2a", "At the first common checkpoint the smaller corpus is lower.", _by_size("first")
            ),
            Statement("2b", "At the end the smaller corpus is lower.", _by_size("last")),
        ),
    ),
    Claim(
        3,
        "A large, diverse corpus helps.",
        "01_data_size",
        (
            Statement(
                "3a", f"Post-pretraining on {LARGE} ends above no post-pretraining.",
                over(_end(LARGE), CLIP4CLIP, MSRVTT),
            ),
            Statement(
                "3b", f"Post-pretraining on {LARGE} ends above both smaller corpora.",
                tuple(c for other in (SMALL, MIDDLE) for c in over(_end(LARGE), _end(other), MSRVTT)),
            ),
        ),
    ),
    Claim(
        4,
        "Subtitles are further from people's captions than other texts are.",
        "02_language_gap",
        (
            Statement("4a", "Subtitles are further (NMI) than alt-text.", over("subtitles", "alt-text"), metric=NMI),
            Statement(
                "4b", "Subtitles are further (NMI) than caption pairs.", over("subtitles", "caption pairs"), metric=NMI
            ),
        ),
    ),
    Claim(
        5,
        "OFA captions are nearer to people's captions than subtitles are.",
        "03_ofa_captions",
        (
            Statement(
                "5", "Subtitles are further (NMI) than OFA captions.", over("subtitles", "ofa captions"), metric=NMI
            ),
        ),
    ),
    Claim(
        6,
        "Video proxies beat full attention.",
        "04_video_proxy",
        (Statement("6", "Four proxies beat full attention.", over("proxy-4", "full")),),
    ),
    Claim(
        7,
        "Video proxies beat mean pooling, and several beat one.",
        "04_video_proxy",
        (
            Statement("7a", "Four proxies beat mean pooling.", over("proxy-4", "mean_pool")),
            Statement("7b", "Four proxies beat one.", over("proxy-4", "proxy-1")),
        ),
    ),
    Claim(
        8,
        "Losses with captions beat subtitles alone.",
        "05_ocl_losses",
        tuple(
            Statement(f"8{letter}", f"{loss} beats V-S.", over(loss, "V-S"))
            for letter, loss in zip("abcd", PAPERS_WITH_CAPTIONS, strict=True)
        ),
    ),
    Claim(
        9,
        f"{RELEASED} is the best loss, and the others with captions are near it.",
        "05_ocl_losses",
        tuple(
            Statement(
                number, sentence, tuple(c for loss in PAPERS_WITH_CAPTIONS[:-1] for c in over(RELEASED, loss)), level
            )
            for number, sentence, level in (
                ("9a", f"{RELEASED} beats the other losses with captions.", False),
                ("9b", f"The other losses with captions lie within a point of {RELEASED}.", True),
            )
        ),
    ),
    Claim(
        10,
        "CLIP-ViP beats CLIP4Clip, and DSL adds to it.",
        "06_clip_vip",
        (
            Statement("10a", "CLIP-ViP beats CLIP4Clip's mean pooling.", over(CLIP_VIP, CLIP4CLIP)),
            Statement("10b", "DSL scoring raises CLIP-ViP's recall.", _dsl(CLIP_VIP)),
        ),
    ),
    Claim(
        11,
        "Post-pretraining needs both texts.",
        "05_ocl_losses",
        tuple(
            Statement(
                f"11{letter}", f"With four proxies, post-pretraining on both texts beats {said}.", over(BOTH, arm)
            )
            for letter, arm, said in (
                ("a", NOTHING, "none"),
                ("b", SUBTITLES, "subtitles alone"),
                ("c", CAPTIONS, "captions alone"),
            )
        ),
    ),
)  # fmt: skip
STATEMENTS = tuple(statement for claim in CLAIMS for statement in claim.statements)
CONTRASTS = tuple(dict.fromkeys(contrast for statement in STATEMENTS for contrast in statement.contrasts))


def measures(statements: Iterable[Statement]) -> tuple[Measure, ...]:
    """Whose hits some statements are about."""
    found = (m for s in statements if s.metric != NMI for c in s.contrasts for m in (c.more, c.less))
    return tuple(dict.fromkeys(found))


MEASURES = measures(STATEMENTS)


def metric_of(contrast: Contrast) -> str:
    """In which metric a contrast is judged."""
    return next(s.metric for s in STATEMENTS if contrast in s.contrasts)


def claim(number: int) -> Claim:
    """The claim with this id (1 to 11). Raises ClipVipError for another."""
    found = {str(c.id): c for c in CLAIMS}
    if str(number) not in found:
        raise unknown("claim", number, found)
    return found[str(number)]


def statement(name: str) -> Statement:
    """The statement with this id, such as "7a". Raises ClipVipError for another."""
    found = {s.id: s for s in STATEMENTS}
    if name not in found:
        raise unknown("statement", name, found)
    return found[name]
