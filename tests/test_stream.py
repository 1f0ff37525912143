"""Shards as a stream: every sample once per epoch, the right frames, found again exactly; with real tars."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import CLIPS, SMALL, keys, make_corpus, quiet, resumed, same

from clipvip_lib.data import transform
from clipvip_lib.data.corpora import encode_jpeg, write_corpus, write_shard
from clipvip_lib.data.frames import FrameStore, write_store
from clipvip_lib.data.shards import expand, read_shard
from clipvip_lib.data.video import middle_index, read_frames
from clipvip_lib.data.world import render, rng_for, sample_video
from clipvip_lib.errors import ClipVipError
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


# ------------------------------------------------------------------------------------------------- patterns


def test_patterns_name_tars_and_nothing_else(corpus, shards):
    names = [f"{part:05d}.tar" for part in range(5)]
    assert [shard.name for shard in shards] == names
    for pattern in (
        corpus,
        corpus / "*.tar",
        corpus / "0*",
        f"{corpus}/{{00000..00001}}*",
        corpus / "00003.tar",
    ):
        found = [shard.name for shard in expand(pattern)]
        assert found == {"00003.tar": names[3:4], "{00000..00001}*": names[:2]}.get(
            str(pattern).rpartition("/")[2], names
        )
    assert [s.name for s in expand(corpus / "{00004,00001}.tar")] == [names[4], names[1]]


@pytest.mark.parametrize(
    ("pattern", "message"),
    (
        ("{00003..00006}.tar", r"2 of 4 names of the shard pattern .* first .*00005\.tar"),
        ("x*.tar", "1 of 1 names .* are not tar files"),
        ("{00000..00002.tar", "expected a closing brace"),
    ),
)
def test_a_pattern_that_names_too_much_is_refused(corpus, pattern, message):
    with pytest.raises(ClipVipError, match=message):
        expand(corpus / pattern)


def test_a_folder_of_videos_is_no_folder_of_shards(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ClipVipError, match=r"the folder .* holds no \.tar: .* embed and pack read them"):
        expand(tmp_path)


def test_brackets_in_a_name_are_a_name(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    write_corpus(folder / "0[1].tar", "hdvila-10m", 0, 0, 1, quiet)
    assert expand(folder) == expand(folder / "0[1].tar") == [folder / "0[1].tar"]


# ------------------------------------------------------------------------------------------ order and frames


@pytest.mark.parametrize("shuffle", (0, 5, 1000))
@pytest.mark.parametrize("ranks", (1, 2, 3, 4, 7))
def test_every_sample_once_an_epoch_over_all_ranks(shards, samples, ranks, shuffle):
    streams = [ClipStream(shards, **SMALL, rank=r, ranks=ranks, shuffle=shuffle) for r in range(ranks)]
    orders = []
    for epoch in range(2):
        seen = []
        for stream in streams:
            while stream.counts["epochs"] == epoch:
                seen.append(next(stream).key)
        assert collections.Counter(seen) == dict.fromkeys(samples, 1)
        orders.append(seen)
    if shuffle:  # five shards may come in the same order twice
        assert orders[0] != orders[1]
    shares = [stream.counts["samples"] / 2 for stream in streams]
    assert sum(shares) == CLIPS and min(shares) > 0
    assert all(
        stream.counts == {"samples": s * 2, "skipped": 0, "absent": 0, "damaged": 0, "epochs": 2}
        for stream, s in zip(streams, shares, strict=True)
    )


def test_the_order_is_the_seeds_and_a_buffer_below_two_keeps_a_shards_order(shards):
    def first(seed, shuffle=16):
        return keys(ClipStream(shards, **SMALL, seed=seed, shuffle=shuffle), CLIPS)

    assert first(0) == first(0) != first(1)
    kept = first(0, shuffle=0)
    blocks = {tuple(s.key for s in read_shard(shard)) for shard in shards}
    while kept:
        block = next(block for block in blocks if block[0] == kept[0])
        assert tuple(kept[: len(block)]) == block
        blocks.remove(block)
        kept = kept[len(block) :]
    assert not blocks


def test_clips_are_what_a_frame_store_holds(shards, samples, tmp_path):
    named = [(key, sample.media) for key, sample in samples.items()]
    for antialias in (False, True):
        write_store(tmp_path / "a.npy", named, len(named), 4, 24, antialias, quiet)
        store = FrameStore([tmp_path / "a.npy"])
        stream = ClipStream(shards, frames=4, size=24, antialias=antialias, jitter=False)
        for _ in range(8):
            clip = next(stream)
            at = list(samples).index(clip.key)
            np.testing.assert_array_equal(clip.video, store.take([at], 4)[0])
            np.testing.assert_array_equal(clip.frame, store.middle([at])[0])
            assert clip.text == samples[clip.key].text and clip.caption is None


def test_jitter_moves_frames_from_epoch_to_epoch_and_never_the_middle_one(shards, samples):
    stream = ClipStream(shards, frames=3, size=128)  # the world's own size: nothing is resized
    epochs = [{clip.key: clip for clip in (next(stream) for _ in range(CLIPS))} for _ in range(2)]
    moved = 0
    for key, sample in samples.items():
        whole = read_frames(sample.media, range)
        for epoch in epochs:
            clip = epoch[key]
            np.testing.assert_array_equal(clip.frame[0], whole[middle_index(len(whole))])
            assert all((frame == whole).all((1, 2, 3)).any() for frame in clip.video)
        moved += not np.array_equal(epochs[0][key].video, epochs[1][key].video)
    assert moved > CLIPS / 2


def test_a_still_is_a_video_of_one_frame(tmp_path):
    image = render(sample_video(rng_for(5), "train")[0])[0]
    write_shard(tmp_path / "a.tar", [{"__key__": "k", "jpg": encode_jpeg(image), "txt": "a still"}])
    clip = next(ClipStream([tmp_path / "a.tar"], frames=3, size=32))
    assert clip.video.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(clip.video, clip.frame.repeat(3, 0))
    assert abs(clip.frame[0].astype(int) - transform.resize(image[None], 32, False)[0]).mean() < 3


# --------------------------------------------------------------------------------------------------- resume


@settings(max_examples=8, deadline=None)
@given(
    before=st.integers(0, 110),
    seed=st.integers(0, 3),
    ranks=st.integers(1, 3),
    shuffle=st.sampled_from((0, 3, 20, 1000)),
    epoch_samples=st.sampled_from((None, 10, 60)),
)
def test_a_position_is_found_again_exactly(shards, before, seed, ranks, shuffle, epoch_samples):
    options = {
        "seed": seed,
        "rank": ranks - 1,
        "ranks": ranks,
        "shuffle": shuffle,
        "epoch_samples": epoch_samples,
    }
    whole = ClipStream(shards, **SMALL, **options)
    keys(whole, before // ranks)
    again = resumed(shards, whole.state_dict(), **options)
    for _ in range(20):
        same(next(again), next(whole))
    assert again.counts == whole.counts and again.state_dict() == whole.state_dict()


@pytest.mark.parametrize(("old", "new", "shuffle"), ((2, 3, 20), (3, 1, 3), (1, 4, 1000)))
def test_on_another_number_of_ranks_nothing_is_lost_and_nothing_comes_twice(
    shards, samples, old, new, shuffle
):
    streams = [ClipStream(shards, **SMALL, rank=r, ranks=old, shuffle=shuffle) for r in range(old)]
    seen = collections.Counter(key for r, stream in enumerate(streams) for key in keys(stream, 7 + r))
    states = [stream.state_dict() for stream in streams]
    again = [resumed(shards, states[::-1], rank=r, ranks=new, shuffle=shuffle) for r in range(new)]
    for stream in again:
        while stream.counts["epochs"] == 0:
            seen[next(stream).key] += 1
    assert seen == dict.fromkeys(samples, 1)
    assert sum(stream.counts["samples"] for stream in again) == CLIPS


def test_at_an_epochs_end_another_number_of_ranks_goes_on_as_if_it_always_had_been(shards):
    streams = [ClipStream(shards, **SMALL, rank=r, ranks=2) for r in range(2)]
    for stream in streams:
        while stream.counts["epochs"] == 0:
            next(stream)
    again = resumed(shards, [s.state_dict() for s in streams], rank=1, ranks=3)
    always = ClipStream(shards, **SMALL, rank=1, ranks=3)
    while always.counts["epochs"] == 0:
        next(always)
    for _ in range(12):
        same(next(again), next(always))


def test_a_position_is_small(shards, tmp_path):
    many = [{"__key__": f"{i:09d}", "mp4": b"x", "txt": "t", "json": "{}"} for i in range(3000)]
    write_shard(tmp_path / "00000.tar", many)
    stream = ClipStream([tmp_path / "00000.tar"], **SMALL, skip_share=1.0, epoch_samples=5)
    with pytest.raises(ClipVipError, match="could read no sample in the whole of epoch 0"):
        next(stream)
    stream = ClipStream([tmp_path / "00000.tar"], **SMALL)
    next(stream._order)
    assert 8_000 < len(json.dumps(stream.state_dict())) < 16_000


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"seed": 1}, "taken with seed 0, this stream has 1"),
        ({"shuffle": 9}, "taken with shuffle 1000, this stream has 9"),
        ({"ranks": 2}, r"expected the position of rank 0 of 2, or those of all ranks, got those of \[0\]"),
        ({"epoch_samples": 9}, "taken with epoch_samples None, this stream has 9"),
    ),
)
def test_a_position_of_another_stream_is_refused(shards, change, message):
    state = ClipStream(shards, **SMALL).state_dict()
    if "ranks" in change:
        state["ranks"] = 3
    with pytest.raises(ClipVipError, match=message):
        resumed(shards, state, **change)
    with pytest.raises(ClipVipError, match="taken with shards 5-.*, this stream has 4-"):
        resumed(shards[:4], state)


def test_an_epoch_of_a_stated_length_is_the_same_on_all_ranks(shards):
    for length in (3, 30):
        streams = [ClipStream(shards, **SMALL, rank=r, ranks=3, epoch_samples=length) for r in range(3)]
        for stream in streams:
            epochs = [keys(stream, length) for _ in range(3)]
            assert stream.counts["epochs"] == 3
            assert epochs[0] != epochs[1]
        first = [
            keys(ClipStream(shards, **SMALL, rank=r, ranks=3, epoch_samples=length), length) for r in range(3)
        ]
        seen = collections.Counter(key for part in first for key in part)
        # 90 clips of 48: all come, and then the corpus is dealt out again
        assert len(seen) == (9 if length == 3 else CLIPS)
