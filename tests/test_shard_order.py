"""The order of samples is arithmetic: every one once per epoch, whatever the ranks; positions are found again."""

import collections
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.shard_order import Order, Unit, deal

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=9)
buffers = st.sampled_from((0, 3, 20, 1000))


def order(sizes, rank=0, ranks=1, shuffle=20, seed=0):
    return Order(
        len(sizes), lambda shard: [(shard, i) for i in range(sizes[shard])], seed, rank, ranks, shuffle
    )


def position(one):
    return json.loads(json.dumps(one.state()))


def of_epoch(one, epoch):
    """The samples that an order still gives in an epoch."""
    found = []
    while one.epoch == epoch:
        try:
            drawn = next(one)
        except ClipVipError:  # fewer samples than ranks: nothing for this rank, ever
            return found
        if drawn.epoch != epoch:
            return found
        assert (drawn.shard, drawn.sample) == drawn.item
        found.append(drawn.item)
    return found


def everything(sizes):
    return {(shard, i): 1 for shard, size in enumerate(sizes) for i in range(size)}


@settings(max_examples=200, deadline=None)
@given(sizes=sizes, ranks=st.integers(1, 6), shuffle=buffers, seed=st.integers(0, 5))
def test_every_sample_once_an_epoch_over_all_ranks(sizes, ranks, shuffle, seed):
    seen = collections.Counter()
    for rank in range(ranks):
        seen.update(of_epoch(order(sizes, rank, ranks, shuffle, seed), 0))
    assert seen == everything(sizes)


def test_shares_are_as_even_as_shards_allow():
    """65 shards of 100 samples on 4 ranks: 16 shards each, and a quarter of the last."""
    shares = [len(of_epoch(order([100] * 65, rank, 4), 0)) for rank in range(4)]
    assert shares == [1625] * 4
    shares = [len(of_epoch(order([101] * 3, rank, 4), 0)) for rank in range(4)]
    assert sum(shares) == 303 and max(shares) - min(shares) <= 1


def test_a_buffer_mixes_within_its_size_and_an_epoch_differs_from_the_last():
    one = order([1000], shuffle=100)
    first, second = ([sample for _, sample in of_epoch(one, epoch)] for epoch in (0, 1))
    assert first != second and sorted(first) == sorted(second) == list(range(1000))
    assert all(sample < place + 100 for place, sample in enumerate(first))  # none before it was in the buffer
    late = sum(abs(sample - place) for place, sample in enumerate(first)) / 1000
    assert 50 < late < 150  # a sample waits about as long as the buffer is large
    assert [s for _, s in of_epoch(order([1000], shuffle=0), 0)] == list(range(1000))


def test_an_order_is_that_of_its_rank_seed_and_epoch():
    def first(**changes):
        return [next(one).item for one in [order([50] * 8, **changes)] for _ in range(20)]

    assert first() == first()
    assert len({tuple(first(**c)) for c in ({}, {"seed": 1}, {"ranks": 2}, {"ranks": 2, "rank": 1})}) == 4


@settings(max_examples=100, deadline=None)
@given(sizes=sizes, ranks=st.integers(1, 3), shuffle=buffers, taken=st.integers(0, 60))
def test_a_position_is_found_again_exactly(sizes, ranks, shuffle, taken):
    one = order([size + ranks for size in sizes], ranks - 1, ranks, shuffle)
    for _ in range(taken):
        next(one)
    again = order([size + ranks for size in sizes], ranks - 1, ranks, shuffle)
    again.load(position(one))
    assert [next(again) for _ in range(50)] == [next(one) for _ in range(50)]


@settings(max_examples=300, deadline=None)
@given(
    sizes=sizes,
    ranks=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    taken=st.lists(st.integers(0, 60), min_size=4, max_size=4),
    shuffle=buffers,
)
def test_on_other_numbers_of_ranks_nothing_is_lost_and_nothing_comes_twice(sizes, ranks, taken, shuffle):
    """Ranks that are in different epochs, and a position that is dealt out several times within one epoch."""
    sizes = [size + 4 for size in sizes]
    seen = collections.Counter()
    states, pending = [], []
    for number in ranks:
        orders = [order(sizes, rank, number, shuffle) for rank in range(number)]
        for one in orders:
            if states:
                one.carry(states, pending)
        states, pending = [], []
        for one, count in zip(orders, taken, strict=False):
            seen.update(next(one).item for _ in range(count // number))
            ahead = [next(one) for _ in range(count % 3)]  # drawn, but delivered to nobody
            pending.append([(drawn.epoch, drawn.shard, drawn.sample) for drawn in ahead])
            states.append(position(one))
    epoch = max(state["epoch"] for state in states)
    for rank in range(2):
        one = order(sizes, rank, 2, shuffle)
        one.carry(states, pending)
        seen.update(of_epoch(one, epoch))
        assert one.epoch == epoch + 1
    assert seen == dict.fromkeys(everything(sizes), epoch + 1)


def test_before_an_epoch_other_ranks_begin_it_as_ever():
    old = [order([9, 5, 7], rank, 2) for rank in range(2)]
    for one in old:
        of_epoch(one, 0)
    ahead = [[(d.epoch, d.shard, d.sample) for d in (next(one), next(one))] for one in old]
    new, ever = (order([9, 5, 7], 1, 3) for _ in range(2))
    new.carry([position(one) for one in old], ahead)
    ever.start_epoch(1)
    assert [next(new) for _ in range(20)] == [next(ever) for _ in range(20)]


def test_units_are_dealt_whole_first_and_the_rest_by_samples():
    units = [Unit(shard, 0, 1) for shard in range(5)]
    assert deal(units, 0, 2) == [Unit(0, 0, 1), Unit(2, 0, 1), Unit(4, 0, 2)]
    assert deal(units, 1, 2) == [Unit(1, 0, 1), Unit(3, 0, 1), Unit(4, 1, 2)]
    assert deal([Unit(7, 3, 2)], 1, 3) == [Unit(7, 5, 6)]


def test_a_rank_without_a_sample_and_a_shard_that_shrank_are_told():
    with pytest.raises(ClipVipError, match="rank 2 of 3 finds no sample in 1 shards: expected at least one"):
        next(order([2], 2, 3))
    one = order([9, 9])
    next(one)
    state = position(one)
    with pytest.raises(ClipVipError, match="has 3 samples, the position that is resumed names sample"):
        order([3, 3]).load(state)
