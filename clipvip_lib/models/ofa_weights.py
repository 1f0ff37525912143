"""Released OFA weights into an OFA, whole or not at all.

Two layouts: fairseq's ``caption_{base,large,huge}_best*.pt`` (weights under "model", beside a configuration that
may be an ``argparse.Namespace``) and Hugging Face's ``OFA-Sys/ofa-*-caption`` folders. CLIP-ViP captioned with
fairseq's ``caption_large_best_clean.pt``; the two layouts' files are reported to give different captions, so
fairseq's are preferred. Sizes are read off the shapes: a file needs no configuration.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.hub import local
from clipvip_lib.models.load_report import LoadReport, State, fit, not_finite, one_sentence
from clipvip_lib.models.ofa import OFA, RESNET_BLOCKS, OFAConfig, ofa_state_dict
from clipvip_lib.models.weight_files import read_folder, read_weights, refuse_prefixes

EMBEDDING = "encoder.embed_tokens.weight"
TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
#: A name that every OFA has, in both layouts, and no CLIP.
SIGN_OF_OFA = "encoder.embed_image_positions.weight"


def load_ofa(source: str | Path, *, config: OFAConfig | None = None) -> tuple[OFA, LoadReport]:
    """An OFA in evaluation mode, float32, with the weights of a released file or folder, and the report.

    source: fairseq's .pt, a Hugging Face folder (or its name on the Hub) or its file of weights, or a folder of
    ``Captioner.save``.
    config: used in place of the sizes read off the shapes; weights that do not fit it are refused.

    Raises ClipVipError, in one sentence, for a source that is none of these, a file that is damaged or is
    something else, or weights that are missing, left over, of another shape or not finite.
    """
    with one_sentence(source):
        path = local(source)
        fields, state = read_folder(path) if path.is_dir() else (None, read_weights(path))
        return ofa_from_state(state, str(source), config or config_of_folder(fields))


def ofa_from_state(state: State, source: str, config: OFAConfig | None = None) -> tuple[OFA, LoadReport]:
    """An OFA that takes over the tensors of a raw state dict in either layout; as ``load_ofa``."""
    if config is not None and not isinstance(config, OFAConfig):
        raise ClipVipError(
            f"config= of an OFA expected an OFAConfig, got {type(config).__name__}; leave it out"
        )
    refuse_prefixes(state, source)
    weights, dropped = ofa_state_dict(state)
    with torch.device("meta"):  # nothing is drawn that is overwritten at once
        model = OFA(config or infer_ofa_config(weights, source))
    report = LoadReport(source, dropped=dropped)
    _untie(weights, source, report)
    wanted = {name: value for name, value in model.state_dict().items() if name not in TIED}
    missing = [name for name in wanted if name not in weights]
    advice = "take a checkpoint of OFA's captioning model, or leave config= out"
    fit(source, weights, wanted, missing, advice, report)
    report.loaded = sorted([*weights, *(name for name in TIED if name in state)])
    model.load_state_dict(weights | dict.fromkeys(TIED, weights[EMBEDDING]), assign=True)
    # Assigned one by one, they are three parameters that share memory: training wants one.
    model.decoder.embed_tokens = model.encoder.embed_tokens
    model.decoder.output_projection.weight = model.encoder.embed_tokens.weight
    return model.requires_grad_().eval(), report


def infer_ofa_config(state: State, source: str = "the given weights") -> OFAConfig:
    """Sizes of an OFA from the shapes of its weights (Hugging Face's names).

    Dropout and drop-path, which no shape tells, are the defaults. Raises ClipVipError if a weight that tells a
    size is missing: then this is not an OFA.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ClipVipError(
                f"{source} expected the weights of an OFA, {name} is missing among its {len(state)} names "
                f"({', '.join(list(state)[:3])}, ..); give OFA's caption checkpoint (fairseq .pt or Hugging Face)"
            )
        return state[name].shape

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in state)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def side(name: str) -> dict[str, int]:
        return {
            f"{name}_layers": count(rf"{name}\.layers\.(\d+)\."),
            f"{name}_ffn_dim": shape(f"{name}.layers.0.fc1.weight")[0],
            f"{name}_attention_heads": shape(f"{name}.layers.0.self_attn.c_attn")[0],
        }

    rows = {name: shape(f"encoder.{name}.weight")[0] for name in ("embed_positions", "embed_image_positions")}
    blocks = tuple(count(rf"encoder\.embed_images\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3))
    known = {sizes: name for name, sizes in RESNET_BLOCKS.items()}
    if blocks not in known:
        raise ClipVipError(
            f"{source} has a ResNet with {blocks} blocks: expected one of {sorted(known)}, those of OFA's sizes"
        )
    vocab_size, width = shape(EMBEDDING)
    return OFAConfig(
        d_model=width,
        vocab_size=vocab_size,
        **side("encoder"),
        **side("decoder"),
        resnet_type=known[blocks],
        resnet_width=shape("encoder.embed_images.conv1.weight")[0],
        max_position_embeddings=rows["embed_positions"] - 2,
        token_bucket_size=(shape("encoder.token_rel_pos_table_list.0.weight")[0] + 1) // 2,
        image_bucket_size=round((rows["embed_image_positions"] - 1) ** 0.5),
    )


def config_of_folder(fields: dict | None) -> OFAConfig | None:
    """The configuration in a folder's config.json; ``Captioner.save`` has it under "ofa"."""
    if not fields:
        return None
    fields = fields.get("ofa", fields)
    if fields.get("model_type", "ofa") != "ofa":
        raise ClipVipError(
            f"expected the folder of an OFA, its config.json says {fields['model_type']!r}; give OFA's caption model"
        )
    return OFAConfig.from_dict(fields)


def _untie(weights: dict, source: str, report: LoadReport) -> None:
    """Take out the copies of the token embedding; one may be missing, but none may differ."""
    for name in TIED:
        copy = weights.pop(name, None)
        if copy is None:
            report.added[name] = f"the same tensor as {EMBEDDING}"
        elif (
            EMBEDDING in weights
            and not not_finite({name: copy})
            and not torch.equal(copy, weights[EMBEDDING])
        ):
            raise ClipVipError(
                f"{source} stores a {name} other than {EMBEDDING}, nothing was loaded: expected one tensor, "
                "tied; the checkpoint was damaged or converted wrongly, take the released one"
            )
