"""A signal becomes a wish; a second one acts as usual where nobody forwards signals twice."""

import os
import signal

import pytest

from clipvip_lib.distributed.stop_signals import StopSignals


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
