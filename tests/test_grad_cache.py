"""Gradient caching gives the plain step's gradient in a part of its memory; so does checkpointing."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_checks import RECIPE, global_batch, gradient, relative, small_model
from torch import nn

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.models.checkpoints import adapt
from clipvip_lib.omnisource import LOSSES
from clipvip_lib.training import grad_cache
from clipvip_lib.training.batches import Tokens
from clipvip_lib.training.encoder import BatchEncoder
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.step import prepare

ONE = Ranks()


def of_a_step(model, batch, loss, chunk, precision="float32"):
    return gradient(BatchEncoder(model, precision), model, batch, loss, ONE, chunk)


@given(st.sampled_from(sorted(LOSSES)), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_chunk_of_any_batch_gives_the_gradient_of_the_plain_step(loss, clips, chunk, seed):
    model, batch = small_model().double(), global_batch(seed, clips)
    value, expected = of_a_step(model, batch, loss, 0)
    cached, found = of_a_step(model, batch, loss, chunk)
    assert cached == pytest.approx(value, rel=1e-12)
    # a batch of one clip has no negatives: loss and gradient are zero, up to rounding
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_in_float32(attention):
    model = adapt(small_model(), attention=attention).train()
    _, expected = of_a_step(model, global_batch(1), "V-S,C + F-C", 0)
    _, found = of_a_step(model, global_batch(1), "V-S,C + F-C", 3)
    assert relative(found, expected) < 1e-5


def test_bfloat16_goes_back_to_every_weight():
    """Casts made in the pass without activations must not be taken for those of the other one."""
    model, batch = small_model(), global_batch(2)
    _, exact = of_a_step(model, batch, "V-S,C + F-C", 2)
    _, found = of_a_step(model, batch, "V-S,C + F-C", 2, precision="bfloat16")
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in model.named_parameters()
        if "k_proj.bias" not in n
    )
    assert relative(found, exact) < 0.05


@pytest.mark.parametrize("chunk", (0, 3))
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_checkpointing_changes_nothing(attention, chunk):
    model = adapt(small_model(), attention=attention)
    prepare(model, RECIPE, ONE)
    _, expected = of_a_step(model, global_batch(1), "V-S,C + F-C", chunk)
    prepare(model, dataclasses.replace(RECIPE, checkpointing=True), ONE)
    assert model.vision_model.encoder.layers[0].gradient_checkpointing
    _, found = of_a_step(model, global_batch(1), "V-S,C + F-C", chunk)
    assert torch.equal(found, expected)


class Live:
    """Bytes that the backward pass keeps, counted while they live; weights are not among them."""

    def __init__(self, model):
        self.now = self.most = 0
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(self, tensor):
        live, size = self, tensor.numel() * tensor.element_size()
        if tensor.untyped_storage().data_ptr() in self.weights:
            size = 0

        class Kept:
            def __init__(self):
                self.tensor = tensor
                live.now += size
                live.most = max(live.most, live.now)

            def __del__(self):
                live.now -= size

        return Kept()


def kept_bytes(chunk, checkpointing=False):
    model = small_model()
    prepare(model, dataclasses.replace(RECIPE, checkpointing=checkpointing), ONE)
    live = Live(model)
    with torch.autograd.graph.saved_tensors_hooks(live.keep, lambda kept: kept.tensor):
        of_a_step(model, global_batch(3), "V-S,C + F-C", chunk)
    assert live.now == 0
    return live.most


def test_chunks_and_checkpoints_keep_less():
    plain = kept_bytes(0)
    assert kept_bytes(2) < 0.35 * plain
    assert kept_bytes(4) < 0.6 * plain
    assert kept_bytes(0, checkpointing=True) < 0.8 * plain


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of torch's compiler, about its own workings
@pytest.mark.parametrize("checkpointing", (False, True))
@pytest.mark.thorough
def test_a_compiled_model_has_the_same_gradient_and_names(monkeypatch, checkpointing):
    """Traced and split into forward and backward as for a GPU, but run without making kernels, which takes minutes."""
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    model = small_model()
    prepare(model, RECIPE, ONE)
    _, expected = of_a_step(model, global_batch(1), "V-S,C + F-C", 0)
    prepare(model, dataclasses.replace(RECIPE, compile=True, checkpointing=checkpointing), ONE)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for chunk in (0, 4):
        _, found = of_a_step(model, global_batch(1), "V-S,C + F-C", chunk)
        assert relative(found, expected) < 1e-5
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    # Videos, frames and texts with and without gradients, for both layers of a tower and any number of clips
    assert 0 < counters["stats"]["unique_graphs"] <= 12
    assert list(model.state_dict()) == list(small_model().state_dict())


def test_chunks_are_the_batch_in_order():
    batch = global_batch(4)
    parts = grad_cache.chunks(batch, 3)
    assert [len(part.video) for part in parts] == [3, 3, 2]
    for name in ("video", "frame", "caption_mask"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    ids = [
        row[: int(mask.sum())].tolist()
        for part in parts
        for row, mask in zip(part.texts.ids, part.texts.mask, strict=True)
    ]
    assert ids == [
        row[: int(mask.sum())].tolist() for row, mask in zip(batch.texts.ids, batch.texts.mask, strict=True)
    ]
    plain = grad_cache.chunks(dataclasses.replace(batch, frame=None, captions=None, caption_mask=None), 8)
    assert [part.captions for part in plain] == [None]


def test_a_loss_whose_source_is_missing_is_refused():
    batch = dataclasses.replace(global_batch(0), frame=None)
    for chunk in (0, 2):
        with pytest.raises(ClipVipError, match="F \\(frame\\) is missing"):
            of_a_step(small_model(), batch, "V-S + F-C", chunk)


def test_tokens_of_a_chunk_are_cut_after_its_longest():
    tokens = Tokens(torch.tensor([[1, 2, 3, 9], [1, 9, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    batch = dataclasses.replace(global_batch(0, 2), texts=tokens)
    assert [part.texts.ids.shape[1] for part in grad_cache.chunks(batch, 1)] == [4, 2]
