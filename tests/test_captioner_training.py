"""The small captioner learns what it sees, by the authors' loss, and resumes bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_captioner import COLOURS, TINY, pairs, weights_equal
from torch.nn import functional as F

from clipvip_lib.captions import captioner_training
from clipvip_lib.captions.captioner import Captioner
from clipvip_lib.captions.captioner_training import label_smoothed_loss, train_captioner
from clipvip_lib.errors import ClipVipError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny() -> Captioner:
    return train_captioner(*pairs(32), TINY, seed=0)[0]


@settings(deadline=None)
@given(
    st.integers(2, 9),
    st.integers(3, 30),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.integers(0, 999),
    st.integers(0, 2),
)
def test_smoothed_loss_is_a_cross_entropy_with_soft_targets(n, vocab, epsilon, seed, pads):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocab, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, vocab, (n,), generator=rng)
    labels[labels == 1] = 0
    labels[:pads] = 1
    loss, nll, count = label_smoothed_loss(logits, labels, epsilon)
    soft = torch.full((n, vocab), epsilon / (vocab - 1), dtype=torch.float64)
    soft[torch.arange(n), labels] = 1 - epsilon
    keep = labels != 1
    assert int(count) == n - pads
    torch.testing.assert_close(loss, F.cross_entropy(logits[keep], soft[keep], reduction="sum"))
    torch.testing.assert_close(nll, F.cross_entropy(logits[keep], labels[keep], reduction="sum"))


@pytest.mark.slow
def test_a_small_captioner_learns_to_name_what_it_sees():
    images, texts = pairs(64)
    size = dataclasses.replace(TINY, stem_steps=80, steps=80, batch=16, lr=1e-2)
    captioner, history = train_captioner(images, texts, size, seed=0)
    captions = [row for row in history if row["phase"] == "captions"]
    assert captions[-1]["nll"] < 0.2 * captions[0]["nll"]
    assert captions[-1]["words"] < 0.5 * history[0]["words"]
    assert captioner.caption(images[:4]) == [f"a {name} wall" for name in COLOURS]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny):
    torch.manual_seed(123)  # the caller's generator must not matter ...
    before = torch.get_rng_state()
    again = train_captioner(*pairs(32), TINY, seed=0)[0]
    assert torch.equal(torch.get_rng_state(), before)  # ... nor be touched
    assert weights_equal(tiny, again)
    assert not weights_equal(tiny, train_captioner(*pairs(32), TINY, seed=1)[0])


@pytest.mark.fault(
    "captioner's training: Ctrl-C in the third step",
    sees="the next start resumes behind the checkpoint",
    keeps="the checkpoint; the end equals an undisturbed run bit for bit",
)
def test_a_killed_training_goes_on_exactly(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(captioner_training, "CHECKPOINT_SECONDS", -1.0)
    steps = []

    def killed(done: int, total: int, note: str) -> None:
        steps.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_captioner(*pairs(32), TINY, seed=0, folder=tmp_path, progress=killed)
    again, history = train_captioner(
        *pairs(32), TINY, seed=0, folder=tmp_path, progress=lambda done, *_: steps.append(done)
    )
    assert steps == [1, 2, 3, 3, *range(4, 11)]  # step 3 was not saved, steps 1 and 2 were not done again
    assert [(row["step"], row["phase"]) for row in history] == [(0, "stem"), (9, "captions")]
    assert weights_equal(tiny, again)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_bad_training_input_is_one_sentence(tmp_path):
    images, texts = pairs(16)
    with pytest.raises(ClipVipError, match="one batch of 8"):
        train_captioner(images[:4], texts[:4], TINY, seed=0)
    with pytest.raises(ClipVipError, match="caption 2 is empty"):
        train_captioner(images, [*texts[:2], " . ", *texts[3:]], TINY, seed=0)
    with pytest.raises(ClipVipError, match="lower lr"):
        train_captioner(images, texts, dataclasses.replace(TINY, lr=1e30), seed=0)
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ClipVipError, match="remove it to train from the start"):
        train_captioner(images, texts, TINY, seed=0, folder=tmp_path)
