"""Flat weights train as the model's own weights do."""

import copy

import pytest
import torch
from torch import nn

from clipvip_lib.training.flat_weights import FlatWeights


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def groups(model):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def plain(model, x, steps, clip_norm):
    optimizer, norms = torch.optim.AdamW(groups(model), lr=1e-2), []
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip_norm)))
        optimizer.step()
    return norms


def flat(model, x, steps, clip_norm, precision="float32"):
    weights, norms = FlatWeights(model, groups(model), precision), []
    optimizer = torch.optim.AdamW(weights.groups, lr=1e-2)
    for _ in range(steps):
        weights.zero_gradients()
        weights.twin(x.to(next(weights.twin.parameters()).dtype)).float().square().sum().backward()
        norms.append(float(weights.gradients(clip_norm)))
        optimizer.step()
        weights.copy_to_twin()
    return weights, norms


@pytest.mark.parametrize("clip_norm", [0.5, 1e9])
def test_the_same_weights_as_plain_training(clip_norm):
    theirs, ours, x = make(), make(), torch.randn(16, 6)
    expected = plain(theirs, x, 5, clip_norm)
    weights, norms = flat(ours, x, 5, clip_norm)
    assert norms == pytest.approx(expected, rel=1e-5)
    for a, b, c in zip(ours.parameters(), theirs.parameters(), weights.twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c, a)


def test_bfloat16_stays_near_and_keeps_masters_in_float32():
    theirs, ours, x = make(), make(), torch.randn(16, 6)
    plain(theirs, x, 5, 1.0)
    weights, _ = flat(ours, x, 5, 1.0, precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    assert all(p.dtype == torch.bfloat16 for p in weights.twin.parameters())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() < 0.03


def test_the_model_reads_and_loads_its_weights_as_ever():
    model = make()
    weights, _ = flat(model, torch.randn(16, 6), 1, 1.0)
    other = {name: value + 1 for name, value in copy.deepcopy(model).state_dict().items()}
    model.load_state_dict(other)
    weights.copy_to_twin()
    for name, value in weights.twin.state_dict().items():
        assert torch.equal(value, other[name])
    weights.release()
    sizes = {p.untyped_storage().nbytes() == p.numel() * 4 for p in model.parameters()}
    assert sizes == {True}
