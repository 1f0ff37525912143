"""OFA, the captioner of CLIP-ViP (paper section 4): middle frame in, one sentence out.

OFA is in no current library, so its captioning path is written here after the authors' code (OFA-Sys/OFA,
fairseq ``models/ofa/unify_transformer.py`` and the Hugging Face port on ``feature/add_transformers``).
It differs from an ordinary encoder-decoder transformer:

* the image enters as the cells of a three-stage ResNet, *before* the prompt's tokens;
* positions are never added to the tokens: they make their own bias (``position_bias``), the same for
  every layer, beside a learnt bias per layer and relative distance;
* NormFormer: a LayerNorm after each attention and one inside each feed-forward, and a gain per head
  (``c_attn``) before the output projection;
* queries are scaled by (2 K)^-1/2, not K^-1/2: position and content each add their half.

Parameters carry the names of the Hugging Face layout, so released weights load strictly; ``ofa_state_dict``
renames fairseq's. Decoder parameters that only image generation uses are kept for that reason.

Legend: B batch, T prompt tokens, C image cells, S = C + T encoder positions, U caption tokens, D width,
H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipvip_lib.data.transform import resize
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.models.load_report import put

BOS, PAD, EOS, UNK = 0, 1, 2, 3
PROMPT = " what does the image describe?"  # the leading space matters: other token ids without it
RESNET_BLOCKS = {  # bottleneck blocks in the three stages that OFA keeps; its "resnet18" is bottleneck too
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
LONGEST_OFFSET = 1024  # of the logarithmic token buckets, whatever the number of positions (authors' rule)

# Fields of a released config.json that switch to another computation than the one written here.
_SUPPORTED = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "normformer": True,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "code_layernorm_embedding": True,
    "add_type_embedding": True,
    "share_decoder_input_output_embed": True,
    "entangle_position_embedding": False,
    "attn_scale_factor": 2.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "resnet_drop_path_rate": 0.0,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": BOS,
}
_ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}


#: The largest numbers that a model is built with: far beyond any OFA, and still built, or refused, within seconds.
LARGEST = {"layers": 1000, "image_bucket_size": 1024, "token_bucket_size": 65_536, "": 10_000_000}


@dataclasses.dataclass(frozen=True)
class OFAConfig:
    """Sizes of an OFA; the defaults other than widths and depths are those of every released size.

    ``resnet_width`` (channels of the first ResNet stage) is this project's extension: 64 in all released
    sizes, less in the small captioner of the mini study. Raises ClipVipError for sizes that do not fit.
    """

    d_model: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 4
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    encoder_attention_heads: int = 4
    decoder_attention_heads: int = 4
    resnet_type: str = "resnet50"
    resnet_width: int = 64
    vocab_size: int = 59457
    max_position_embeddings: int = 1024
    token_bucket_size: int = 256
    image_bucket_size: int = 42
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    encoder_drop_path_rate: float = 0.0
    decoder_drop_path_rate: float = 0.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.resnet_type not in RESNET_BLOCKS:
            raise unknown("resnet_type", self.resnet_type, RESNET_BLOCKS)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ClipVipError(f"OFA's {field.name} must be a whole number of at least 1, got {value!r}")
            most = LARGEST[
                "layers" if field.name.endswith("_layers") else field.name if field.name in LARGEST else ""
            ]
            if field.type == "int" and value > most:
                raise ClipVipError(
                    f"OFA's {field.name} must be at most {most}, got {value}; correct config.json"
                )
            if field.type == "float" and not 0 <= value < 1:
                raise ClipVipError(f"OFA's {field.name} must be at least 0 and below 1, got {value!r}")
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if self.d_model % heads:
                raise ClipVipError(
                    f"OFA's d_model must be a multiple of {side}_attention_heads, got {self.d_model} and "
                    f"{heads}; change one of them"
                )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> OFAConfig:
        """Read a released ``config.json`` (already parsed); keys that captioning does not need are ignored.

        Raises ClipVipError when a key asks for a computation that is not written here.
        """
        raw = {_ALIASES.get(key, key): value for key, value in raw.items()}
        for key, supported in _SUPPORTED.items():
            if key in raw and raw[key] != supported:
                raise ClipVipError(
                    f"this OFA asks for {key} = {raw[key]!r}: expected {supported!r}, the only one written "
                    "here and the one of all released sizes; use one of those"
                )
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in fields})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict that ``from_dict`` reads back."""
        return {"model_type": "ofa", **dataclasses.asdict(self)}


def _released(width: int, ffn: int, heads: int, encoder: int, decoder: int, resnet: str) -> OFAConfig:
    return OFAConfig(width, encoder, decoder, ffn, ffn, heads, heads, resnet)


OFA_SIZES = {  # the authors' models/ofa/ofa.py; CLIP-ViP captioned with "large"
    "tiny": _released(256, 1024, 4, 4, 4, "resnet50"),
    "medium": _released(512, 2048, 8, 4, 4, "resnet101"),
    "base": _released(768, 3072, 12, 6, 6, "resnet101"),
    "large": _released(1024, 4096, 16, 12, 12, "resnet152"),
    "huge": _released(1280, 5120, 16, 24, 12, "resnet152"),
}


# ---------------------------------------------------------------------------------------------- images


def ofa_preprocess(images: Iterable[np.ndarray], size: int, device: str | torch.device = "cpu") -> Tensor:
    """uint8 RGB images [H, W, 3] of any sizes -> float32 [B, 3, size, size] in -1..1, aspect not kept.

    They travel to the device as bytes: scaling 64 images of 480 pixels takes one core 0.2 s, as long as a GPU may take
    to caption them. Raises ClipVipError for other images.
    Source: the authors' ``data/mm_data/caption_dataset.py`` (resize, / 255, mean and deviation 0.5).
    """
    pixels = np.stack([resize(np.asarray(image), size, antialias=True) for image in images])
    return ofa_scale(torch.from_numpy(pixels).to(device))


def ofa_scale(pixels: Tensor) -> Tensor:
    """uint8 [B, h, w, 3] -> float32 [B, 3, h, w] in -1..1."""
    return (pixels.permute(0, 3, 1, 2).float().div(255) - 0.5) / 0.5


class Bottleneck(nn.Module):
    """ResNet v1.5 block: the stride sits on the 3x3 convolution. [B, in, h, w] -> [B, 4 width, h', w']."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNetStem(nn.Module):
    """The first three stages of a ResNet: [B, 3, h, w] -> [B, 16 width, ceil(h/16), ceil(w/16)]."""

    def __init__(self, resnet_type: str, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(RESNET_BLOCKS[resnet_type]):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(channels, width << stage, 2 if stage and not block else 1))
                channels = 4 * (width << stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        # Channels last: the stem's forward and backward took 0.6 to 0.74 of the time on one CPU core (width
        # 16 and 32, 64 pixels, batch 48). BatchNorm's sums are rounded in another order: 1e-4 on logits.
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer3(self.layer2(self.layer1(x)))


# ------------------------------------------------------------------------------------------- positions


def _kept_table(function: Callable) -> Callable:
    """Compute once per arguments, outside of inference mode: a table made there could not be trained with."""

    @functools.lru_cache(maxsize=64)
    @functools.wraps(function)
    def compute(*arguments: int) -> Any:
        with torch.inference_mode(False):
            return function(*arguments)

    return compute


@_kept_table
def token_offset_buckets(bucket_size: int) -> Tensor:
    """Bucket 0..2*bucket_size-2 of every offset query - key from -1023 to 1023: int64 [2047].

    Up to half the bucket size offsets have a bucket each, beyond it they share logarithmic ones.
    Source: ``make_token_bucket_position`` of the authors' unify_transformer.py.
    """
    offset = torch.arange(1 - LONGEST_OFFSET, LONGEST_OFFSET, device="cpu")
    half = bucket_size // 2
    distance = offset.abs().clamp(min=half).float()
    far = torch.ceil(torch.log(distance / half) / math.log((LONGEST_OFFSET - 1) / half) * (half - 1)) + half
    bucket = torch.where(offset.abs() <= half, offset, offset.sign() * far.long())
    return bucket + bucket_size - 1


@_kept_table
def token_buckets(length: int, bucket_size: int) -> Tensor:
    """Bucket of query i and key j: int64 [length, length]."""
    position = torch.arange(length, device="cpu")
    return token_offset_buckets(bucket_size)[position[:, None] - position[None, :] + LONGEST_OFFSET - 1]


def image_position_ids(rows: int, columns: int, bucket_size: int) -> Tensor:
    """Ids of a grid's cells, row by row: int64 [rows * columns].

    The stride is ``bucket_size``, not the number of columns, and id 0 stays free. Raises ClipVipError when
    the grid does not fit into bucket_size x bucket_size.
    """
    if max(rows, columns) > bucket_size:
        raise ClipVipError(
            f"OFA knows image grids up to {bucket_size} x {bucket_size} cells of 16 pixels, got {rows} x "
            f"{columns}; make the images at most {16 * bucket_size} pixels wide and high"
        )
    row, column = torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu")
    return (row[:, None] * bucket_size + column[None, :] + 1).flatten()


def image_buckets(ids: Tensor, bucket_size: int) -> Tensor:
    """Relative bucket of every pair of image position ids [C] -> int64 [C, C], query first.

    Three buckets are kept for id 0, which captioning never meets. Source: the authors'
    ``make_image_bucket_position``.
    """
    row, column = (ids - 1) // bucket_size, (ids - 1) % bucket_size
    side = 2 * bucket_size - 1
    delta_row = row[:, None] - row[None, :] + bucket_size - 1
    delta_column = column[:, None] - column[None, :] + bucket_size - 1
    bucket = delta_row * side + delta_column
    query_zero, key_zero = ids[:, None] == 0, ids[None, :] == 0
    bucket = bucket.masked_fill(query_zero, side * side).masked_fill(key_zero, side * side + 1)
    return bucket.masked_fill(query_zero & key_zero, side * side + 2)


@_kept_table
def _grid(rows: int, columns: int, bucket_size: int) -> tuple[Tensor, Tensor]:
    ids = image_position_ids(rows, columns, bucket_size)
    return ids, image_buckets(ids, bucket_size)


def position_bias(queries: Tensor, keys: Tensor, to_q: nn.Linear, to_k: nn.Linear, heads: int) -> Tensor:
    """Absolute position bias [1, H, Q, K] of normalised position embeddings [Q, D] and [K, D].

    It is a product of projected positions, scaled like the content's, and is shared by all layers.
    """
    width = queries.shape[-1] // heads
    q = to_q(queries).view(-1, heads, width).transpose(0, 1) * (2 * width) ** -0.5
    k = to_k(keys).view(-1, heads, width).transpose(0, 1)
    return (q @ k.transpose(1, 2))[None]


def relative_bias(buckets: Tensor, table: nn.Embedding) -> Tensor:
    """Learnt bias [1, H, Q, K] of int64 buckets [Q, K]."""
    return table(buckets.to(table.weight.device)).permute(2, 0, 1)[None]


# ---------------------------------------------------------------------------------------------- layers


class Attention(nn.Module):
    """Multi-head attention with an additive bias and a gain per head.

    The explicit product-softmax-product is used on CPUs, where it is the faster one in bfloat16, and the
    fused kernel on GPUs; a test holds both equal.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout, self.scale = heads, dropout, (2 * width // heads) ** -0.5
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.c_attn = nn.Parameter(torch.ones(heads))

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, K]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, K] of what is attended to, [B, T, D]."""
        return self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def weights(self, x: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        """Attention weights [B, H, Q, K] of queries from x [B, Q, D]; ``bias`` holds positions and mask."""
        q = self.split(self.q_proj(x) * self.scale)
        return (q @ keys.transpose(2, 3) + bias).softmax(-1)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, fused: bool | None = None
    ) -> Tensor:
        drop = self.dropout if self.training else 0.0
        if x.is_cuda if fused is None else fused:
            q = self.split(self.q_proj(x) * self.scale)
            bias = bias.to(q.dtype).expand(len(q), -1, -1, -1)
            context = F.scaled_dot_product_attention(q, keys, values, bias, drop, scale=1.0)
        else:
            weights = self.weights(x, keys, bias)
            context = (F.dropout(weights, drop) if drop else weights).to(values.dtype) @ values
        context = context * self.c_attn[:, None, None]
        return self.out_proj(context.transpose(1, 2).flatten(2))


class DropPath(nn.Module):
    """Drop the residual branch of whole samples while training, and scale the others up.

    Per sample as in the authors' fairseq code; their Hugging Face port drops single positions by mistake.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate or not self.training:
            return x
        keep = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (keep / (1 - self.rate)).to(x.dtype)


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention and feed-forward, both NormFormer."""

    def __init__(self, config: OFAConfig, heads: int, ffn: int, drop_path: float) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = Attention(width, heads, config.attention_dropout)
        self.self_attn_layer_norm, self.self_attn_mid_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.ffn_layer_norm, self.final_layer_norm = nn.LayerNorm(ffn), nn.LayerNorm(width)
        self.dropout, self.activation_dropout = (
            nn.Dropout(config.dropout),
            nn.Dropout(config.activation_dropout),
        )
        self.drop_path = DropPath(drop_path)

    def residual(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + self.drop_path(self.dropout(branch))

    def feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation_dropout(F.gelu(self.fc1(self.final_layer_norm(x))))
        return self.residual(x, self.fc2(self.ffn_layer_norm(hidden)))


class EncoderLayer(Layer):
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, S, D], bias [1 or B, H, S, S] -> [B, S, D]."""
        y = self.self_attn_layer_norm(x)
        y = self.self_attn(y, *self.self_attn.keys_values(y), bias)
        return self.feed_forward(self.residual(x, self.self_attn_mid_layer_norm(y)))


class DecoderLayer(Layer):
    def __init__(self, config: OFAConfig, heads: int, ffn: int, drop_path: float) -> None:
        super().__init__(config, heads, ffn, drop_path)
        self.cross_attn = Attention(config.d_model, heads, config.attention_dropout)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(config.d_model)

    def cross(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        y = self.cross_attn(self.cross_attn_layer_norm(x), keys, values, bias)
        return self.residual(x, self.cross_attn_mid_layer_norm(y))

    def forward(self, x: Tensor, self_bias: Tensor, memory: Tensor, cross_bias: Tensor) -> Tensor:
        """x [B, U, D], memory [B, S, D] -> [B, U, D]; the self bias holds the causal mask."""
        y = self.self_attn_layer_norm(x)
        y = self.self_attn(y, *self.self_attn.keys_values(y), self_bias)
        x = self.residual(x, self.self_attn_mid_layer_norm(y))
        x = self.cross(x, *self.cross_attn.keys_values(memory), cross_bias)
        return self.feed_forward(x)

    def step(self, x: Tensor, cache: LayerCache, t: int, self_bias: Tensor, cross_bias: Tensor) -> Tensor:
        """One new token per hypothesis, x [B, beam, D], with keys and values of earlier tokens cached.

        The hypotheses of an image are the queries of one cross-attention, so its keys are never repeated.
        """
        rows = x.flatten(0, 1)[:, None]  # [B * beam, 1, D]
        y = self.self_attn_layer_norm(rows)
        key, value = self.self_attn.keys_values(y)
        cache.keys[:, :, t], cache.values[:, :, t] = key[:, :, 0], value[:, :, 0]
        y = self.self_attn(y, cache.keys[:, :, : t + 1], cache.values[:, :, : t + 1], self_bias)
        x = self.residual(x, self.self_attn_mid_layer_norm(y).view_as(x))
        return self.feed_forward(self.cross(x, cache.cross_keys, cache.cross_values, cross_bias))


@dataclasses.dataclass
class LayerCache:
    """Keys and values of one decoder layer: own tokens [B * beam, H, U, K], encoder [B, H, S, K]."""

    keys: Tensor
    values: Tensor
    cross_keys: Tensor
    cross_values: Tensor


class Encoded(NamedTuple):
    """What the encoder gives to the decoder."""

    hidden: Tensor  # [B, S, D]
    padding: Tensor  # bool [B, S], True at padding
    positions: Tensor  # [S, D], normalised position embedding, the same for every row of the batch


def _check_length(length: int, config: OFAConfig) -> None:
    if not 1 <= length <= config.max_position_embeddings:
        raise ClipVipError(
            f"OFA reads 1 to {config.max_position_embeddings} tokens, got {length}; shorten the text"
        )


def _ramp(rate: float, layers: int) -> list[float]:
    """Drop-path rates of the layers: linear from 0 to ``rate``."""
    return np.linspace(0, rate, layers).tolist()


def _mask_keys(bias: Tensor, padding: Tensor) -> Tensor:
    """Add the padding mask bool [B, S] to a bias [1, H, Q, S]; the bias stays as it is without padding."""
    if not bool(padding.any()):
        return bias
    return bias.masked_fill(padding[:, None, None], torch.finfo(bias.dtype).min)


# ------------------------------------------------------------------------------------ encoder, decoder


class _Side(nn.Module):
    """Tables that encoder and decoder both have."""

    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding, heads: int, layers: int) -> None:
        super().__init__()
        self.config, self.heads, width = config, heads, config.d_model
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, width)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, width)
        self.pos_ln, self.image_pos_ln = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        tokens, cells = 2 * config.token_bucket_size - 1, (2 * config.image_bucket_size - 1) ** 2 + 3
        self.token_rel_pos_table_list = nn.ModuleList(nn.Embedding(tokens, heads) for _ in range(layers))
        self.image_rel_pos_table_list = nn.ModuleList(nn.Embedding(cells, heads) for _ in range(layers))

    def token_positions(self, length: int) -> Tensor:
        """Normalised embeddings [length, D] of positions 0.. (no offset for padding, unlike BART)."""
        _check_length(length, self.config)
        return self.pos_ln(self.embed_positions.weight[:length])

    def token_bias(self, layer: int, length: int) -> Tensor:
        """Relative bias [1, H, length, length] of a layer."""
        buckets = token_buckets(length, self.config.token_bucket_size)
        return relative_bias(buckets, self.token_rel_pos_table_list[layer])


class Encoder(_Side):
    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__(config, embed_tokens, config.encoder_attention_heads, config.encoder_layers)
        width = config.d_model
        self.type_embedding = nn.Embedding(2, width)  # 0 text, 1 image
        self.embed_images = ResNetStem(config.resnet_type, config.resnet_width)
        self.image_proj = nn.Linear(16 * config.resnet_width, width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.pos_q_linear, self.pos_k_linear = nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(
            EncoderLayer(config, self.heads, config.encoder_ffn_dim, rate)
            for rate in _ramp(config.encoder_drop_path_rate, config.encoder_layers)
        )

    def embed_image(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, h, w] -> cells [B, C, D], position ids [C], relative buckets [C, C]."""
        features = self.embed_images(images)
        grid = _grid(*features.shape[2:], self.config.image_bucket_size)
        cells = self.image_proj(features.flatten(2).transpose(1, 2)) + self.type_embedding.weight[1]
        return self.dropout(self.patch_layernorm_embedding(cells)), *grid

    def image_bias(self, layer: int, buckets: Tensor) -> Tensor:
        """Relative bias [1, H, C, C] of a layer."""
        return relative_bias(buckets, self.image_rel_pos_table_list[layer])

    def forward(self, ids: Tensor, images: Tensor | None) -> Encoded:
        text = self.embed_tokens(ids) + self.type_embedding.weight[0]
        x = self.dropout(self.layernorm_embedding(text))
        padding, positions, buckets = ids == PAD, self.token_positions(ids.shape[1]), None
        if images is not None:
            cells, cell_ids, buckets = self.embed_image(images)
            x = torch.cat([cells.to(x.dtype), x], 1)
            padding = F.pad(padding, (cells.shape[1], 0))
            cell_ids = cell_ids.to(ids.device)
            positions = torch.cat([self.image_pos_ln(self.embed_image_positions(cell_ids)), positions])
        x = x.masked_fill(padding[..., None], 0.0)
        shared = position_bias(positions, positions, self.pos_q_linear, self.pos_k_linear, self.heads)
        shared = _mask_keys(shared, padding)
        for number, layer in enumerate(self.layers):
            x = layer(x, self._layer_bias(shared, number, ids.shape[1], buckets))
        return Encoded(self.layer_norm(x), padding, positions)

    def _layer_bias(self, shared: Tensor, layer: int, length: int, buckets: Tensor | None) -> Tensor:
        """The shared bias plus the layer's own on the text-text and image-image blocks (not across)."""
        cells = 0 if buckets is None else len(buckets)
        bias = shared + F.pad(self.token_bias(layer, length).to(shared.dtype), (cells, 0, cells, 0))
        if buckets is not None:
            bias = bias + F.pad(self.image_bias(layer, buckets).to(shared.dtype), (0, length, 0, length))
        return bias


class Decoder(_Side):
    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__(config, embed_tokens, config.decoder_attention_heads, config.decoder_layers)
        width = config.d_model
        self.code_layernorm_embedding = nn.LayerNorm(width)  # image generation only, as image_pos_ln here
        self.self_pos_q_linear, self.self_pos_k_linear = nn.Linear(width, width), nn.Linear(width, width)
        self.cross_pos_q_linear, self.cross_pos_k_linear = nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(
            DecoderLayer(config, self.heads, config.decoder_ffn_dim, rate)
            for rate in _ramp(config.decoder_drop_path_rate, config.decoder_layers)
        )
        self.output_projection = nn.Linear(width, config.vocab_size, bias=False)
        self.output_projection.weight = embed_tokens.weight

    def biases(self, length: int, encoded: Encoded) -> tuple[list[Tensor], Tensor]:
        """Self biases of the layers [1, H, U, U] with the causal mask, and the cross bias [., H, U, S]."""
        q = self.token_positions(length)
        own = position_bias(q, q, self.self_pos_q_linear, self.self_pos_k_linear, self.heads)
        cross = position_bias(
            q, encoded.positions, self.cross_pos_q_linear, self.cross_pos_k_linear, self.heads
        )
        future = torch.ones(length, length, dtype=torch.bool, device=own.device).triu(1)
        lowest = torch.finfo(own.dtype).min
        layers = [own + self.token_bias(i, length).to(own.dtype) for i in range(len(self.layers))]
        return [bias.masked_fill(future, lowest) for bias in layers], _mask_keys(cross, encoded.padding)

    def forward(self, ids: Tensor, encoded: Encoded) -> Tensor:
        """All positions at once: ids [B, U] starting with ``<s>`` -> logits [B, U, V]."""
        self_biases, cross_bias = self.biases(ids.shape[1], encoded)
        x = self.dropout(self.layernorm_embedding(self.embed_tokens(ids)))
        for layer, bias in zip(self.layers, self_biases, strict=True):
            x = layer(x, bias, encoded.hidden, cross_bias)
        return self.output_projection(self.layer_norm(x))


class DecodingState:
    """Cached decoding: one token per hypothesis and step, the same numbers as the full pass.

    Biases for all steps and the encoder's keys and values are computed once. ``beam`` hypotheses per image
    advance together; between steps ``reorder`` says which earlier hypothesis each one continues.
    """

    def __init__(self, decoder: Decoder, encoded: Encoded, beam: int, steps: int) -> None:
        self.decoder, self.t = decoder, 0
        self.self_biases, self.cross_bias = decoder.biases(steps, encoded)
        self.caches = []
        for layer in decoder.layers:
            cross = layer.cross_attn.keys_values(encoded.hidden)
            images, heads, _, width = cross[0].shape
            own = [cross[0].new_zeros(images * beam, heads, steps, width) for _ in range(2)]
            self.caches.append(LayerCache(*own, *cross))

    def step(self, tokens: Tensor) -> Tensor:
        """Last tokens [B, beam] -> logits of the next ones [B, beam, V]."""
        t, decoder = self.t, self.decoder
        x = decoder.layernorm_embedding(decoder.embed_tokens(tokens))
        for layer, cache, bias in zip(decoder.layers, self.caches, self.self_biases, strict=True):
            own = bias[:, :, t : t + 1, : t + 1]
            x = layer.step(x, cache, t, own, self.cross_bias[:, :, t : t + 1])
        self.t += 1
        return decoder.output_projection(decoder.layer_norm(x))

    def reorder(self, hypotheses: Tensor, images: Tensor | None = None) -> None:
        """Continue with these rows of the flat [B * beam] hypotheses; ``images`` are the ones kept, if fewer."""
        for cache in self.caches:
            cache.keys, cache.values = cache.keys[hypotheses], cache.values[hypotheses]
            if images is not None:
                cache.cross_keys = cache.cross_keys[images]
                cache.cross_values = cache.cross_values[images]
        if images is not None and len(self.cross_bias) > 1:
            self.cross_bias = self.cross_bias[images]


class OFA(nn.Module):
    """OFA for captioning. ``model(ids, images, decoder_ids)`` gives logits; see ``beam.beam_search``.

    Fresh weights are drawn from torch's current generator; released ones replace them (``ofa_state_dict``).
    """

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        self.config = config
        embed_tokens = nn.Embedding(config.vocab_size, config.d_model, padding_idx=PAD)
        self.encoder = Encoder(config, embed_tokens)
        self.decoder = Decoder(config, embed_tokens)
        if not embed_tokens.weight.is_meta:
            self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights: the schemes are this project's, for the small captioner."""
        self.apply(self._initialise)
        for side in (self.encoder, self.decoder):
            for table in (*side.token_rel_pos_table_list, *side.image_rel_pos_table_list):
                nn.init.zeros_(table.weight)
        nn.init.normal_(self.encoder.embed_tokens.weight, std=self.config.d_model**-0.5)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def encode(self, ids: Tensor, images: Tensor | None) -> Encoded:
        """Prompt ids int64 [B, T] (``<s> prompt </s>``, padded right) and images float [B, 3, h, w].

        Images may have any size up to 16 * image_bucket_size pixels per side, all alike, normalised as by
        ``ofa_preprocess``; None encodes the text alone. Raises ClipVipError for shapes that do not fit.
        """
        if ids.dim() != 2:
            raise ClipVipError(f"expected prompt ids [B, T], got {list(ids.shape)}")
        if images is not None and (images.dim() != 4 or images.shape[1] != 3 or len(images) != len(ids)):
            raise ClipVipError(f"expected images [{len(ids)}, 3, h, w], got {list(images.shape)}")
        return self.encoder(ids, images)

    def decode(self, decoder_ids: Tensor, encoded: Encoded) -> Tensor:
        """Caption ids int64 [B, U] starting with ``<s>`` -> logits [B, U, V] of the tokens after each."""
        if decoder_ids.dim() != 2 or len(decoder_ids) != len(encoded.hidden):
            raise ClipVipError(
                f"expected caption ids [{len(encoded.hidden)}, U], got {list(decoder_ids.shape)}"
            )
        return self.decoder(decoder_ids, encoded)

    def forward(self, ids: Tensor, images: Tensor | None, decoder_ids: Tensor) -> Tensor:
        return self.decode(decoder_ids, self.encode(ids, images))

    def start_decoding(self, encoded: Encoded, beam: int, steps: int) -> DecodingState:
        """Cached decoding of ``beam`` hypotheses per image for at most ``steps`` tokens."""
        return DecodingState(self.decoder, encoded, beam, steps)


# --------------------------------------------------------------------------------------------- weights

_DROPPED = (
    (r"(encoder|decoder)\.(token|image)_rp_bucket", "lookup table, computed from the configuration"),
    (r"decoder\.image_position_idx", "image generation only, computed by the authors from the configuration"),
    (r"(encoder|decoder)\.version", "fairseq's format version"),
)
_FAIRSEQ = (  # whole path components, so that attn_ln is never taken for a part of self_attn_ln
    (r"(encoder\.layers\.\d+)\.attn_ln\.", r"\1.self_attn_mid_layer_norm."),
    (r"(decoder\.layers\.\d+)\.self_attn_ln\.", r"\1.self_attn_mid_layer_norm."),
    (r"(decoder\.layers\.\d+)\.cross_attn_ln\.", r"\1.cross_attn_mid_layer_norm."),
    (r"(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.cross_attn_layer_norm."),
    (r"((?:encoder|decoder)\.layers\.\d+)\.ffn_layernorm\.", r"\1.ffn_layer_norm."),
)


def ofa_state_dict(raw: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights in either released layout (fairseq's ``["model"]`` or Hugging Face's) -> (ours, dropped).

    Values are as they were. ``dropped`` says why each key was left out. Unknown keys are kept, so that strict
    loading names them.
    """
    kept: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for key, value in raw.items():
        reason = next((why for pattern, why in _DROPPED if re.fullmatch(pattern, key)), None)
        if reason:
            dropped[key] = reason
            continue
        for pattern, name in _FAIRSEQ:
            key = re.sub(rf"^{pattern}", name, key)
        put(kept, key, value, "this OFA checkpoint")
    return kept, dropped
