"""Gradients against a reference in float32 where a tiny batch magnifies rounding: right passes, wrong fails.

The case is made here: four nearly constant images through a ResNet in training mode. Its reference is our own
gradient in float32, with channels first as the authors' code has them, so that sums are taken in another order.
"""

import copy
import dataclasses

import golden_files
import ofa_cases
import pytest
import torch
from equality import relative
from ofa_cases import GRADIENT, ROUNDING, compare_gradients
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from clipvip_lib.files import write_json
from clipvip_lib.models.ofa import OFA, OFAConfig, ResNetStem

CONFIG = OFAConfig(
    32, 1, 1, 48, 40, 4, 2, "resnet18", 4, vocab_size=40, max_position_embeddings=40, token_bucket_size=8,
    image_bucket_size=5, dropout=0.0,
)  # fmt: skip
FIRST = "encoder.embed_images.conv1.weight"
LAST = "decoder.layers.0.fc2.weight"


def channels_first(self: ResNetStem, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
    return self.layer3(self.layer2(self.layer1(x)))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A case of a training step, as far as its gradients need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden_files, "FOLDER", tmp_path_factory.mktemp("goldens"))
        folder = golden_files.FOLDER / "ofa" / "nearly constant"
        folder.mkdir(parents=True)
        draw = torch.Generator().manual_seed(1)
        vectors = {
            f"in.{name}": torch.randint(4, 40, (4, length), generator=draw)
            for name, length in (("input_ids", 4), ("decoder_input_ids", 5), ("labels", 5))
        }
        vectors["in.patch_images"] = 0.5 + 1e-4 * torch.randn(4, 3, 32, 32, generator=draw)
        torch.manual_seed(1)
        weights = {key: value.clone() for key, value in OFA(CONFIG).state_dict().items()}  # some share memory
        save_file(weights, folder / "weights.safetensors")
        save_file(vectors, folder / "vectors.safetensors")
        write_json(folder / "case.json", {"config": dataclasses.asdict(CONFIG)})
        made = golden_files.read("ofa", folder.name)
        with pytest.MonkeyPatch.context() as theirs:
            theirs.setattr(ResNetStem, "forward", channels_first)
            net, _ = ofa_cases.training_step(made, torch.float32)
        exact, reference = (ofa_cases.gradients(each) for each in (ofa_cases.trained(folder.name)[0], net))
        noise = [name for name, value in exact.items() if value.norm() < 1e-9]
        norms = {name: 0.0 for name, _ in net.named_parameters()}
        norms |= {name: float(value.norm()) for name, value in reference.items()}
        made.vectors |= {f"grad.{name}": value for name, value in reference.items() if name not in noise}
        made.keys |= made.vectors.keys()
        made.info |= {"train.grad_noise_only": noise, "train.grad_norm": norms}
        yield made


def with_another(case, weight: str, change) -> golden_files.Case:
    """The case with another reference for one weight's gradient, and its norm."""
    other, gradient = copy.copy(case), change(case[f"grad.{weight}"])
    other.vectors = case.vectors | {f"grad.{weight}": gradient}
    norms = case.info["train.grad_norm"] | {weight: float(gradient.norm())}
    other.info = case.info | {"train.grad_norm": norms}
    return other


def test_rounding_that_a_tiny_batch_magnifies_passes(case):
    rows = list(compare_gradients(case))
    assert len(rows) == 3 and all(row.difference <= row.tolerance for row in rows), rows
    exact = ofa_cases.gradients(ofa_cases.trained(case.name)[0])
    off = {key: relative(exact[key.removeprefix("grad.")], case[key]) for key in case.starting("grad.")}
    assert max(off.values()) > GRADIENT, "the case is too easy"
    assert rows[0].difference == off[f"grad.{rows[0].where}"]


def test_what_is_allowed_is_twice_our_own_rounding_weight_by_weight(case):
    exact = ofa_cases.gradients(ofa_cases.trained(case.name)[0])
    single = ofa_cases.gradients(ofa_cases.training_step(case, torch.float32)[0])
    rounding = ofa_cases.rounding(case.name)
    assert all(rounding[name][0] >= relative(single[name], exact[name]) for name in exact)
    assert rounding[FIRST][0] > 10 * rounding[LAST][0]
    wrong = with_another(case, LAST, lambda gradient: gradient * 1.0003)  # less than is allowed elsewhere
    rows = list(compare_gradients(wrong))
    assert [row.where for row in rows[:2]] == [LAST] * 2
    assert all(row.difference > row.tolerance == GRADIENT for row in rows[:2])


@pytest.mark.parametrize(
    "change",
    [
        lambda gradient: -gradient,
        lambda gradient: 1.05 * gradient,
        lambda gradient: gradient / 2,
        lambda gradient: gradient.flip(0),
        lambda gradient: 0 * gradient,
        lambda gradient: gradient * float("nan"),
    ],
    ids=["sign", "a twentieth more", "half", "other channels", "zero", "not a number"],
)
def test_a_wrong_gradient_fails_where_more_is_allowed_too(case, change):
    assert ROUNDING * ofa_cases.rounding(case.name)[FIRST][0] > GRADIENT
    row = next(compare_gradients(with_another(case, FIRST, change)))
    assert row.where == FIRST and not row.difference <= row.tolerance


def test_a_wrong_norm_fails_where_more_is_allowed_too(case):
    wrong = with_another(case, FIRST, lambda gradient: 1.05 * gradient)
    del wrong.vectors[f"grad.{FIRST}"]
    wrong.keys = case.keys - {f"grad.{FIRST}"}
    whole, norms, still = compare_gradients(wrong)
    assert whole.difference <= whole.tolerance and still.difference <= still.tolerance
    assert norms.where == FIRST and norms.difference > norms.tolerance > GRADIENT
