"""Worker processes change nothing but the speed of a stream; one that dies is told, and none outlives its parent."""

import collections
import json
import os
import signal
import subprocess
import sys

import patience
import psutil
import pytest
from stream_cases import BAD, CLIPS, SMALL, keys, make_bad_shard, make_corpus, resumed, same

from clipvip_lib.data.shards import expand, read_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams import decode_pool
from clipvip_lib.streams.stream import ClipStream


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def shards(corpus):
    return expand(corpus / "{00000..00004}.tar")


@pytest.fixture(scope="module")
def samples(shards):
    return {sample.key: sample for shard in shards for sample in read_shard(shard)}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return make_bad_shard(tmp_path_factory.mktemp("bad") / "00000.tar")


@pytest.fixture(scope="module")
def pooled(shards):
    with ClipStream(shards, **SMALL, workers=2, shuffle=20, prefetch=6) as stream:
        next(stream)
        yield stream


def test_workers_change_neither_the_order_nor_a_pixel_and_a_position_holds_what_is_under_way(shards, pooled):
    alone = ClipStream(shards, **SMALL, shuffle=20)
    start = ClipStream(shards, **SMALL, shuffle=20).state_dict()
    pooled.load_state_dict(start)
    for _ in range(CLIPS + 5):
        same(next(pooled), next(alone))
    state = pooled.state_dict()
    assert len(state["pending"]) == 5
    again = resumed(shards, state, shuffle=20)
    for _ in range(40):
        same(next(again), next(alone))
    pooled.load_state_dict(json.loads(json.dumps(again.state_dict())))
    for _ in range(8):
        same(next(pooled), next(alone))


def test_with_workers_other_ranks_lose_nothing(shards, samples, pooled):
    pooled.load_state_dict(ClipStream(shards, **SMALL, shuffle=20).state_dict())
    seen = collections.Counter(keys(pooled, 45))
    for r in range(2):
        stream = resumed(shards, [pooled.state_dict()], rank=r, ranks=2, shuffle=20)
        while stream.counts["epochs"] == 0 or stream.state_dict()["order"]["carried"] is not None:
            seen[next(stream).key] += 1
    assert set(seen) == set(samples) and set(seen.values()) <= {1, 2}


def test_bad_samples_are_skipped_with_workers_too(bad, tmp_path):
    with ClipStream([bad], **SMALL, workers=1, skip_share=0.6, skip_log=tmp_path / "log") as stream:
        assert sorted(keys(stream, 5)) == [f"good-{i}" for i in range(5)]
        next(stream)
        assert stream.counts["skipped"] >= len(BAD)


@pytest.mark.fault(
    "train: the process behind the decoding workers is killed (SIGKILL)",
    sees="the workers end",
    keeps="not looked at by the test",
)
def test_workers_end_when_their_parent_is_killed():
    code = """
import sys
from clipvip_lib.streams.decode_pool import DecodePool, View
pool = DecodePool(View(2, 16, False, True), workers=1, slots=2)
print(pool._workers[0].process.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    with parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    patience.until(lambda: ended(worker), "the worker that outlived its parent", worker)


def ended(pid: int) -> bool:
    """A zombie has ended too: nobody may have taken note of it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.fault(
    "train: a decoding worker hangs (stopped, with a short limit)",
    sees="the sample, and `the decoder hangs`",
    keeps="not looked at by the test",
)
@pytest.mark.fault(
    "train: a decoding worker is killed (SIGKILL)",
    sees="the sample, and `most often for lack of memory: use fewer`, at once",
    keeps="not looked at by the test",
)
def test_a_worker_that_hangs_or_is_killed_is_told_and_names_its_sample(pooled, monkeypatch):
    """The last test that takes ``pooled``."""
    next(pooled)
    workers = pooled._pool._workers
    for each in workers:
        each.process.send_signal(signal.SIGSTOP)  # so that one of them has a sample for certain when it dies
    pooled._submit(next(pooled._order))
    victim = next(each for each in workers if pooled._submitted - 1 in each.numbers)
    with monkeypatch.context() as patch:
        patch.setattr(decode_pool, "STUCK_SECONDS", 0.2)
        with pytest.raises(
            ClipVipError, match=r"a worker has been at v\d+-\d of .*\.tar for .* the decoder hangs"
        ):
            keys(pooled, 200)
    victim.process.kill()
    for each in workers:
        each.process.send_signal(signal.SIGCONT)
    # At once, not after STUCK_SECONDS: that would be another sentence.
    message = rf"decoding worker {victim.number} \(process {victim.process.pid}\) was ended by SIGKILL while it was at "
    with pytest.raises(
        ClipVipError, match=message + r"v\d+-\d of .*\.tar, most often for lack of memory: use fewer"
    ):
        keys(pooled, 200)
