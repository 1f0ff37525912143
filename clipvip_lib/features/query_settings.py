"""What the settings of a folder of features say of the model that made them; told before torch is imported."""

from __future__ import annotations

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import kind_of
from clipvip_lib.models.hub import is_hub_name
from clipvip_lib.models.weight_names import expect_clip
from clipvip_lib.precision import INT8

#: What settings must say for a query to be encoded as the rows were.
QUERY_SETTINGS = {
    "weights": str,
    "pretrained_tag": str | None,
    "checksum": str,
    "attention": str,
    "precision": str,
    "frames": int,
    "antialias": bool,
}


def weights_of(
    settings: dict, weights: str | None = None, pretrained_tag: str | None = None
) -> tuple[str, str | None]:
    """The weights, and their tag, that encode a query as the rows were; ``weights`` says where they lie now, if they
    moved. Raises ClipVipError if they are gone, or the settings do not say how queries are encoded.
    """
    _check_query_settings(settings)
    if weights is None:
        weights, pretrained_tag = settings["weights"], settings["pretrained_tag"]
        if pretrained_tag is None and not kind_of(weights) and not is_hub_name(weights):
            raise ClipVipError(
                f"the weights {weights} that made these features are gone; name where they are now with --weights"
            )
    expect_clip(weights, pretrained_tag)
    return weights, pretrained_tag


def _check_query_settings(settings: dict) -> None:
    for name, kind in QUERY_SETTINGS.items():
        if settings.get("kind") == "texts" and name in ("frames", "antialias"):
            continue  # texts have none
        value = settings.get(name)
        if (name not in settings and name != "pretrained_tag") or not isinstance(value, kind):
            raise ClipVipError(
                f"meta.json of the features expected {name} as `clipvip embed` writes it, got {repr(value)[:60]}; "
                "embed them again"
            )
    if settings["precision"] not in ("float32", "bfloat16", INT8):
        raise ClipVipError(
            f"meta.json of the features expected precision float32, bfloat16 or int8, got "
            f"{repr(settings['precision'])[:60]}; embed them again"
        )
