"""How far apart two kinds of text are: NMI of k-means clusters with where the texts came from.

CLIP-ViP's preliminary study: embed two text sets, cluster their union with k-means, k = 2, and take the
normalised mutual information of cluster and origin. 0: the clusters know nothing of the origin, one language;
1: the clusters are the two sets. The clustering and the NMI are scikit-learn's.

Both sets are cut to the same size first (NMI depends on the mix), k-means starts many times, and chance comes from
resampling texts, each resample clustered again from the full set's centres. The draws are kept: text encoders that
see the same draws can be averaged, or compared, draw by draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipvip_lib.errors import ClipVipError
from clipvip_lib.retrieval import unit_rows


@dataclass(frozen=True)
class Resampled:
    """A measure of texts, and what it is on resampled texts.

    value: NMI (0 to 1), or a difference of two. draws: float [R], the same with texts drawn again; two measures made
    with one ``seed`` from sets of the same sizes see the same texts in each draw. texts: the number taken from a set.
    """

    value: float
    draws: np.ndarray
    texts: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high): the bootstrap's percentile interval, stretched to hold the value."""
        low, high = np.quantile(self.draws, (0.5 - level / 2, 0.5 + level / 2))
        return float(min(low, self.value)), float(max(high, self.value))


def mean_over_encoders(measures: Sequence[Resampled]) -> Resampled:
    """The mean of one measure in the feature spaces of several text encoders, draw by draw on the same texts.

    Raises ClipVipError if there are none, or they differ in their texts.
    """
    if len({(each.texts, len(each.draws)) for each in measures}) != 1:
        raise ClipVipError(
            "a mean over text encoders: expected one measure of the same texts per encoder, got "
            f"{[(each.texts, len(each.draws)) for each in measures]} (texts, draws); embed the same texts with each"
        )
    value = float(np.mean([each.value for each in measures]))
    return Resampled(value, np.mean([each.draws for each in measures], axis=0), measures[0].texts)


def nmi(features_a: object, features_b: object, restarts: int = 10, seed: int = 0) -> float:
    """NMI (0 to 1) of k-means clusters, k = 2, with the set labels, for text features [n, E] and [m, E].

    Rows are scaled to length 1; the larger set is cut to the smaller's size by a random choice of ``seed``.
    Raises ClipVipError if a set has fewer than 2 texts, widths differ or restarts < 1.
    """
    a, b = equal_sets(features_a, features_b, seed=seed)
    return clustered_nmi(a, b, restarts, seed)[0]


def gap(
    features_a: object, features_b: object, restarts: int = 10, seed: int = 0, resamples: int = 200
) -> Resampled:
    """``nmi`` with bootstrap draws over the texts of both sets."""
    a, b = equal_sets(features_a, features_b, seed=seed)
    value, centres = clustered_nmi(a, b, restarts, seed)
    rng = np.random.default_rng(seed)
    draws = [clustered_nmi(redraw(a, rng), redraw(b, rng), centres, seed)[0] for _ in range(resamples)]
    return Resampled(value, np.array(draws), len(a))


def gap_difference(
    features_a: object,
    features_b: object,
    target: object,
    restarts: int = 10,
    seed: int = 0,
    resamples: int = 200,
) -> Resampled:
    """NMI(a, target) - NMI(b, target): how much further ``a`` is from ``target`` than ``b`` is.

    Paired: all three sets are cut to one size, and both NMIs of a draw see the same texts of ``target``.
    """
    a, b, target = equal_sets(features_a, features_b, target, seed=seed)
    (first, centres_a), (second, centres_b) = (clustered_nmi(x, target, restarts, seed) for x in (a, b))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        common = redraw(target, rng)
        one = clustered_nmi(redraw(a, rng), common, centres_a, seed)[0]
        draws.append(one - clustered_nmi(redraw(b, rng), common, centres_b, seed)[0])
    return Resampled(first - second, np.array(draws), len(a))


def redraw(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many rows, drawn with replacement."""
    return rows[rng.integers(0, len(rows), len(rows))]


def equal_sets(*sets: object, seed: int) -> tuple[np.ndarray, ...]:
    """The sets with unit rows and as many texts as the smallest has, chosen at random."""
    rows = [unit_rows(each, "text features") for each in sets]
    widths = {each.shape[1] for each in rows}
    if len(widths) > 1:
        raise ClipVipError(
            f"expected text features of one width, got {sorted(widths)}; embed all with one model"
        )
    size = min(len(each) for each in rows)
    if size < 2:
        raise ClipVipError(f"NMI: expected two texts or more in each set, got {size}; give larger sets")
    rng = np.random.default_rng(seed)
    return tuple(x if len(x) == size else x[np.sort(rng.choice(len(x), size, replace=False))] for x in rows)


def clustered_nmi(
    a: np.ndarray, b: np.ndarray, start: int | np.ndarray, seed: int
) -> tuple[float, np.ndarray]:
    """(NMI, cluster centres [2, E]); ``start``: how many k-means restarts, or the centres to begin at."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    if isinstance(start, int) and start < 1:
        raise ClipVipError(f"k-means: expected at least 1 restart, got {start}; use 10")
    options = {"n_init": start} if isinstance(start, int) else {"init": start, "n_init": 1}
    union = np.concatenate((a, b))
    if (union == union[0]).all():
        return 0.0, union[:2]  # one point: a cluster cannot tell anything (and k-means would warn)
    clusters = KMeans(n_clusters=2, random_state=seed, **options).fit(union)
    origin = np.repeat((0, 1), (len(a), len(b)))
    return float(normalized_mutual_info_score(origin, clusters.labels_)), clusters.cluster_centers_
