"""Compares our CLIP-ViP with every vector of a golden case: features, hidden state, losses and their gradients.

The model is built from case.json alone: widths, heads, proxies, frames and image sizes may be any.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from equality import relative, where_large
from golden_files import Case, Row, read
from torch import Tensor

from clipvip_lib.losses import ocl_loss
from clipvip_lib.models.checkpoints import build, load_weights
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.omnisource import needs

FEATURE, LOSS = 1e-5, 1e-9  # float32 forward; float64 losses and gradients, relative
VIDEOS = {  # quantity: the vector, and the pixels that it is made from
    "video feature": ("video_embeds", "pixel_values"),
    "frame feature": ("frame_embeds", "frame_pixel_values"),
    "last hidden state": ("vision_last_hidden_state", "pixel_values"),
}
TEXTS = {f"{text} feature": (f"{text}_embeds", text) for text in ("subtitle", "caption")}
MODES = ("inference", "training")  # with gradients another kernel may be chosen
SOURCES = {"V": "video", "S": "subtitle", "F": "frame", "C": "caption"}
#: The losses that the authors' code computes. A further row of ``LOSSES`` has no vectors.
AUTHORS = ("V-S", "V-S + F-C", "V-S + V-C", "V-S + V-C + F-C", "V-S,C", "V-S,C + F-C")

SIZES = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "hidden_act": str,
}
NEEDED_INFO = (
    ((), {"projection_dim": int, "temporal_size": int, "proxies": int, "batch": int, "frames": int}),
    ((), {"loss_logit_scale_log": float | int}),
    (("text_config",), SIZES | {"vocab_size": int, "max_position_embeddings": int}),
    (("vision_config",), SIZES | {"image_size": int | list, "patch_size": int | list}),
    (("losses_sum_of_cross_entropies",), dict.fromkeys(AUTHORS, float | int)),
)
INPUTS = {
    "pixel_values",
    "frame_pixel_values",
    *(f"{text}_{kind}" for text in ("subtitle", "caption") for kind in ("input_ids", "attention_mask")),
    *(f"loss_{source}" for source in SOURCES.values()),
}
COMPARED = {
    *(vector for vector, _ in (VIDEOS | TEXTS).values()),
    *(f"grad_video/{loss}" for loss in AUTHORS),
}
#: A case may also hold the gradients of the other features.
POSSIBLE = {f"grad_{SOURCES[source]}/{loss}" for loss in AUTHORS for source in needs(loss)}


def faults(case: Case) -> list[str]:
    """What the case lacks, what nothing compares, and what does not fit together."""
    found = [fault for path, kinds in NEEDED_INFO for fault in case.lacks_info(kinds, *path)]
    found += case.lacks(sorted(INPUTS | COMPARED))
    unknown = [
        *(f"the vector {key}" for key in sorted(case.keys - INPUTS - COMPARED - POSSIBLE)),
        *(
            f"the loss {key}"
            for key in case.info.get("losses_sum_of_cross_entropies", ())
            if key not in AUTHORS
        ),
    ]
    found += [f"nothing compares {what}" for what in unknown]
    return found or wrong_shapes(case)


def wrong_shapes(case: Case) -> list[str]:
    """Pixels as case.json says; a mask that covers a text's right end."""
    size, batch = case.info["vision_config"]["image_size"], case.info["batch"]
    image = [3, size, size] if isinstance(size, int) else [3, *size]
    wanted = {"pixel_values": [batch, case.info["frames"], *image], "frame_pixel_values": [batch, 1, *image]}
    found = [
        f"{key} expected {shape} by case.json, is {list(case[key].shape)}"
        for key, shape in wanted.items()
        if list(case[key].shape) != shape
    ]
    for text in ("subtitle", "caption"):
        mask = case[f"{text}_attention_mask"]
        if mask.shape != case[f"{text}_input_ids"].shape or not mask.eq(mask.bool()).all():
            found.append(f"{text}_attention_mask expected zeros and ones, one for each id")
        elif (mask.diff(dim=1) > 0).any():
            found.append(f"{text}_attention_mask expected the padding on the right")
    return found


def groups(case: Case) -> list[str]:
    """The names of what ``compare`` knows; the same for all cases."""
    return [*(f"{quantity}, {mode}" for quantity in VIDEOS | TEXTS for mode in MODES), *AUTHORS]


def compare(case: Case, group: str) -> Iterator[Row]:
    if group in AUTHORS:
        yield from compare_loss(case, group)
        return
    quantity, _, mode = group.partition(", ")
    with torch.set_grad_enabled(mode == "training"):
        vector, ours = feature(case, quantity)
    yield Row(f"{quantity}, {mode}", where_large(ours, case[vector]), FEATURE)


def feature(case: Case, quantity: str) -> tuple[str, Tensor]:
    """The vector's name and our value."""
    net = model(case.name)
    if quantity in TEXTS:
        vector, text = TEXTS[quantity]
        return vector, net.encode_text(case[f"{text}_input_ids"], case[f"{text}_attention_mask"])
    vector, pixels = VIDEOS[quantity]
    states = quantity == "last hidden state"
    return vector, net.video_states(case[pixels]) if states else net.encode_video(case[pixels])


def compare_loss(case: Case, loss: str) -> Iterator[Row]:
    """The authors' sum of cross-entropies, in float64, and its gradient for the features."""
    features = {
        key: case[f"loss_{source}"].double().requires_grad_()
        for key, source in SOURCES.items()
        if key in needs(loss)
    }
    scale = torch.tensor(case.info["loss_logit_scale_log"], dtype=torch.float64)
    ours = ocl_loss(loss, features, scale, reduction="sum")
    expected = torch.tensor(case.info["losses_sum_of_cross_entropies"][loss], dtype=torch.float64)
    yield Row(f"loss {loss}, relative", relative(ours, expected), LOSS)
    gradients = torch.autograd.grad(ours, list(features.values()))
    for key, gradient in zip(features, gradients, strict=True):
        vector = f"grad_{SOURCES[key]}/{loss}"
        if vector in case.keys:
            quantity = f"loss {loss}, gradient for the {SOURCES[key]} feature, relative"
            yield Row(quantity, relative(gradient, case[vector]), LOSS)


@functools.lru_cache(maxsize=1)  # a case's comparisons follow each other
def model(name: str) -> ClipViP:
    """Our model by the case's description, with its weights."""
    case = read("clip_vip", name)
    text = {key: value for key, value in case.info["text_config"].items() if key != "end_of_text"}
    vocab = text["vocab_size"]  # transformers warns of special ids outside the vocabulary
    config = ClipViPConfig(
        vision_config=case.info["vision_config"],
        text_config={"bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": 0} | text,
        projection_dim=case.info["projection_dim"],
        proxies=case.info["proxies"],
        temporal_size=case.info["temporal_size"],
    )
    ours = build(config)
    # Stored with one proxy, the further ones are a tensor without a number.
    weights = {key: value for key, value in case.weights().items() if value.numel()}
    report = load_weights(ours, weights, source=f"golden case {name}")
    assert not report.added and all("position_ids" in key for key in report.dropped), str(report)
    return ours.eval()
