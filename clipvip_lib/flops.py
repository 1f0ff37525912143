"""How much CLIP-ViP and OFA compute: FLOPs of their matrix products and numbers of weights, by arithmetic.

Nothing is built or run: a formula takes sizes and gives FLOPs (a multiplication and an addition are two), and tests
hold it equal to what torch counts in the running models, product by product. So the cost of a model that no machine
here can hold is read from its configuration. Norms, softmaxes and activations are left out: they cost memory
traffic, hardly any arithmetic.

Legend: M proxies, N frames, L patches per frame, S = M + N*L tokens, D width, T text tokens, E embedding; for OFA
C image cells, S = C + prompt tokens, U decoding steps, K beam.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.models.attentions import ATTENTIONS, JOINT


@dataclass(frozen=True)
class ClipSizes:
    """The sizes of a CLIP-ViP; the defaults are ViT-B/32's. ``of`` reads them from a model's configuration."""

    attention: str = "proxy"
    proxies: int = 4
    frames: int = 12
    width: int = 768
    layers: int = 12
    mlp: int = 3072
    image_size: int = 224
    patch_size: int = 32
    embed_dim: int = 512
    text_width: int = 512
    text_layers: int = 12
    text_mlp: int = 2048
    context_length: int = 77
    vocab_size: int = 49_408
    sequence_layers: int = 4

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise unknown("attention", self.attention, ATTENTIONS)

    @classmethod
    def of(cls, config) -> ClipSizes:
        """The sizes in a ``ClipViPConfig``. Raises ClipVipError if its pictures or patches are not square."""
        vision, text = config.vision_config, config.text_config
        if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
            raise ClipVipError(
                f"FLOPs are counted for square pictures and patches, got {vision.image_size} and {vision.patch_size}"
            )
        return cls(
            attention=config.attention,
            proxies=config.proxies,
            frames=config.temporal_size,
            width=vision.hidden_size,
            layers=vision.num_hidden_layers,
            mlp=vision.intermediate_size,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            embed_dim=config.projection_dim,
            text_width=text.hidden_size,
            text_layers=text.num_hidden_layers,
            text_mlp=text.intermediate_size,
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            sequence_layers=config.sequence_layers,
        )

    @property
    def patches(self) -> int:
        """L, patches of a frame."""
        return (self.image_size // self.patch_size) ** 2


# --------------------------------------------------------------------------------------------- CLIP-ViP


def attention_pairs(attention: str, proxies: int, frames: int, patches: int) -> int:
    """Query-key pairs of one layer for one video: 33.5 thousand for B/32, 12 frames, 4 proxies; full 350 thousand.

    All tokens of a sequence see each other, except in proxy attention.
    """
    M, N, L = proxies, frames, patches
    if attention == "proxy":
        return M * (M + N * L) + N * L * (M + L)
    return (M + N * L) ** 2 if attention in JOINT else N * (1 + L) ** 2


def video_flops(sizes: ClipSizes, frames: int | None = None) -> int:
    """FLOPs of ``encode_video`` for one video of N frames (by default the model's); 1 frame: a middle frame F."""
    N, L, D = sizes.frames if frames is None else frames, sizes.patches, sizes.width
    joint = sizes.attention in JOINT
    sequences = 1 if joint else N  # without proxies every frame is its own sequence
    tokens = sizes.proxies + N * L if joint else 1 + L
    pairs = attention_pairs(sizes.attention, sizes.proxies, N, L) // sequences
    one = _tower(tokens, D, sizes.mlp, sizes.layers, pairs) + 2 * D * sizes.embed_dim
    total = patch_flops(sizes, frames) + sequences * one
    if sizes.attention == "sequential":
        E = sizes.embed_dim
        total += sizes.sequence_layers * _layer(N, E, 4 * E, N * N)
    return total


def patch_flops(sizes: ClipSizes, frames: int | None = None) -> int:
    """FLOPs of the patch embedding, the one product whose input (pixels) needs no gradient."""
    frames = sizes.frames if frames is None else frames
    return 2 * frames * sizes.patches * 3 * sizes.patch_size**2 * sizes.width


def text_flops(sizes: ClipSizes, tokens: int | None = None) -> int:
    """FLOPs of ``encode_text`` for one text padded to T tokens (by default the context length)."""
    T, D = sizes.context_length if tokens is None else tokens, sizes.text_width
    return _tower(T, D, sizes.text_mlp, sizes.text_layers, T * T) + 2 * D * sizes.embed_dim


def forward_flops(sizes: ClipSizes, sources: frozenset[str], tokens: int | None = None) -> int:
    """FLOPs of the features of one clip: those of V, S, F, C that a loss joins (``omnisource.needs``)."""
    each = {
        "V": lambda: video_flops(sizes),
        "F": lambda: video_flops(sizes, 1),
        "S": lambda: text_flops(sizes, tokens),
        "C": lambda: text_flops(sizes, tokens),
    }
    if strange := sources - each.keys():
        raise unknown("source", sorted(strange)[0], each)
    return sum(each[source]() for source in sources)


def step_flops(sizes: ClipSizes, sources: frozenset[str], tokens: int | None = None) -> int:
    """FLOPs of a training step for one clip: each forward product costs two backward, but for the pixels' gradient.

    Checkpointed activations or gradient caching compute the forward pass once more: add ``forward_flops``.
    """
    pixels = ("V" in sources) * patch_flops(sizes) + ("F" in sources) * patch_flops(sizes, 1)
    return 3 * forward_flops(sizes, sources, tokens) - pixels


def _layer(tokens: int, width: int, mlp: int, pairs: int) -> int:
    """A transformer layer: queries, keys, values, output; the MLP; scores and their weighted sum."""
    return 8 * tokens * width**2 + 4 * tokens * width * mlp + 4 * pairs * width


def _tower(tokens: int, width: int, mlp: int, layers: int, pairs: int) -> int:
    """All layers; the last one needs only keys and values of every token, and the rest of one token."""
    last = 4 * tokens * width**2 + 4 * width**2 + 4 * tokens * width + 4 * width * mlp
    return (layers - 1) * _layer(tokens, width, mlp, pairs) + last


def clip_parameters(sizes: ClipSizes) -> int:
    """Number of weights of a CLIP-ViP, both towers and logit_scale."""
    D, Dt, E = sizes.width, sizes.text_width, sizes.embed_dim
    joint = sizes.attention in JOINT
    embeddings = D + 3 * sizes.patch_size**2 * D + (sizes.patches + 1) * D
    if joint:
        embeddings += (sizes.proxies - 1) * D + sizes.frames * D
    vision = embeddings + sizes.layers * _layer_parameters(D, sizes.mlp) + 4 * D + D * E
    text = (sizes.vocab_size + sizes.context_length) * Dt + 2 * Dt + Dt * E
    text += sizes.text_layers * _layer_parameters(Dt, sizes.text_mlp)
    sequence = sizes.frames * E + sizes.sequence_layers * _layer_parameters(E, 4 * E)
    return vision + text + 1 + (sequence if sizes.attention == "sequential" else 0)


def count_parameters(model) -> int:
    """Number of weights of a model that was built (a module of torch's)."""
    return sum(parameter.numel() for parameter in model.parameters())


def _layer_parameters(width: int, mlp: int) -> int:
    """Four projections, the MLP, two LayerNorms, all with biases."""
    return 4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width


# ------------------------------------------------------------------------------------------------- OFA


def ofa_flops(config, image_size: int, prompt: int, beam: int, steps: int, images: int = 1) -> int:
    """FLOPs of captioning a batch of images with OFA: stem, encoder, and a beam that runs for all its steps.

    config: an ``OFAConfig``. prompt: its tokens with ``<s>`` and ``</s>``. beam: hypotheses per image. steps:
    decoding steps, at most the longest caption plus one for ``</s>`` (an image whose beam ends earlier costs less, so
    this is an upper bound). The biases of positions are computed once per batch.
    """
    D, cells = config.d_model, (-(-image_size // 16)) ** 2
    S = cells + prompt
    encoder = config.encoder_layers * _layer(S, D, config.encoder_ffn_dim, S * S)
    an_image = stem_flops(config, image_size) + 2 * cells * 16 * config.resnet_width * D + encoder
    an_image += config.decoder_layers * 4 * S * D**2  # keys and values of what is attended to, once
    # A token: self-attention (8 D^2), queries and output of cross-attention (4 D^2) with S scores, the MLP.
    token = 12 * D**2 + 4 * S * D + 4 * D * config.decoder_ffn_dim
    seen = 4 * D * steps * (steps + 1) // 2  # its own tokens, one more with every step
    a_hypothesis = config.decoder_layers * (steps * token + seen) + steps * 2 * D * config.vocab_size
    shared = 4 * S * D**2 + 2 * S * S * D  # the encoder's bias
    shared += 4 * steps * D**2 + 2 * steps**2 * D  # the decoder's own
    shared += 2 * (steps + S) * D**2 + 2 * steps * S * D  # and the cross-attention's
    return images * (an_image + beam * a_hypothesis) + shared


def stem_flops(config, image_size: int) -> int:
    """FLOPs of OFA's ResNet (three stages of bottlenecks) for one square image."""
    from clipvip_lib.models.ofa import RESNET_BLOCKS

    width, side = config.resnet_width, _half(image_size)
    total = 2 * side**2 * 3 * width * 49
    side, channels = _half(side), width
    for stage, blocks in enumerate(RESNET_BLOCKS[config.resnet_type]):
        inner = width << stage
        for block in range(blocks):
            strided = bool(stage) and not block
            after = _half(side) if strided else side
            total += 2 * side**2 * channels * inner  # 1 x 1, before the stride
            total += 2 * after**2 * (9 * inner**2 + 4 * inner**2)
            if strided or channels != 4 * inner:
                total += 2 * after**2 * channels * 4 * inner
            side, channels = after, 4 * inner
    return total


def _half(side: int) -> int:
    return -(-side // 2)
