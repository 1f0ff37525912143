"""Retrieval: ranks by hand, ties, chunks against the full matrix, DSL, QB-Norm."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.retrieval import (
    QueryRanks,
    dsl,
    dsl_over_candidates,
    join_ranks,
    metrics,
    positive_lists,
    ranks,
    ranks_of_scores,
    retrieve,
    similarity,
    top_k,
    unit_rows,
)


def columns(r: QueryRanks) -> list[list[int]]:
    return [r.better.tolist(), r.tied.tolist(), r.positives.tolist()]


def average_over_orders(scores: list[float], positives: set[int], k: int) -> tuple[float, float]:
    """Success at k and rank of the first positive, averaged over every order of the candidates before a
    stable sort: the definition that ``QueryRanks`` computes in closed form."""
    hits, places = [], []
    for order in itertools.permutations(range(len(scores))):
        ranking = sorted(order, key=lambda c: -scores[c])
        place = min(ranking.index(p) for p in positives) + 1
        hits.append(place <= k)
        places.append(place)
    return float(np.mean(hits)), float(np.mean(places))


def authors_metrics(x: np.ndarray) -> dict[str, float]:
    """What the authors' release computes from a square matrix: every candidate that scores like the positive
    makes a row (rewritten from the description of its fault)."""
    places = []
    for q, row in enumerate(x):
        ordered = np.sort(-row)
        places += [place + 1 for place, value in enumerate(ordered) if value == -row[q]]
    recall = {f"R@{k}": 100 * float(np.mean([p <= k for p in places])) for k in (1, 5, 10)}
    return {**recall, "MdR": float(np.median(places)), "MnR": float(np.mean(places))}


def planted(seed: int, queries: int, candidates: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Features in which some candidates are copies of others (exact ties), and positives, one or more."""
    rng = np.random.default_rng(seed)
    c = rng.standard_normal((candidates, 5)).astype(np.float32)
    copies = rng.integers(0, candidates, candidates // 2)
    c[rng.choice(candidates, len(copies), replace=False)] = c[copies]
    q = rng.standard_normal((queries, 5)).astype(np.float32)
    targets = [
        rng.choice(candidates, rng.integers(1, min(3, candidates) + 1), replace=False) for _ in range(queries)
    ]
    return q, c, [t.tolist() for t in targets]


def test_a_hand_made_matrix():
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.9], [0.3, 0.3, 0.3]])
    found = ranks_of_scores(scores, [0, 1, 2])
    assert columns(found) == [[0, 2, 0], [0, 0, 2], [1, 1, 1]]
    assert found.hits(1).tolist() == pytest.approx([1, 0, 1 / 3])
    assert found.hits(2).tolist() == pytest.approx([1, 0, 2 / 3])
    assert found.expected().tolist() == [1, 3, 2]
    got = metrics(found)
    assert got == pytest.approx({"R@1": 400 / 9, "R@5": 100, "R@10": 100, "MdR": 2, "MnR": 2, "queries": 3})


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=6),
    data=st.data(),
)
def test_ties_are_the_average_over_all_orders(scores, data):
    positives = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1))
    k = data.draw(st.integers(1, 6))
    found = ranks_of_scores(np.array([scores]), [sorted(positives)])
    hit, place = average_over_orders(scores, positives, k)
    assert found.hits(k)[0] == pytest.approx(hit)
    assert found.expected()[0] == pytest.approx(place)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 12),
    candidates=st.integers(2, 15),
    chunk=st.integers(1, 13),
    scoring=st.sampled_from(["simple", "dsl"]),
)
def test_chunks_equal_the_full_matrix(seed, queries, candidates, chunk, scoring):
    q, c, targets = planted(seed, queries, candidates)
    full = similarity(q, c)
    full = dsl(full) if scoring == "dsl" else full
    expected = ranks_of_scores(full, targets, relative=scoring == "dsl")
    assert columns(ranks(q, c, targets, scoring=scoring, chunk=chunk)) == columns(expected)


def test_copies_of_a_candidate_are_ties_whatever_the_chunk():
    rng = np.random.default_rng(3)
    c = np.repeat(rng.standard_normal((30, 64)).astype(np.float32), 3, axis=0)[rng.permutation(90)]
    q = rng.standard_normal((50, 64)).astype(np.float32)
    for chunk in (1, 7, 50):
        assert (ranks(q, c, rng.integers(0, 90, 50), chunk=chunk).tied == 2).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12))
def test_authors_tie_rule(seed, n):
    x = np.random.default_rng(seed).integers(0, 4, (n, n)) / 4
    got = metrics(ranks_of_scores(x, np.arange(n)), ties="authors")
    assert {key: got[key] for key in ("R@1", "R@5", "R@10", "MdR", "MnR")} == pytest.approx(
        authors_metrics(x)
    )


def test_the_authors_count_ties_as_rows():
    x = np.eye(10)
    x[3] = x[4]  # a pair of like sentences
    x[4, 3] = x[3, 3] = 1
    found = ranks_of_scores(x, np.arange(10))
    assert len(found.authors_rows()) == 12
    assert metrics(found, ties="authors")["R@1"] == pytest.approx(1000 / 12)
    assert metrics(found)["R@1"] == pytest.approx(90)


def test_without_ties_both_rules_agree():
    x = np.random.default_rng(0).standard_normal((40, 40))
    found = ranks_of_scores(x, np.arange(40))
    assert metrics(found) == pytest.approx(metrics(found, ties="authors"))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_targets_in_three_forms(seed):
    q, c, targets = planted(seed, 6, 9)
    table = np.zeros((6, 9), dtype=bool)
    for row, positives in enumerate(targets):
        table[row, positives] = True
    assert columns(ranks(q, c, targets)) == columns(ranks(q, c, table))
    one = [positives[:1] for positives in targets]
    assert columns(ranks(q, c, one)) == columns(ranks(q, c, np.array(one)[:, 0]))


def test_several_sentences_a_video_in_both_directions():
    rng = np.random.default_rng(5)
    video, of_text = rng.standard_normal((7, 8)), np.array([2, 0, 2, 5, 0, 0, 6])
    text = video[of_text] + 0.8 * rng.standard_normal((7, 8))
    got = retrieve(text, video, of_text)
    scores = similarity(text, video)
    assert columns(got["text_to_video"]) == columns(ranks_of_scores(scores, of_text))
    asked = [0, 2, 5, 6]  # videos without a text are not queries, but still candidates
    positives = [np.flatnonzero(of_text == v).tolist() for v in asked]
    assert columns(got["video_to_text"]) == columns(ranks_of_scores(scores.T[asked], positives))


def test_dsl_by_hand_runs_over_the_queries():
    x = np.array(
        [[0.50, 0.49], [0.52, 0.10]]
    )  # video 0 is near to both texts; DSL gives text 0 the other one
    assert ranks_of_scores(x, [1, 0]).better.tolist() == [1, 0]
    assert ranks_of_scores(dsl(x), [1, 0], relative=True).better.tolist() == [0, 0]
    prior = np.exp(100 * x) / np.exp(100 * x).sum(axis=0)
    assert dsl(x) == pytest.approx(x * prior, rel=1e-12)


def test_dsl_axis_of_each_direction():
    rng = np.random.default_rng(1)
    text, video = rng.standard_normal((30, 6)), rng.standard_normal((30, 6))
    target, s = np.arange(30), similarity(text, video)
    ours, theirs = (retrieve(text, video, target, scoring=name) for name in ("dsl", "dsl_authors"))
    over_texts, over_videos = dsl(s), dsl(s.T)
    assert columns(ours["text_to_video"]) == columns(ranks_of_scores(over_texts, target, relative=True))
    assert columns(ours["video_to_text"]) == columns(ranks_of_scores(over_videos, target, relative=True))
    assert columns(theirs["text_to_video"]) == columns(ours["text_to_video"])
    assert columns(theirs["video_to_text"]) == columns(ranks_of_scores(over_texts.T, target, relative=True))
    assert columns(theirs["video_to_text"]) != columns(ours["video_to_text"])


def test_the_authors_axis_changes_no_video_to_text_rank_where_scores_are_positive():
    rng = np.random.default_rng(2)
    s = rng.uniform(0.05, 0.6, (25, 25))  # videos x texts
    target = np.arange(25)
    plain = columns(ranks_of_scores(s, target))
    assert columns(ranks_of_scores(dsl_over_candidates(s), target, relative=True)) == plain
    assert columns(ranks_of_scores(dsl(s), target, relative=True)) != plain


def test_dsl_keeps_apart_what_float32_would_tie():
    s = np.array([[-0.9, -0.95, 0.1], [1.0, 1.0, 0.2]])
    assert ranks_of_scores(dsl(s), [0, 0], relative=True).tied.tolist() == [0, 1]
    assert (dsl(s)[0, :2] != 0).all()


def naive_qb_norm(bank: np.ndarray, test: np.ndarray, beta: float) -> np.ndarray:
    """Query by query, as the paper describes it."""
    hubs = {int(row.argmax()) for row in bank}
    total = [sum(np.exp(beta * row[c]) for row in bank) for c in range(test.shape[1])]
    out = []
    for row in test:
        hub = int(row.argmax()) in hubs
        out.append([np.exp(beta * s) / total[c] if hub else s for c, s in enumerate(row)])
    return np.array(out)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 9))
def test_qb_norm_equals_the_naive_form(seed, chunk):
    rng = np.random.default_rng(seed)
    q, c, bank = (rng.standard_normal((n, 4)) for n in (9, 6, 5))
    targets = rng.integers(0, 6, 9)
    naive = naive_qb_norm(similarity(bank, c), similarity(q, c), 20.0)
    got = ranks(q, c, targets, scoring="qb_norm", bank=bank, chunk=chunk)
    # its exponentials span many orders of magnitude, so ties are relative
    assert columns(got) == columns(ranks_of_scores(naive, targets, relative=True))


def test_qb_norm_takes_a_hub_down():
    hub = np.array([1.0, 1.0])
    c = np.array([hub, [1.0, 0.2], [0.2, 1.0]])
    q = np.array([[1.0, 0.55], [0.55, 1.0]])
    bank = np.tile(hub, (20, 1)) + np.random.default_rng(0).normal(0, 0.05, (20, 2))
    assert ranks(q, c, [1, 2]).better.tolist() == [1, 1]
    assert ranks(q, c, [1, 2], scoring="qb_norm", bank=bank).better.tolist() == [0, 0]


def test_top_k_is_the_order_of_the_similarities():
    rng = np.random.default_rng(0)
    q, c = rng.standard_normal((6, 4)), rng.standard_normal((9, 4))
    indices, scores = top_k(q, c, 4, chunk=2)
    s = similarity(q, c)
    assert (indices == np.argsort(-s, axis=1)[:, :4]).all()
    assert scores == pytest.approx(-np.sort(-s, axis=1)[:, :4])
    assert top_k(q, c, 100)[0].shape == (6, 9)


def test_torch_tensors_and_arrays_give_the_same():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    q, c = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal((6, 4)).astype(np.float32)
    expected = columns(ranks(q, c, np.arange(6)))
    assert columns(ranks(torch.tensor(q), torch.tensor(c, requires_grad=True), torch.arange(6))) == expected
    assert unit_rows(torch.tensor(q).bfloat16()).dtype == np.float64


def test_join_ranks_keeps_the_order():
    a, b = (QueryRanks(np.array([i]), np.array([0]), np.array([1])) for i in (4, 2))
    assert join_ranks([a, b]).better.tolist() == [4, 2]


def test_bad_input_is_named():
    x, nan = np.eye(3), np.array([[np.nan, 1.0], [1.0, 0.0]])
    cases = [
        (lambda: ranks(x, x, [0, 1, 3]), "0 to 2"),
        (lambda: ranks(x, x, [0, 1]), "3 queries, got 2"),
        (lambda: ranks(x, x, [[0], [], [1, 2]]), "query 1 has no positive"),
        (lambda: ranks(x, np.eye(4), [0, 1, 2]), "one width"),
        (lambda: ranks(nan, nan, [0, 1]), "row 0"),
        (lambda: ranks(np.zeros((2, 2)), x, [0, 1]), "not all zeros"),
        (lambda: ranks(x[0], x, [0]), "shape"),
        (lambda: ranks(x, x, [0, 1, 2], scoring="dls"), "did you mean 'dsl'"),
        (lambda: ranks(x, x, [0, 1, 2], direction="t2v"), "direction"),
        (lambda: ranks(x, x, [0, 1, 2], scoring="qb_norm"), "bank of training queries"),
        (lambda: ranks(x, x, [0, 1, 2], chunk=0), "at least 1"),
        (lambda: ranks_of_scores(nan, [0, 1]), "query 0"),
        (lambda: metrics(ranks(x, x, [0, 1, 2]), ties="author"), "tie rule"),
        (lambda: metrics(QueryRanks(*[np.zeros(0, int)] * 3)), "at least one query"),
        (lambda: ranks(x, x, [0, 1, 2]).hits(0), "at least 1"),
        (lambda: top_k(x, x, 0), "at least 1"),
        (lambda: retrieve(x, x, [[0, 1], [1], [2]]), "one video for each text"),
    ]
    for call, words in cases:
        with pytest.raises(ClipVipError, match=words):
            call()


def test_positive_lists_drops_repeats():
    flat, starts = positive_lists([[1, 1, 0], [2]], 2, 3)
    assert (flat.tolist(), starts.tolist()) == ([0, 1, 2], [0, 2])


def test_import_is_light():
    code = (
        "import sys, clipvip_lib.retrieval, clipvip_lib.statistics.claims, clipvip_lib.paper;"
        "import clipvip_lib.statistics.language_gap;"
        "dear = ('torch', 'transformers', 'scipy.stats', 'sklearn', 'pandas');"
        "print([m for m in dear if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
