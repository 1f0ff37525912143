"""Intervals: scipy's own where there is one, coverage with a known effect, prediction, power."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clipvip_lib.errors import ClipVipError
from clipvip_lib.statistics.intervals import (
    bootstrap_means,
    crossed_error,
    error_of_mean_squares,
    expected_error,
    expected_interval,
    from_interval,
    paired_difference,
    pool_draws,
    power,
    prediction_interval,
)

EFFECT = 0.05


def hits(rng: np.random.Generator, seeds: int, queries: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Hits (0 or 1) of two arms on the same queries, the first better by EFFECT; ``spread``: of seeds."""
    query, gain = rng.uniform(-0.3, 0.3, queries), rng.uniform(-0.1, 0.1, queries)
    seed = rng.uniform(-1, 1, (seeds, 1)) * np.sqrt(3) * spread
    chance_a, chance_b = 0.40 + EFFECT + query + gain + seed, 0.40 + query
    draws = rng.random((2, seeds, queries))
    return (draws[0] < chance_a) * 1.0, (draws[1] < chance_b) * 1.0


@pytest.mark.parametrize("queries", [300, 1000])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("by_seed", "by_query", "rest", "most"),
    [
        (0.05, 0.1, 0.3, 0.97),  # seeds differ most
        (0.03, 0.3, 0.4, 0.97),  # seeds differ by 3 points, as they did in the first prototype
        (0.005, 0.2, 0.4, 0.97),
        (0.0, 0.5, 0.1, 0.97),  # queries alone differ
        (0.0, 0.0, 0.5, 0.975),  # nothing but noise: a variance floored at 0 errs on the wide side
    ],
)
def test_coverage_of_the_width_is_95_per_cent(seeds, queries, by_seed, by_query, rest, most):
    """20,000 studies with a known effect, drawn as their mean squares (chi-square) and mean (normal)."""
    rng, runs = np.random.default_rng(5), 20_000
    freedoms = (seeds - 1, queries - 1, (seeds - 1) * (queries - 1))
    expected = (queries * by_seed**2 + rest**2, seeds * by_query**2 + rest**2, rest**2)
    squares = [e * rng.chisquare(f, runs) / f for e, f in zip(expected, freedoms, strict=True)]
    true_error = np.sqrt((expected[0] + expected[1] - expected[2]) / (seeds * queries))
    error, freedom = error_of_mean_squares(*squares, seeds, queries)
    covered = np.abs(rng.normal(0, true_error, runs)) <= stats.t.ppf(0.975, freedom) * error
    least = 0.93 if seeds >= 5 else 0.92  # three seeds tell little about how much seeds differ
    assert least <= covered.mean() <= most


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.03), (5, 0.03)])
def test_coverage_on_hits_is_95_per_cent(seeds, spread):
    """The whole procedure, bootstrap included, on hits of 0 and 1."""
    rng = np.random.default_rng(11)
    runs, covered = 500, 0
    for _ in range(runs):
        _, low, high = paired_difference(*hits(rng, seeds, 300, spread), resamples=200)
        covered += low <= EFFECT <= high
    assert 0.93 <= covered / runs <= 0.97


def test_a_plain_percentile_bootstrap_misses_the_effect_too_often_with_few_seeds():
    """Why the width does not come from the draws."""
    rng = np.random.default_rng(11)
    runs, plain, ours = 150, 0, 0
    for _ in range(runs):
        a, b = hits(rng, 3, 300, 0.1)
        low, high = np.quantile(bootstrap_means(a - b, 200, 0), (0.025, 0.975))
        plain += low <= EFFECT <= high
        _, low, high = paired_difference(a, b, resamples=200)
        ours += low <= EFFECT <= high
    assert plain / runs < 0.88 < 0.92 < ours / runs


def test_power_is_what_simulation_finds():
    rng = np.random.default_rng(4)
    components = (0.02**2, 0.1**2, 0.4**2)
    found = 0
    for _ in range(400):
        noise = [s * rng.standard_normal(n) for s, n in ((0.02, (5, 1)), (0.1, (1, 300)), (0.4, (5, 300)))]
        found += paired_difference(EFFECT + sum(noise), resamples=100).low > 0
    predicted = power(EFFECT, components, seeds=5, queries=300)
    assert 0.3 < predicted < 0.99  # a regime in which the comparison can fail
    assert found / 400 == pytest.approx(predicted, abs=0.06)


def test_one_seed_agrees_with_scipys_bootstrap_and_says_what_it_covers():
    rng = np.random.default_rng(0)
    a, b = hits(rng, 1, 800, 0.0)
    ours = paired_difference(a[0], b[0], resamples=4000)
    theirs = stats.bootstrap(
        ((a - b)[0],), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours.effect == pytest.approx((a - b).mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert ours.basis == "queries only (one seed)" and ours.seeds == 1 and ours.queries == 800


def test_without_spread_between_queries_it_is_the_t_interval_over_seeds():
    means = np.array([0.1, 0.3, 0.2, 0.25, 0.05])
    table = np.repeat(means[:, None], 400, axis=1)
    error, freedom, components = crossed_error(table)
    assert (error, freedom) == pytest.approx((stats.sem(means), 4))
    assert components == pytest.approx((means.var(ddof=1), 0, 0))


def test_the_bootstrap_draws_both_seeds_and_queries():
    rows, columns = np.array([0.0, 1.0, 3.0, 0.5]), np.random.default_rng(0).exponential(1, 50)
    by_seed = bootstrap_means(np.repeat(rows[:, None], 50, axis=1), 4000, 0)
    by_query = bootstrap_means(np.repeat(columns[None], 4, axis=0), 4000, 0)
    assert by_seed.std() == pytest.approx(rows.std() / 2, rel=0.05)
    assert by_query.std() == pytest.approx(columns.std() / np.sqrt(50), rel=0.05)
    assert (by_seed.mean(), by_query.mean()) == pytest.approx((rows.mean(), columns.mean()), rel=0.03)
    skewed = paired_difference(np.repeat(columns[None], 4, axis=0))
    assert skewed.above > skewed.below  # a long tail upwards makes the interval longer there


def test_components_are_found_again():
    rng = np.random.default_rng(0)
    table = sum(s * rng.standard_normal(n) for s, n in ((0.5, (40, 1)), (0.3, (1, 900)), (0.7, (40, 900))))
    _, _, components = crossed_error(table)
    assert np.sqrt(components) == pytest.approx((0.5, 0.3, 0.7), rel=0.25)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), seeds=st.integers(1, 6), shift=st.floats(-0.2, 0.2))
def test_intervals_grow_with_their_level_and_turn_with_the_contrast(seed, seeds, shift):
    table = np.random.default_rng(seed).normal(shift, 1, (seeds, 60))
    d = paired_difference(table, resamples=100)
    (low, high), (lower, higher) = d.interval(0.9), d.interval(0.99)
    assert lower < d.low < low < d.effect < high < d.high < higher
    flipped = paired_difference(-table, resamples=100)
    assert (flipped.low, flipped.high) == pytest.approx((-d.high, -d.low))


def test_the_same_seed_gives_the_same_interval():
    a, b = hits(np.random.default_rng(1), 3, 100, 0.02)
    assert paired_difference(a, b, seed=3) == paired_difference(a, b, seed=3)
    assert paired_difference(a, b, seed=3) != paired_difference(a, b, seed=4)


def test_arms_that_do_not_differ():
    d = paired_difference(np.ones((3, 50)), np.ones((3, 50)))
    assert tuple(d) == (0, 0, 0)
    always = paired_difference(np.ones((3, 50)), np.zeros((3, 50)))
    assert tuple(always) == (1, 1, 1)


def test_from_interval_gives_it_back():
    d = from_interval(0.3, 0.1, 0.6)
    assert tuple(d) == pytest.approx((0.3, 0.1, 0.6))
    with pytest.raises(ClipVipError, match="low <= effect <= high"):
        from_interval(0.3, 0.4, 0.5)


def nmi_table(
    rng: np.random.Generator, seeds: int, by_seed: float, by_text: float, rest: float, draws: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Values [S] and draws [S, R] of a measure whose true mean is EFFECT: a draw moves all seeds by its texts
    alike, and every seed a little by itself."""
    seed = by_seed * rng.standard_normal((seeds, 1))
    moved = by_text * rng.standard_normal((1, draws + 1)) + rest * rng.standard_normal((seeds, draws + 1))
    table = EFFECT + seed + moved  # column 0: the texts that were taken; the others: as they are drawn again
    return table[:, 0], table[:, :1] + moved[:, 1:]


@pytest.mark.parametrize(
    ("seeds", "draws"),
    [
        (5, 10),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in [(3, 10), (10, 10), (3, 100), (5, 100), (10, 100)]
        ),
    ],
)
@pytest.mark.parametrize(
    ("by_seed", "by_text", "rest", "most"),
    [
        (0.2, 0.05, 0.1, 0.97),  # encoders differ most, as they do in the study
        (0.05, 0.1, 0.05, 0.98),  # texts count as much: a part of their spread is counted with the seeds'
        (0.0, 0.1, 0.0, 0.97),  # texts alone
    ],
)
def test_coverage_of_pooled_draws(seeds, by_seed, by_text, rest, most, draws):
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(1500):
        d = pool_draws(*nmi_table(rng, seeds, by_seed, by_text, rest, draws), texts=400)
        covered += d.low <= EFFECT <= d.high
    least = 0.93 if seeds >= 5 else 0.92
    assert least <= covered / 1500 <= most


def test_pooling_tells_texts_from_seeds():
    values, draws = nmi_table(np.random.default_rng(0), 400, 0.2, 0.05, 0.1)
    d = pool_draws(values, draws, texts=400)
    between, texts, rest = d.components
    assert np.sqrt(between) == pytest.approx(np.hypot(0.2, 0.1), rel=0.1)
    assert np.sqrt(texts / 400) == pytest.approx(0.05, rel=0.2) and rest == 0
    assert d.seeds == 400 and d.queries == 400 and d.basis == "seeds and texts"


def test_one_seed_has_the_spread_of_its_draws():
    draws = np.random.default_rng(0).normal(0.4, 0.1, (1, 10))
    d = pool_draws([0.4], draws, texts=50)
    reach = stats.t(9).ppf(0.975) * draws.std(ddof=1)
    assert tuple(d) == pytest.approx((0.4, 0.4 - reach, 0.4 + reach))
    assert d.seeds == 1 and d.basis == "texts only (one seed)" and not d.components


def test_pooling_names_what_does_not_fit():
    for values, draws in (([], []), ([0.1], [[0.1, 0.2]] * 2), ([0.1], [0.1, 0.2]), ([0.1], [[0.1]])):
        with pytest.raises(ClipVipError, match="run one seed or more"):
            pool_draws(values, draws)
    with pytest.raises(ClipVipError, match="finite"):
        pool_draws([0.1], [[0.1, np.nan]])


def test_the_interval_that_more_seeds_would_give():
    effects, noise = np.array([0.1, 0.3, 0.5]), np.random.default_rng(0).standard_normal(200)
    apart = pool_draws(effects, effects[:, None] + 0.03 * noise, texts=400)
    error, _ = expected_error(apart.components, 3, 400)
    assert error == pytest.approx(apart.below)  # what was measured
    a, b = hits(np.random.default_rng(2), 3, 400, 0.08)
    for d in (apart, paired_difference(a, b)):
        before = np.inf
        for seeds in (2, 3, 10, 100):
            low, high = expected_interval(d, seeds)
            error, freedom = expected_error(d.components, seeds, d.queries)
            assert (low + high) / 2 == pytest.approx(d.effect)
            assert (high - low) / 2 == pytest.approx(stats.t(freedom).ppf(0.975) * error)
            assert high - low < before
            before = high - low
    given = from_interval(3.0, 2.0, 4.0, seeds=5)
    assert expected_interval(given, 100) == pytest.approx(given.interval(0.95))
    with pytest.raises(ClipVipError, match="2 seeds"):
        expected_interval(paired_difference(a[0], b[0]), 5)


@pytest.mark.parametrize(("known", "further"), ((5, 1), (20, 1), (5, 3)))
def test_a_prediction_interval_holds_further_seeds(known, further):
    rng, held, runs = np.random.default_rng(known), 0, 2000
    for _ in range(runs):
        low, high = prediction_interval(rng.normal(3, 2, known), further)
        held += low <= rng.normal(3, 2, further).mean() <= high
    assert 0.935 <= held / runs <= 0.965


def test_each_seeds_own_effect_is_kept():
    table = np.arange(12.0).reshape(3, 4)
    assert paired_difference(table).by_seed == (1.5, 5.5, 9.5)
    assert pool_draws([0.2, 0.4], np.array([[0.1, 0.3], [0.3, 0.5]])).by_seed == (0.2, 0.4)
    assert pool_draws([0.2], np.array([[0.1, 0.3]])).by_seed == (0.2,)
    with pytest.raises(ClipVipError, match="two seeds"):
        prediction_interval([1.0])


def test_bad_input_is_named():
    cases = [
        (lambda: paired_difference(np.ones((2, 5)), np.ones((3, 5))), "one shape"),
        (lambda: paired_difference(np.ones((2, 1)), np.ones((2, 1))), "two queries"),
        (lambda: paired_difference(np.array([[1, np.nan]])), "finite"),
    ]
    for call, words in cases:
        with pytest.raises(ClipVipError, match=words):
            call()
