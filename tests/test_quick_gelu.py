"""QuickGELU in few passes is transformers' QuickGELU, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import QuickGELUActivation

from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.quick_gelu import QuickGELU

pytestmark = pytest.mark.filterwarnings("error")
ours, theirs = QuickGELU(), QuickGELUActivation()


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-60, 60), min_size=1, max_size=40))
def test_is_that_of_transformers_with_its_gradient(values):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    found, right = ours(x), theirs(x)
    assert torch.allclose(found, right, rtol=1e-12, atol=1e-12)
    weight = torch.arange(1.0, len(values) + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (found, right)]
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_its_input_stays_as_it_is(dtype):
    x = torch.linspace(-8, 8, 1001).to(dtype)
    before = x.clone()
    exact = theirs(x.double())
    with torch.inference_mode():
        found = ours(x)
    assert torch.equal(x, before) and found.dtype == dtype
    # Each step rounds by half of the type's last bit; that of 1.702 x counts |1.702 x| times in its exponential.
    bound = (2 + 1.702 * x.double().abs()) * torch.finfo(dtype).eps * exact.abs()
    assert ((found.double() - exact).abs() <= bound + 1e-30).all()


def test_keeps_one_tensor_for_the_backward_pass_not_two():
    def kept(activation):
        seen = []
        x = torch.randn(7, 5, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.data_ptr()) or t, lambda t: t):
            activation(x * 1.0)
        return len(set(seen))

    assert (kept(ours), kept(theirs)) == (1, 2)


def test_a_second_derivative_is_refused_not_wrong():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(ours(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="silu_backward is not implemented"):
        (first * x).sum().backward()


@pytest.mark.filterwarnings("default")  # of torch's compiler, about its own workings
def test_is_traced_without_a_break():
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.allclose(compiled(x), theirs(x), atol=1e-6)
    found, right = (torch.autograd.grad(form(x).sum(), x)[0] for form in (compiled, theirs))
    assert torch.allclose(found, right, atol=1e-6)


def test_models_with_clips_activation_have_it_and_others_do_not():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for act in ("quick_gelu", "gelu"):
        config = ClipViPConfig(
            vision_config={**small, "hidden_act": act, "image_size": 16, "patch_size": 8},
            text_config={**small, "hidden_act": act, "vocab_size": 50},
            projection_dim=16,
            attention="sequential",
            temporal_size=4,
        )
        found = [type(m.activation_fn) for m in ClipViP(config).modules() if hasattr(m, "activation_fn")]
        assert len(found) >= 3 and all((each is QuickGELU) == (act == "quick_gelu") for each in found)
