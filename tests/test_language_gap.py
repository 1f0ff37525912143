"""NMI of two text sets: 0 for one language, 1 for two, and what lies between with an interval."""

from __future__ import annotations

import numpy as np
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.statistics.language_gap import gap, gap_difference, mean_over_encoders, nmi


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


def test_interval_holds_the_value_and_narrows_with_more_texts():
    few, many = (gap(cloud(0, 0, n), cloud(1, 0.7, n), resamples=40) for n in (60, 400))
    (few_low, few_high), (many_low, many_high) = few.interval(), many.interval()
    assert few_low <= few.value <= few_high and few.texts == 60
    assert many_high - many_low < few_high - few_low


def test_difference_of_two_gaps():
    target = cloud(9, 0)
    d = gap_difference(cloud(0, 1.5), cloud(1, 0.2, 90), target, resamples=40)
    assert d.interval()[0] > 0.3 and d.texts == 90
    low, high = gap_difference(cloud(0, 0.5), cloud(1, 0.5), target, resamples=60).interval()
    assert low < 0 < high


def test_the_same_seed_gives_the_same_numbers_and_the_same_texts():
    a, b = cloud(0, 0), cloud(1, 0.6, 80)
    one, again = gap(a, b, seed=2, resamples=5), gap(a, b, seed=2, resamples=5)
    assert one.value == again.value and one.draws.tolist() == again.draws.tolist()
    turned = gap(a[:, ::-1], b[:, ::-1], seed=2, resamples=5)  # another encoder: the same texts in every draw
    assert turned.draws == pytest.approx(one.draws)


def test_the_mean_over_encoders_is_taken_draw_by_draw():
    a, b = cloud(0, 0), cloud(1, 0.6)
    measures = [gap(a, b, resamples=6), gap(a, 2 * b + 1, resamples=6)]
    mean = mean_over_encoders(measures)
    assert mean.value == pytest.approx((measures[0].value + measures[1].value) / 2)
    assert mean.draws == pytest.approx((measures[0].draws + measures[1].draws) / 2) and mean.texts == 120
    for bad in ([], [measures[0], gap(a[:50], b, resamples=6)]):
        with pytest.raises(ClipVipError, match="the same texts"):
            mean_over_encoders(bad)


def test_sets_of_one_text_repeated_are_one_language():
    assert nmi(np.ones((5, 3)), np.ones((5, 3))) == 0


def test_bad_input_is_named():
    a = cloud(0, 0)
    for call, words in (
        (lambda: nmi(a, a[:, :4]), "one width"),
        (lambda: nmi(a, a[:1]), "two texts"),
        (lambda: nmi(a, a, restarts=0), "at least 1 restart"),
        (lambda: nmi(np.zeros((3, 2)), a), "not all zeros"),
    ):
        with pytest.raises(ClipVipError, match=words):
            call()
