"""Ranks: the processes that torchrun starts, one per device, on one machine or many.

* Without torchrun there is one rank and no process group, and every function here is the identity: a loop that is
  written for many ranks is the loop for one.
* ``gather`` carries gradients. Negatives of the contrastive loss come from the global batch, so every rank computes
  the same loss of all features; DistributedDataParallel then averages the parameters' gradients, and the result is
  the gradient that one rank with the whole batch would have (tests/test_ranks.py).
* Small agreements (stop now? did a rank fail?) travel through gloo on the CPU also where features travel through
  nccl: they cost no wait for the device, and a rank that died is noticed at once.
* A rank that fails stops all, and one message is shown, the one that says why.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from clipvip_lib.errors import ClipVipError, first_line
from clipvip_lib.say import say

T = TypeVar("T")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
#: How the errors of lost connections are told from others: gloo's are plain RuntimeErrors.
TRANSPORTS = ("gloo/", "NCCL", "ProcessGroup", "Connection closed by peer", "Connection reset by peer")
ASK_SECONDS = 10.0  # how long the store of the ranks is waited for before a message is shown anyway


class RankLost(ClipVipError):
    """Another rank died or did not answer within the time limit."""


class StoppedElsewhere(ClipVipError):
    """Another rank stopped for its own reason, which it has told; nothing is to be added."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is, and its device.

    rank: 0 .. size - 1, over all machines. device: cuda:LOCAL_RANK where there is a GPU, else cpu.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: float = 600.0
    store: object = field(default=None, repr=False, compare=False)

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and shows progress."""
        return self.rank == 0

    def largest(self, *values: float) -> tuple[float, ...]:
        """The largest of each value over all ranks; every rank must ask. Raises RankLost."""
        if self.store is None:
            return tuple(float(value) for value in values)
        with noticing_loss(self):
            found = torch.tensor(values, dtype=torch.float64)
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found.tolist())

    def collect(self, value: T) -> list[T]:
        """Every rank's value (small; anything that pickles), in the order of ranks, on every rank."""
        if self.store is None:
            return [value]
        found: list = [None] * self.size
        with noticing_loss(self):
            dist.all_gather_object(found, value)
        return found


def start(timeout: float = 600) -> Ranks:
    """Join the other ranks as torchrun's variables say; one rank, without a process group, if there are none.

    timeout: seconds after which a rank that waits for another one gives up.

    Raises ClipVipError if the variables are incomplete or not numbers, there are more local ranks than GPUs, or
    the ranks do not find each other in time.
    """
    given = {name: os.environ[name] for name in TORCHRUN if name in os.environ}
    if not given:
        return Ranks(device=torch.device("cuda:0" if torch.cuda.is_available() else "cpu"), timeout=timeout)
    try:
        rank, size, local = (int(given[name]) for name in TORCHRUN)
    except (KeyError, ValueError):
        raise ClipVipError(
            f"expected {', '.join(TORCHRUN)} as whole numbers in the environment, got {given}; start with torchrun"
        ) from None
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ClipVipError(
                f"local rank {local} expected its own GPU, {torch.cuda.device_count()} are visible; start as "
                "many ranks per machine as it has GPUs (--nproc-per-node)"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    limit = datetime.timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (dist.DistError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ClipVipError(
            f"rank {rank} expected {size} ranks at {where} within {timeout:g} s, got none of them or not all "
            f"({first_line(error)}); check that every machine runs torchrun with the same rendezvous"
        ) from error
    return Ranks(rank, size, device, timeout, store)


def stop() -> None:
    """Leave the other ranks; harmless without any. After a loss let the process end instead: nobody answers."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share(items: Sequence[T], ranks: Ranks) -> list[T]:
    """This rank's items when they are dealt out like cards: items[rank::size]."""
    return list(items[ranks.rank :: ranks.size])


# ------------------------------------------------------------------------------------------------- features


def gather(x: Tensor, ranks: Ranks) -> Tensor:
    """All ranks' rows, [B, ..] -> [size * B, ..] in the order of ranks, with gradient. B is the same everywhere.

    For losses that EVERY rank computes alike from the gathered rows, with parameters' gradients averaged over
    ranks afterwards (as DistributedDataParallel does): the backward pass takes this rank's rows of the gradient
    times ``size``, which that average takes away again, and sends nothing. A parameter that enters the loss
    itself (logit_scale) has the whole gradient on every rank, and its average is right as it is.
    Raises RankLost.
    """
    return x if ranks.store is None else _Gather.apply(x, ranks)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return gather_plain(x, ranks)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        ranks, rows = context.ranks, len(gradient) // context.ranks.size
        return gradient[ranks.rank * rows : (ranks.rank + 1) * rows] * ranks.size, None


def gather_plain(x: Tensor, ranks: Ranks) -> Tensor:
    """``gather`` without gradient, for any type, bool included."""
    if ranks.store is None:
        return x
    sent = x.detach().to(torch.uint8 if x.dtype == torch.bool else x.dtype).contiguous()
    out = sent.new_empty((ranks.size * len(sent), *sent.shape[1:]))
    with noticing_loss(ranks):
        dist.all_gather_into_tensor(out, sent)
    return out.to(x.dtype)


def gather_dealt(x: Tensor, ranks: Ranks, count: int) -> Tensor:
    """Rows that were computed of ``share(range(count), ranks)``, put together again: [count, ..] in order.

    Ranks may have one row more or less than each other: the shares are filled up to one length, and what was
    filled in is taken out by its place. (The authors' evaluation trimmed the end of the gathered rows, which are
    not the filled ones when the set is not divisible.) Raises ClipVipError if this rank's rows are not its share.
    """
    own = len(range(ranks.rank, count, ranks.size))
    if len(x) != own:
        raise ClipVipError(
            f"rank {ranks.rank} of {ranks.size} expected {own} of {count} rows, got {len(x)}; deal them with share"
        )
    longest = -(-count // ranks.size)
    filled = torch.cat([x, x.new_zeros((longest - len(x), *x.shape[1:]))])
    rows = gather_plain(filled, ranks).unflatten(0, (ranks.size, longest))
    return rows.transpose(0, 1).flatten(0, 1)[:count]


# ------------------------------------------------------------------------------------------------- failures


@contextlib.contextmanager
def noticing_loss(ranks: Ranks) -> Iterator[None]:
    """Turn the errors of a connection that broke or timed out into RankLost; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, dist.DistError) or any(sign in str(error) for sign in TRANSPORTS)
        if isinstance(error, ClipVipError) or ranks.store is None or not broken:
            raise
        raise RankLost(
            f"expected {ranks.size} ranks, one of them died or gave no answer within {ranks.timeout:g} s "
            f"({first_line(error)}); look above for its own message, below for torchrun's report, which names it, "
            "then start the same command again"
        ) from error


@contextlib.contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """A part that may fail on one rank alone (reading data, writing files): if it does, all ranks leave.

    The failing rank's error is raised there, StoppedElsewhere on the others. No other call between ranks may
    stand inside.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    (failed,) = ranks.largest(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise StoppedElsewhere("another rank stopped; its message says why")


def say_once(ranks: Ranks, text: str, about: str = "end") -> None:
    """Print to stderr from the first rank that has something to say ``about`` a thing; the others are silent."""
    try:
        if ranks.store is not None:
            ranks.store.set_timeout(datetime.timedelta(seconds=ASK_SECONDS))
            if ranks.store.add(f"clipvip/said/{about}", 1) > 1:
                return
    except RuntimeError:
        pass  # the store is gone with its process: better twice than never
    say(text, sys.stderr)
