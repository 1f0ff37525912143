"""NMI of two text sets: 0 for one language, 1 for two, and what lies between, drawn several times."""

from __future__ import annotations

import numpy as np
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.statistics.language_gap import drawn, gap, nmi


def cloud(seed: int, shift: float, n: int = 120, width: int = 8) -> np.ndarray:
    """Texts that point to one side of the sphere; ``shift`` turns them away from it."""
    centre = np.zeros(width)
    centre[0], centre[1] = 1.0, shift
    return centre + np.random.default_rng(seed).normal(0, 0.25, (n, width))


def test_one_language_and_two():
    assert nmi(cloud(0, 0), cloud(1, 0)) < 0.05
    assert nmi(cloud(0, 0), cloud(1, 8)) == pytest.approx(1)


def test_it_grows_with_the_distance():
    values = [nmi(cloud(0, 0), cloud(1, shift)) for shift in (0, 0.4, 0.8, 4)]
    assert values == sorted(values) and values[2] - values[1] > 0.1


def test_it_does_not_depend_on_the_order_of_the_sets_or_their_scale():
    a, b = cloud(0, 0), cloud(1, 0.7)
    assert nmi(a, b) == pytest.approx(nmi(b, a), abs=1e-6)
    assert nmi(a * 3, b) == pytest.approx(nmi(a, b), abs=1e-6)


def test_a_gap_is_the_mean_over_draws_and_steadier_with_more_texts():
    a, b = cloud(0, 0, 800), cloud(1, 0.7, 600)
    few, many = (gap(a, b, texts) for texts in (30, 300))
    assert few.draws.shape == (10,) and few.value == pytest.approx(few.draws.mean()) and few.texts == 30
    assert many.draws.std() < few.draws.std() / 2
    assert few.draws.tolist() == [nmi(*drawn(a, b, 30, 0, draw)) for draw in range(10)]


@pytest.mark.thorough
def test_the_spread_of_draws_is_the_error_of_their_mean_where_a_pool_has_twice_the_texts():
    """The delete-half jackknife, on 200 pools: it must say how far the value lies from that of other pools."""
    found = [gap(cloud(i, 0, 200), cloud(1000 + i, 0.7, 200), 100, restarts=1) for i in range(200)]
    spread = np.std([each.value for each in found], ddof=1)
    assert np.sqrt(np.mean([each.draws.var(ddof=1) for each in found])) == pytest.approx(spread, rel=0.2)


def test_the_difference_of_two_gaps_is_taken_draw_by_draw_on_the_same_texts_of_the_benchmark():
    target = cloud(9, 0)
    far, near = gap(cloud(0, 1.5), target, 80), gap(cloud(1, 0.2, 90), target, 80)
    assert (far - near).draws.tolist() == (far.draws - near.draws).tolist()
    assert (far - near).value > 0.3 and (far - near).texts == 80
    for draw in range(3):
        ours, theirs = (
            drawn(source, target, 80, 0, draw)[1] for source in (cloud(0, 1.5), cloud(1, 0.2, 90))
        )
        assert (ours == theirs).all()
    with pytest.raises(ClipVipError, match="the same draws"):
        far - gap(cloud(1, 0.2), target, 70)


def test_the_same_seed_draws_the_same_texts_and_another_one_others():
    a, b = cloud(0, 0), cloud(1, 0.6, 90)
    assert gap(a, b, 60, seed=2).draws.tolist() == gap(a, b, 60, seed=2).draws.tolist()
    turned = gap(a[:, ::-1], b[:, ::-1], 60, seed=2)  # another encoder: the same texts in every draw
    assert turned.draws == pytest.approx(gap(a, b, 60, seed=2).draws)
    assert gap(a, b, 60, seed=3).draws.tolist() != gap(a, b, 60, seed=2).draws.tolist()


def test_sets_of_one_text_repeated_are_one_language():
    assert nmi(np.ones((5, 3)), np.ones((5, 3))) == 0


def test_bad_input_is_named():
    a = cloud(0, 0)
    for call, words in (
        (lambda: nmi(a, a[:, :4]), "one width"),
        (lambda: nmi(a, a[:1]), "two texts"),
        (lambda: nmi(a, a, restarts=0), "at least 1 restart"),
        (lambda: nmi(np.zeros((3, 2)), a), "not all zeros"),
        (lambda: gap(a, a, 121), "draw fewer"),
        (lambda: gap(a, a[:1], 1), "two texts or more in a draw"),
        (lambda: gap(a, a, 60, draws=0), "at least 1 draw"),
    ):
        with pytest.raises(ClipVipError, match=words):
            call()
