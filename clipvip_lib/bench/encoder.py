"""`clipvip bench encoder`: the video encoder, ours beside the authors' formulation and beside CLIP frame by frame.

    ours                  ClipViP.encode_video: proxies, the last layer for the one token that becomes the feature
    authors               the same weights, attention as the authors write it, every layer for all tokens
    ours, full            all tokens to all tokens
    ours, mean pooling    frames apart
    ours, int8            proxies, the layers' products in 8-bit integers (forward, on a processor that has them)
    Hugging Face          CLIPModel.get_image_features of all frames, the mean of them
    open_clip             encode_image of all frames, the mean of them (where it has a model of that patch size)

Weights are random, of the released shapes. Forms with the same weights must give the same features, which is checked,
int8 nearly the same.
Work is what the feature needs (flops.video_flops): a form that computes more is not credited with it.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvip_lib.bench import authors_attention
from clipvip_lib.bench.measure import PRODUCT, about, in_turns, product, set_threads
from clipvip_lib.errors import ClipVipError
from clipvip_lib.flops import ClipSizes, video_flops
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.int8 import in_int8, is_exact
from clipvip_lib.precision import autocast


def measure(
    repeats: int = 5, batch: int = 2, frames: int = 12, patch: int = 32, precision: str = "float32",
    device: str = "cpu", threads: int = 1, backward: bool = False, config: ClipViPConfig | None = None,
) -> dict:  # fmt: skip
    """Rows of form: milliseconds a video, times as fast as the authors', share of the product's rate.

    backward: the gradient of the encoder's weights, too, counted as twice the work of the forward pass; it adds up over
    the turns. ``config``: of another size than the released one. Raises ClipVipError if forms that must agree do not.
    """
    set_threads(threads)
    place = torch.device(device)
    config = config or ClipViPConfig(vision_config={"patch_size": patch}, temporal_size=frames)
    side = config.vision_config.image_size
    torch.manual_seed(0)
    pixels = torch.randn(batch, frames, 3, side, side, device=place)
    calls, sizes = _forms(config, pixels, place, backward)
    with torch.inference_mode(), autocast(precision, place):
        _agree(calls)

    def run(call: Callable[[], Tensor]) -> None:
        with torch.inference_mode(not backward):
            with autocast(precision, place):
                features = call()
            if backward:
                features.sum().backward()

    forms: dict[str, Callable[[], object]] = {name: partial(run, call) for name, call in calls.items()}
    forms[PRODUCT], product_flops = product(place, precision)
    seconds = in_turns(forms, repeats, place)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    rate = product_flops / medians[PRODUCT]
    work = {name: (3 if backward else 1) * video_flops(sizes[name]) for name in calls}
    rows = [
        {
            "form": name,
            "ms_a_video": round(1e3 * medians[name] / batch, 1),
            "ms_min": round(1e3 * min(seconds[name]) / batch, 1),
            "ms_max": round(1e3 * max(seconds[name]) / batch, 1),
            "gflop_a_video": round(work[name] / 1e9, 1),
            "times_authors": round(medians["authors"] / medians[name], 2),
            "share_of_the_product": None  # which is not one of 8-bit integers
            if name == "ours, int8"
            else round(batch * work[name] / medians[name] / rate, 3),
        }
        for name in calls
    ]
    return {
        "what": f"the encoder's forward {'and backward ' * backward}pass, ViT-B/{config.vision_config.patch_size}, "
        f"{frames} frames of {side} pixels, batch {batch}",
        "precision": precision,
        "gflop_per_second_of_the_product": round(rate / 1e9, 1),
        "rows": rows,
        **about(("transformers", "open_clip_torch"), device),
    }


def _forms(
    config: ClipViPConfig, pixels: Tensor, device: torch.device, backward: bool
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, ClipSizes]]:
    proxy = _built(config, "proxy", device)
    written_out = _built(config, "proxy", device)
    written_out.load_state_dict(proxy.state_dict())
    written_out.config.vision_config._attn_implementation = authors_attention.NAME
    full, mean = (_built(config, attention, device) for attention in ("full", "mean_pool"))
    calls = {
        "ours": lambda: proxy.encode_video(pixels),
        "authors": lambda: _all_tokens(written_out, pixels),
        "ours, full": lambda: full.encode_video(pixels),
        "ours, mean pooling": lambda: mean.encode_video(pixels),
        "Hugging Face": _hugging_face(mean, pixels),
    }
    if not backward and device.type == "cpu" and is_exact():
        quick = in_int8(proxy)
        calls["ours, int8"] = lambda: quick.encode_video(pixels)
    models = {"ours": proxy, "authors": proxy, "ours, full": full, "ours, int8": proxy}
    sizes = {name: ClipSizes.of(models.get(name, mean).config) for name in [*calls, "open_clip"]}
    if (call := _open_clip(mean, pixels, device)) is not None:
        calls["open_clip"] = call
    return calls, sizes


def _built(config: ClipViPConfig, attention: str, device: torch.device) -> ClipViP:
    return ClipViP(ClipViPConfig.from_dict({**config.to_dict(), "attention": attention})).eval().to(device)


def _all_tokens(model: ClipViP, pixels: Tensor) -> Tensor:
    first = model.vision_model.post_layernorm(model.video_states(pixels)[:, 0])
    return F.normalize(model.visual_projection(first).float(), dim=-1)


def _hugging_face(mean: ClipViP, pixels: Tensor) -> Callable[[], Tensor]:
    from transformers import CLIPConfig, CLIPModel

    fields = mean.config.to_dict()
    config = CLIPConfig(
        vision_config=fields["vision_config"],
        text_config=fields["text_config"],
        projection_dim=fields["projection_dim"],
        attn_implementation="sdpa",
    )
    model = CLIPModel(config).eval().to(pixels.device)
    model.load_state_dict(mean.state_dict())

    def call() -> Tensor:
        found = model.get_image_features(pixel_values=pixels.flatten(0, 1))
        found = found if isinstance(found, Tensor) else found.pooler_output
        return _mean(found, pixels)

    return call


def _open_clip(mean: ClipViP, pixels: Tensor, device: torch.device) -> Callable[[], Tensor] | None:
    import open_clip

    vision = mean.config.vision_config
    name = f"ViT-B-{vision.patch_size}-quickgelu"
    sizes = (vision.image_size, vision.hidden_size, vision.num_hidden_layers)
    if name not in open_clip.list_models() or sizes != (224, 768, 12):
        return None
    with _silent():  # it warns that weights are random
        model = open_clip.create_model(name, pretrained=None, load_weights=False).eval().to(device)
    return lambda: _mean(model.encode_image(pixels.flatten(0, 1)), pixels)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _mean(features: Tensor, pixels: Tensor) -> Tensor:
    frames = F.normalize(features.float(), dim=-1).unflatten(0, pixels.shape[:2])
    return F.normalize(frames.mean(1), dim=-1)


def _agree(calls: dict[str, Callable[[], Tensor]]) -> None:
    pairs = (("ours", "authors"), ("ours, mean pooling", "Hugging Face"), ("ours", "ours, int8"))
    for one, other in [pair for pair in pairs if pair[1] in calls]:
        cosine = (calls[one]() * calls[other]()).sum(-1).min().item()
        if not cosine > 0.999:
            raise ClipVipError(
                f"{other!r} gives features of cosine {cosine:.4f} to those of {one!r}: expected the same ones"
            )
