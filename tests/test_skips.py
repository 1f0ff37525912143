"""The books on skipped samples: an epoch is judged by itself, and other ranks continue from the same sums."""

from pathlib import Path

import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.skips import COUNTED, Books


def seen(books, samples, skipped, epoch=0):
    for _ in range(samples):
        books.count("samples")
    for number in range(skipped):
        books.skip(epoch, Path("s.tar"), f"{number}", "bad")


def test_an_epoch_is_judged_by_its_own_samples_and_not_by_those_before():
    books = Books(0, 0.5, None)
    seen(books, samples=40, skipped=0)
    books.end_epoch(0)
    seen(books, samples=10, skipped=15, epoch=1)  # 15 of 65 in all, but of this epoch 15 of 25
    with pytest.raises(ClipVipError, match=r"skipped 15 of 25 samples of epoch 1 \(60.0%\).*at most 50.0%"):
        books.end_epoch(1)


def test_other_ranks_go_on_from_the_same_sums():
    before = [Books(rank, 0.5, None) for rank in range(3)]
    for rank, books in enumerate(before):
        seen(books, samples=8 + rank, skipped=1)
        for epoch in range(2 + rank):  # rank 0 is behind the others
            books.end_epoch(epoch)
        seen(books, samples=4, skipped=2)
    after = [Books(rank, 0.5, None) for rank in range(2)]
    for books in after:
        books.carry([each.state() for each in before], ranks=2)
    for name in COUNTED:
        assert sum(books.total[name] for books in after) == sum(books.total[name] for books in before)
    for books in after:
        assert books.epoch == {"samples": 12 // 2, "skipped": 6 // 2, "absent": 0, "damaged": 0}
        assert books.total["epochs"] == 2  # those that every rank has done
        books.end_round(2)  # an empty rest of a round is not an error
