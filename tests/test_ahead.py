"""Reading ahead: in order, in time, with errors in their turn, and closed at the end."""

from __future__ import annotations

import threading

import pytest
from patience import STILL

from clipvip_lib.ahead import ahead


def test_the_next_item_is_made_while_the_first_is_used():
    made = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    with ahead(items(), 1, threading.Event()) as ready:
        assert next(ready) == 0
        assert made[1].wait(STILL)  # though nobody asked for it
        assert list(ready) == [1, 2]


def test_an_error_of_the_reading_comes_in_its_turn_and_an_early_end_closes_it():
    closed = threading.Event()

    def items():
        try:
            yield 1
            raise KeyError("two")
        finally:
            closed.set()

    with ahead(items(), 5, threading.Event()) as ready:
        assert next(ready) == 1
        with pytest.raises(KeyError, match="two"):
            next(ready)

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    closed.clear()
    with ahead(endless(), 2, threading.Event()) as ready:
        assert next(ready) == 0
    assert closed.wait(STILL)
