"""Each loss of the table against plain loops over rows, and the masks and numbers that can go wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib import losses
from clipvip_lib.errors import ClipVipError
from clipvip_lib.losses import ocl_loss
from clipvip_lib.omnisource import LOSSES, needs

SCALE = torch.tensor(2.0, dtype=torch.float64)


def draw(B=5, E=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        s: torch.nn.functional.normalize(torch.randn(B, E, generator=generator, dtype=dtype), dim=-1)
        for s in "VSFC"
    }


def infonce(a, b, scale, rows):
    """Mean over ``rows`` of -log softmax of row i at column i."""
    logits = scale.exp() * a @ b.T
    return torch.nn.functional.cross_entropy(logits[rows][:, rows], torch.arange(len(rows)))


def by_hand(name, f, scale, present):
    """The released code's sums, as loops, for clips ``present`` (list of rows that have a caption)."""
    s, B = float(scale.exp()), len(f["V"])
    sim = {a + b: (s * f[a] @ f[b].T).tolist() for a in "VSFC" for b in "VSFC"}
    everyone = range(B)

    def one(a, b, rows, columns):
        return sum(
            math.log(sum(math.exp(sim[a + b][i][j]) for j in columns)) - sim[a + b][i][i] for i in rows
        ) / max(1, len(rows))

    def joint(positive, rows):
        total = 0.0
        for i in rows:
            negatives = [math.exp(sim["VS"][i][j]) for j in everyone if j != i]
            negatives += [math.exp(sim["VC"][i][j]) for j in present if j != i]
            own = sim["V" + positive][i][i]
            total += math.log(math.exp(own) + sum(negatives)) - own
        return total / max(1, len(rows))

    vs = [one("V", "S", everyone, everyone), one("S", "V", everyone, everyone)]
    vc = [one("V", "C", present, present), one("C", "V", present, everyone)]
    fc = [one("F", "C", present, present), one("C", "F", present, everyone)]
    v_sc = [joint("S", everyone), joint("C", present), vs[1], vc[1]]
    return {
        "V-S": vs,
        "V-S + F-C": vs + fc,
        "V-S + V-C": vs + vc,
        "V-S + V-C + F-C": vs + vc + fc,
        "V-S,C": v_sc,
        "V-S,C + F-C": v_sc + fc,
        "V-C + F-C": vc + fc,
    }[name]


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=12, deadline=None)
@given(B=st.integers(1, 6), seed=st.integers(0, 99), bits=st.integers(0, 63))
def test_equals_loops_with_any_captions_missing(name, B, seed, bits):
    f = draw(B, seed=seed)
    present = [i for i in range(B) if bits >> i & 1]
    mask = torch.tensor([i in present for i in range(B)])
    expected = by_hand(name, f, SCALE, present)
    assert float(ocl_loss(name, f, SCALE, "sum", mask)) == pytest.approx(sum(expected), rel=1e-10, abs=1e-12)
    mean = float(ocl_loss(name, f, SCALE, "mean", mask))
    assert mean == pytest.approx(sum(expected) / len(expected), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", [None, torch.arange(7) % 3 > 0])
def test_tiles_change_nothing_and_keep_no_whole_matrix(monkeypatch, name, mask):
    """Value and gradients as without tiles; nothing that the backward pass keeps has a row for each pair of clips."""
    found, whole = {}, losses.TILE
    for tile in (whole, 3):
        monkeypatch.setattr(losses, "TILE", tile)
        f = {source: feature.requires_grad_() for source, feature in draw(B=7, E=4).items()}
        scale = SCALE.clone().requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            value = ocl_loss(name, f, scale, caption_mask=mask)
        value.backward()
        used = [f[source].grad for source in sorted(needs(name))]
        found[tile] = torch.cat([value[None], scale.grad[None], *(g.flatten() for g in used)]).detach()
        assert (max(t.numel() for t in kept) >= 7 * 7) == (tile > 3)
    torch.testing.assert_close(found[3], found[whole])


def test_infonce_is_torchs_cross_entropy():
    f = draw()
    rows = torch.arange(5)
    expected = infonce(f["V"], f["S"], SCALE, rows) + infonce(f["S"], f["V"], SCALE, rows)
    torch.testing.assert_close(ocl_loss("V-S", f, SCALE, "sum"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_full_mask_changes_nothing(name):
    f = draw()
    torch.testing.assert_close(
        ocl_loss(name, f, SCALE, caption_mask=torch.ones(5, dtype=torch.bool)), ocl_loss(name, f, SCALE)
    )


@pytest.mark.parametrize("name", [n for n in LOSSES if "C" in n])
def test_a_missing_caption_has_no_influence_and_no_gradient(name):
    f = {k: v.requires_grad_() for k, v in draw().items()}
    mask = torch.tensor([True, True, False, True, True])
    loss = ocl_loss(name, f, SCALE, caption_mask=mask)
    loss.backward()
    assert f["C"].grad[2].abs().max() == 0
    assert f["C"].grad[[0, 1, 3, 4]].abs().min(1).values.max() > 0
    other = {k: v.detach().clone() for k, v in f.items()}
    other["C"][2] = torch.nn.functional.normalize(torch.ones(8, dtype=torch.float64), dim=0)
    torch.testing.assert_close(
        ocl_loss(name, other, SCALE, caption_mask=mask), loss.detach(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_overflow_at_the_largest_scale(name, dtype):
    f = {k: v.to(dtype).requires_grad_() for k, v in draw(B=8, E=64).items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = ocl_loss(name, f, torch.tensor(math.log(200.0)))
    exact = ocl_loss(name, {k: v.double() for k, v in f.items()}, torch.tensor(math.log(200.0)).double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)  # float32 in spite of autocast
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert all(torch.isfinite(f[s].grad).all() for s in needs(name))


def test_the_scale_learns():
    scale = SCALE.clone().requires_grad_()
    ocl_loss("V-S,C + F-C", draw(), scale).backward()
    assert scale.grad.abs() > 0


def test_needs_names_the_sources():
    assert {n: "".join(sorted(needs(n))) for n in LOSSES} == {
        "V-S": "SV",
        "V-S + F-C": "CFSV",
        "V-S + V-C": "CSV",
        "V-S + V-C + F-C": "CFSV",
        "V-S,C": "CSV",
        "V-S,C + F-C": "CFSV",
        "V-C + F-C": "CFV",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "V-T"}, "unknown loss 'V-T'.*did you mean"),
        ({"reduction": "average"}, "unknown reduction 'average'"),
        (
            {"features": {"V": torch.ones(2, 3), "S": torch.ones(2, 3)}},
            r"C \(caption\), F \(frame\) is missing",
        ),
        ({"features": draw() | {"C": torch.ones(4, 8)}}, r"one shape \[B, E\]"),
        ({"caption_mask": torch.ones(5)}, r"expected bool \[5\], got torch.float32"),
        ({"caption_mask": torch.ones(4, dtype=torch.bool)}, r"expected bool \[5\]"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    arguments = {"name": "V-S,C + F-C", "features": draw(), "logit_scale": SCALE} | change
    with pytest.raises(ClipVipError, match=message) as caught:
        ocl_loss(**arguments)
    assert "\n" not in str(caught.value)
