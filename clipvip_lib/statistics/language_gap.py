"""How far apart two kinds of text are: NMI of k-means clusters with where the texts came from.

CLIP-ViP's preliminary study (section 3): embed two text sets, cluster their union with k-means, k = 2, and take the
normalised mutual information of cluster and origin. 0: the clusters know nothing of the origin, one language;
1: the clusters are the two sets. The clustering and the NMI are scikit-learn's.

As in the paper, 1,000 texts of each kind are drawn ten times, and the gap is the mean of the ten values. Both kinds
give the same number of texts, because NMI depends on the mix. Each draw is kept: sources and text encoders that see the
same draws are compared draw by draw. Where a pool holds twice the texts of a draw, the spread of the draws is the
standard error of their mean over other pools (a delete-half jackknife: Shao and Wu 1989); of a larger pool it
overstates it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipvip_lib.errors import ClipVipError
from clipvip_lib.retrieval import unit_rows

POOL = 2  # texts of a pool per text of a draw


@dataclass(frozen=True)
class Gap:
    """NMI (0 to 1), or a difference of two. draws: float [R], one for each draw; texts: of each kind in a draw."""

    draws: np.ndarray
    texts: int

    @property
    def value(self) -> float:
        """The mean over the draws."""
        return float(self.draws.mean())

    def __sub__(self, other: Gap) -> Gap:
        """How much further one source is than another, draw by draw on the same texts of the benchmark.

        Raises ClipVipError if the draws differ in number or size.
        """
        if (self.texts, len(self.draws)) != (other.texts, len(other.draws)):
            raise ClipVipError(
                f"a difference of two gaps: expected the same draws, got {len(self.draws)} of {self.texts} texts and "
                f"{len(other.draws)} of {other.texts}; draw as many of both"
            )
        return Gap(self.draws - other.draws, self.texts)


def gap(
    source: object, target: object, texts: int = 1_000, draws: int = 10, restarts: int = 10, seed: int = 0
) -> Gap:
    """The gap between two pools of text features, [n, E] and [m, E].

    texts: how many of each kind a draw takes. seed: of the draws; those of ``target`` do not depend on the source.
    Raises ClipVipError if a pool has fewer texts, widths differ, or numbers are not positive.
    """
    if draws < 1:
        raise ClipVipError(f"NMI: expected at least 1 draw, got {draws}; use 10")
    values = [nmi(*drawn(source, target, texts, seed, draw), restarts, seed) for draw in range(draws)]
    return Gap(np.array(values), texts)


def drawn(source: object, target: object, texts: int, seed: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one draw, ``texts`` of each pool. Raises ClipVipError if a pool has fewer."""
    pools = [np.asarray(source), np.asarray(target)]
    if texts < 2 or min(map(len, pools)) < texts:
        raise ClipVipError(
            f"NMI: expected two texts or more in a draw and no more than a pool has, got draws of {texts} from pools "
            f"of {len(pools[0])} and {len(pools[1])}; draw fewer"
        )
    first, second = (
        pool[np.sort(np.random.default_rng((seed, draw, which)).choice(len(pool), texts, replace=False))]
        for which, pool in enumerate(pools)
    )
    return first, second


def nmi(features_a: object, features_b: object, restarts: int = 10, seed: int = 0) -> float:
    """NMI (0 to 1) of k-means clusters, k = 2, with the set labels, for text features [n, E] and [m, E].

    Rows are scaled to length 1. Raises ClipVipError if a set has fewer than 2 texts, widths differ or restarts < 1.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    a, b = (unit_rows(each, "text features") for each in (features_a, features_b))
    if a.shape[1] != b.shape[1]:
        raise ClipVipError(
            f"expected text features of one width, got {a.shape[1]} and {b.shape[1]}; embed all with one model"
        )
    if min(len(a), len(b)) < 2:
        raise ClipVipError(
            f"NMI: expected two texts or more in each set, got {len(a)} and {len(b)}; give larger sets"
        )
    if restarts < 1:
        raise ClipVipError(f"k-means: expected at least 1 restart, got {restarts}; use 10")
    union = np.concatenate((a, b))
    if (union == union[0]).all():
        return 0.0  # one point: a cluster cannot tell anything (and k-means would warn)
    clusters = KMeans(n_clusters=2, n_init=restarts, random_state=seed).fit_predict(union)
    return float(normalized_mutual_info_score(np.repeat((0, 1), (len(a), len(b))), clusters))
