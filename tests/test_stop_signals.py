"""A signal becomes a wish; a second one acts as usual where nobody forwards signals twice."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipvip_lib.stop_signals import StopSignals, signals_held, signals_raise


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_is_noted_and_the_first_one_counts(number):
    before = signal.getsignal(number)
    with StopSignals(patient=True) as stop:
        assert stop.number == 0
        send(number)
        send(signal.SIGINT)
        assert stop.number == number
    assert signal.getsignal(number) is before


def test_who_is_not_patient_ends_at_the_second_one(request):
    # A shell starts what it runs in the background with SIGINT ignored: then "as usual" would be nothing at all
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with StopSignals() as stop:
        send(signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.fault(
    "any command: the terminal goes away (SIGHUP), under nohup",
    sees="nothing",
    keeps="the run: an ignored signal stays ignored",
)
def test_a_signal_becomes_an_exception_but_not_one_that_is_ignored(request):
    """nohup ignores SIGHUP, so that a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    with signals_raise(signal.SIGHUP, signal.SIGTERM):
        send(signal.SIGHUP)
        with pytest.raises(SystemExit) as stop:
            send(signal.SIGTERM)
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(SystemExit), signals_raise(signal.SIGHUP):
        send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_that_is_held_acts_at_the_end(number, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    reached = False
    with signals_raise(signal.SIGTERM), pytest.raises((SystemExit, KeyboardInterrupt)), signals_held():
        send(number)
        reached = True
    assert reached
    with signals_held():
        pass
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_held():
        send(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:  # where no signal arrives
        assert pool.submit(lambda: signals_held().__enter__()).result() is None
