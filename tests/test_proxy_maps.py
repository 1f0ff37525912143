"""The maps of the proxies are the attention that the model pays, patch by patch."""

import pytest
import torch

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.proxy_maps import proxy_maps

SIZES = {"width": 32, "layers": 3, "heads": 2, "image_size": 24, "patch_size": 8, "embed_dim": 16}


def make(**changes):
    torch.manual_seed(0)
    return ClipViP(ClipViPConfig.small(**SIZES, vocab_size=40, context_length=12, **changes)).eval()


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_they_are_the_weights_of_the_values(layer):
    """What a proxy takes from the values, weighed by its map (and by its share on proxies), is what it gets."""
    model, x = make(proxies=3), torch.randn(2, 4, 3, 24, 24)
    for block in model.vision_model.encoder.layers:  # one head, so that the mean over heads is the head
        block.self_attn.num_heads, block.self_attn.head_dim = 1, 32
        block.self_attn.scale = 32**-0.5
    maps = proxy_maps(model, x, layer)
    assert maps.shape == (2, 3, 4, 3, 3)
    block, got, given = model.vision_model.encoder.layers[layer], [], []
    hooks = [
        block.self_attn.out_proj.register_forward_pre_hook(lambda _, inputs: got.append(inputs[0])),
        block.self_attn.v_proj.register_forward_hook(lambda _, __, out: given.append(out)),
    ]
    with torch.no_grad():
        model.video_states(x)
    for hook in hooks:
        hook.remove()
    on_patches = maps.flatten(2) @ given[0][:, 3:]
    rest = (
        got[0][:, :3] - on_patches
    )  # lies in the span of the three proxies' values, with the rest of the weight
    weights = torch.linalg.lstsq(given[0][:, :3].transpose(1, 2), rest.transpose(1, 2)).solution
    torch.testing.assert_close(
        given[0][:, :3].transpose(1, 2) @ weights, rest.transpose(1, 2), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(weights.sum(1) + maps.flatten(2).sum(2), torch.ones(2, 3), atol=1e-4, rtol=0)


def test_a_frame_that_is_moved_takes_its_map_along():
    model, x = make(proxies=2), torch.randn(1, 3, 3, 24, 24)
    maps = proxy_maps(model, x)  # a fresh temporal embedding is zero: order does not matter yet
    torch.testing.assert_close(proxy_maps(model, x[:, [2, 0, 1]]), maps[:, :, [2, 0, 1]])


def test_bad_input():
    with pytest.raises(ClipVipError, match="expected attention 'proxy', got 'full'"):
        proxy_maps(make(attention="full"), torch.randn(1, 2, 3, 24, 24))
    with pytest.raises(ClipVipError, match="one of the 3 layers, got 3"):
        proxy_maps(make(), torch.randn(1, 2, 3, 24, 24), layer=3)


def test_the_heads_by_themselves_have_the_mean():
    model, x = make(proxies=3), torch.randn(2, 4, 3, 24, 24)
    heads = proxy_maps(model, x, 1, heads=True)
    assert heads.shape == (2, 2, 3, 4, 3, 3)
    torch.testing.assert_close(heads.mean(1), proxy_maps(model, x, 1))
    assert (heads[:, 0] - heads[:, 1]).abs().max() > 1e-4
