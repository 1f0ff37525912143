"""open_clip's ViTs under Hugging Face's names.

The two write the same network with other names. Converted here: the fused query-key-value matrix is split,
projections are stored transposed, and the activation (QuickGELU in OpenAI's models, GELU in most others), the
numbers of heads and the LayerNorm epsilon, which no weight tells, are read off the built model.

Source: open_clip/model.py (class CLIP), open_clip/transformer.py (VisionTransformer).
"""

from __future__ import annotations

from torch import Tensor

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViPConfig

#: open_clip name -> Hugging Face name, for what stands outside the layers.
NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
}
#: The same inside a layer.
LAYER_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_open_clip(model) -> tuple[ClipViPConfig, dict[str, Tensor]]:
    """Configuration and weights, Hugging Face's names, of an open_clip model with two plain ViT towers.

    Names that have no counterpart are kept as they are, for the strict loader to name.
    Raises ClipVipError for towers of another kind (ResNet, CoCa, SigLIP, attentional pooling ..).
    """
    _refuse_other_towers(model)
    state = {}
    for name, value in model.state_dict().items():
        if name != "attn_mask":
            state |= _convert(name, value)
    return _config(model, state), state


def _refuse_other_towers(model) -> None:
    kinds = (type(model).__name__, type(model.visual).__name__ if hasattr(model, "visual") else "none")
    faults = []
    if kinds != ("CLIP", "VisionTransformer"):
        faults.append(f"a {kinds[0]} with a vision tower of kind {kinds[1]}")
    elif model.visual.attn_pool is not None or model.visual.pool_type != "tok":
        faults.append(f"a vision tower that pools by {model.visual.pool_type!r}")
    elif getattr(model, "text_pool_type", "argmax") != "argmax" or model.attn_mask is None:
        faults.append("a text tower without causal attention or another end-of-text rule")
    if faults:
        raise ClipVipError(
            "CLIP-ViP expected an open_clip model with two plain ViT towers (ViT-B-32, ViT-B-16, ..), got "
            f"{faults[0]}"
        )


def _convert(name: str, value: Tensor) -> dict[str, Tensor]:
    """One open_clip weight -> one Hugging Face weight, or three for a fused one."""
    for marker, tower in (
        ("visual.transformer.resblocks.", "vision_model"),
        ("transformer.resblocks.", "text_model"),
    ):
        if name.startswith(marker):
            number, _, rest = name.removeprefix(marker).partition(".")
            layer = f"{tower}.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                parts = zip("qkv", value.chunk(3), strict=True)
                return {f"{layer}.self_attn.{p}_proj.{kind}": part.clone() for p, part in parts}
            module, _, kind = rest.rpartition(".")
            return (
                {f"{layer}.{LAYER_NAMES[module]}.{kind}": value} if module in LAYER_NAMES else {name: value}
            )
    if name in ("visual.proj", "text_projection"):
        return {NAMES[name]: value.T.contiguous()}
    module, _, kind = name.rpartition(".")
    return {NAMES.get(name) or (f"{NAMES[module]}.{kind}" if module in NAMES else name): value}


def _config(model, state: dict[str, Tensor]) -> ClipViPConfig:
    vocab_size, _ = state["text_model.embeddings.token_embedding.weight"].shape
    embed_dim = len(state["visual_projection.weight"])
    patch = model.visual.conv1.kernel_size
    size = model.visual.image_size

    def tower(transformer, norm) -> dict:
        block = transformer.resblocks[0]
        act = type(block.mlp.gelu).__name__
        if act not in ("QuickGELU", "GELU"):
            raise ClipVipError(f"CLIP-ViP expected QuickGELU or GELU in an open_clip model, got {act}")
        return {
            "hidden_size": block.attn.embed_dim,
            "intermediate_size": block.mlp.c_fc.out_features,
            "num_hidden_layers": len(transformer.resblocks),
            "num_attention_heads": block.attn.num_heads,
            "hidden_act": "quick_gelu" if act == "QuickGELU" else "gelu",
            "layer_norm_eps": norm.eps,
            "projection_dim": embed_dim,
        }

    square = size[0] == size[1] and patch[0] == patch[1]
    return ClipViPConfig(
        vision_config=tower(model.visual.transformer, model.visual.ln_post)
        | {
            "image_size": size[0] if square else list(size),
            "patch_size": patch[0] if square else list(patch),
        },
        text_config=tower(model.transformer, model.ln_final)
        | {"vocab_size": vocab_size, "max_position_embeddings": len(model.positional_embedding)}
        | {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1, "pad_token_id": 0},
        projection_dim=embed_dim,
    )
