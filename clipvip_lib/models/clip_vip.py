"""CLIP-ViP: Hugging Face's CLIP with other embeddings and one other attention (proxy_attention.py).

All else is upstream's: layers, text tower, projections, ``from_pretrained``, ``save_pretrained``. The weights
carry the names of the authors' released checkpoint after its ``clipmodel.`` prefix; two are new,

    vision_model.embeddings.added_cls           [M-1, D]  proxies 2..M; proxy 1 is CLIP's class embedding
    vision_model.embeddings.temporal_embedding  [1, T, D] added to a frame's patches, interpolated if N != T

The switch ``attention`` selects the four ways of the paper's ablation (section 5, table 2) to see N frames:

    proxy       one sequence of M proxies and N*L patches; patches see the proxies and their own frame
    full        the same M + N*L tokens, every token sees every token
    mean_pool   each frame through CLIP alone, projected, L2-normalised; the mean over frames, L2-normalised
    sequential  CLIP4Clip's seqTransf: projected frame features + positions through a small transformer,
                added to the frame features, L2-normalised; the mean over frames, L2-normalised

Legend: B batch, M proxies, N frames, L patches per frame, S = M + N*L tokens, D width, H heads, K head width,
E embedding, T length of a table or a text.
Source: CLIP-ViP (arXiv 2209.06430) section 4; CLIP4Clip (arXiv 2104.08860) section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModel, CLIPConfig, CLIPModel
from transformers import initialization as init
from transformers.activations import QuickGELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings

from clipvip_lib.data.transform import CLIP_MEAN, CLIP_STD
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.files import atomic_path
from clipvip_lib.models import encoding, proxy_attention
from clipvip_lib.models.attentions import ATTENTIONS, JOINT
from clipvip_lib.models.load_report import not_finite, one_sentence
from clipvip_lib.models.model_card import model_card
from clipvip_lib.models.proxy_attention import attend, attention_interface
from clipvip_lib.models.quick_gelu import QuickGELU
from clipvip_lib.models.weight_files import read_folder

AttentionInterface.register(proxy_attention.NAME, attention_interface)

#: Building more would never end; the deepest CLIP has 48.
MOST_LAYERS = 1000


@strict
class ClipViPConfig(CLIPConfig):
    """CLIP's configuration and five fields of this project.

    attention: one of ATTENTIONS. proxies: M (also the class tokens of "full").
    temporal_size: frames that have their own temporal embedding.
    sequence_layers: layers of "sequential"'s transformer (CLIP4Clip: 4).
    antialias: how the frames of its training were resized (``transform.resize``); None where that is not known.
    Raises ClipVipError for an unknown attention, a number below 1, or more layers than any CLIP has.
    """

    model_type = "clip_vip"

    attention: str = "proxy"
    proxies: int = 4
    temporal_size: int = 12
    sequence_layers: int = 4
    antialias: bool | None = None

    def __post_init__(self, **kwargs):
        if self.attention not in ATTENTIONS:
            raise unknown("attention", self.attention, ATTENTIONS)
        for name in ("proxies", "temporal_size", "sequence_layers"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise ClipVipError(f"{name} expected a whole number from 1, got {number!r}; change it")
        super().__post_init__(**kwargs)
        depths = [getattr(part, "num_hidden_layers", 0) for part in (self.vision_config, self.text_config)]
        for layers in (*depths, self.sequence_layers):
            if not isinstance(layers, int) or layers > MOST_LAYERS:
                raise ClipVipError(
                    f"a configuration of {layers!r} layers: expected at most {MOST_LAYERS}; correct config.json"
                )

    @property
    def weights(self) -> int:
        """About how many numbers such a model holds: its large matrices and tables."""
        vision, text = self.vision_config, self.text_config
        count = vision.hidden_size * (self.proxies + self.temporal_size + 3 * vision.patch_size**2)
        count += vision.hidden_size * (vision.image_size // max(1, vision.patch_size)) ** 2
        count += text.hidden_size * (text.vocab_size + text.max_position_embeddings)
        for part in (vision, text):
            layer = 4 * part.hidden_size**2 + 2 * part.hidden_size * part.intermediate_size
            count += part.num_hidden_layers * layer + part.hidden_size * self.projection_dim
        return count

    def to_dict(self) -> dict:
        """transformers' own; what is not known is not written."""
        fields = super().to_dict()
        if fields["antialias"] is None:
            del fields["antialias"]
        return fields

    @classmethod
    def small(
        cls,
        *,
        width: int,
        layers: int,
        heads: int,
        image_size: int,
        patch_size: int,
        vocab_size: int,
        context_length: int,
        embed_dim: int,
        attention: str = "proxy",
        proxies: int = 4,
        frames: int = 4,
        text_width: int | None = None,
        text_layers: int | None = None,
        text_heads: int | None = None,
        hidden_act: str = "gelu",
    ) -> ClipViPConfig:
        """A CLIP of any size in CLIP's proportions (MLP 4 x width), the text tower as the vision tower if not given.

        The activation is open_clip's GELU, one kernel where OpenAI's QuickGELU takes three.
        """
        vision = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "hidden_act": hidden_act,
            "image_size": image_size,
            "patch_size": patch_size,
            "projection_dim": embed_dim,
        }
        text = {
            "hidden_size": text_width or width,
            "intermediate_size": 4 * (text_width or width),
            "num_hidden_layers": text_layers or layers,
            "num_attention_heads": text_heads or heads,
            "hidden_act": hidden_act,
            "vocab_size": vocab_size,
            "max_position_embeddings": context_length,
            "projection_dim": embed_dim,
            # transformers warns of ids outside the vocabulary; ClipTokenizer puts the special ones last.
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": 0,
        }
        return cls(
            vision_config=vision,
            text_config=text,
            projection_dim=embed_dim,
            attention=attention,
            proxies=proxies,
            temporal_size=frames,
            sequence_layers=min(4, text_layers or layers),
        )


class ViPEmbeddings(CLIPVisionEmbeddings):
    """Frames to tokens: pixels [B, N, 3, H, W] -> [B, M + N*L, D], proxies first, then frame by frame.

    Patch = patch embedding + CLIP's position + temporal embedding of its frame; proxy = its embedding +
    CLIP's position 0. ``proxies`` and ``temporal_size`` are those of the configuration, or 1 and 0 for frames
    seen apart. Frames may be rectangular: L = (H // patch) * (W // patch) positions, row by row.
    """

    def __init__(self, config, proxies: int, temporal_size: int):
        nn.Module.__init__(self)  # transformers' own __init__ knows only square images
        height, width = _pair(config.image_size)
        patch = _pair(config.patch_size)
        D, L = config.hidden_size, (height // patch[0]) * (width // patch[1])
        self.config, self.embed_dim = config, D
        self.class_embedding = nn.Parameter(torch.randn(D))
        self.patch_embedding = nn.Conv2d(config.num_channels, D, patch, stride=patch, bias=False)
        self.num_patches, self.num_positions = L, L + 1
        self.position_embedding = nn.Embedding(L + 1, D)
        self.position_ids = nn.Buffer(torch.arange(L + 1).expand((1, -1)), persistent=False)
        self.added_cls = nn.Parameter(torch.randn(proxies - 1, D)) if proxies > 1 else None
        self.temporal_embedding = nn.Parameter(torch.zeros(1, temporal_size, D)) if temporal_size else None

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        B, N = pixel_values.shape[:2]
        position = self.position_embedding.weight
        size = _pair(self.config.image_size)
        as_shown = pixel_values.dtype == torch.uint8
        given = pixel_values.shape[2:4] if as_shown else pixel_values.shape[-2:]
        if given != size:  # by pixels: turned or longer frames may have as many patches
            raise ClipVipError(
                f"the model expected frames {size[0]} pixels high and {size[1]} wide, got "
                f"{list(given)}; resize the frames"
            )
        patches = self.patches_of_bytes(pixel_values) if as_shown else self.patches(pixel_values)
        where = position[None, 1:] if self.temporal_embedding is None else position[1:] + self.temporal(N)
        proxies = self.class_embedding[None]
        if self.added_cls is not None:
            proxies = torch.cat([proxies, self.added_cls])
        proxies = (proxies + position[:1]).expand(B, -1, -1)
        return torch.cat([proxies, (patches + where).flatten(1, 2)], dim=1)

    def patches(self, pixels: Tensor) -> Tensor:
        """The patch embedding, [B, N, 3, H, W] -> [B, N, L, D], as one matrix product.

        The convolution that holds the weights does the same, but forward and backward in bfloat16 take 5
        times (mini) to 20 times (B/32) longer on a CPU.
        """
        p, q = self.patch_embedding.kernel_size
        rows, columns = pixels.shape[3] // p, pixels.shape[4] // q
        cut = pixels[..., : rows * p, : columns * q].unflatten(4, (columns, q)).unflatten(3, (rows, p))
        cut = cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
        weight = self.patch_embedding.weight
        return F.linear(cut.to(weight.dtype), weight.flatten(1))

    def patches_of_bytes(self, frames: Tensor) -> Tensor:
        """``patches`` of frames as they are shown, uint8 [B, N, H, W, 3] -> [B, N, L, D], normalised on the way.

        CLIP's mean and deviation go into the weights, so bytes are cut, not floats: an eighth of a mini model's
        training step. 128 is subtracted first, because -128 to 127 are exact in bfloat16.
        """
        p, q = self.patch_embedding.kernel_size
        B, N, H, W, _ = frames.shape
        rows, columns = H // p, W // q
        cut = frames[:, :, : rows * p, : columns * q].reshape(B, N, rows, p, columns, q * 3)
        cut = cut.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
        weight = self.patch_embedding.weight
        mean, deviation = (255 * weight.new_tensor(x, dtype=torch.float32) for x in (CLIP_MEAN, CLIP_STD))
        with torch.autocast(weight.device.type, enabled=False):
            scaled = (
                weight.to(torch.promote_types(weight.dtype, torch.float32)).permute(0, 2, 3, 1) / deviation
            )
            bias = (scaled * (128 - mean)).sum((1, 2, 3))
        device = weight.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return F.linear(cut.to(kind).sub_(128), scaled.flatten(1).to(kind), bias.to(kind))

    def temporal(self, frames: int) -> Tensor:
        """The temporal embedding of N frames, [N, 1, D], linearly interpolated if N != temporal_size."""
        table = self.temporal_embedding
        if frames != table.shape[1]:
            table = F.interpolate(table.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)
        return table[0, :, None]


class FrameTransformer(nn.Module):
    """CLIP4Clip's seqTransf, [B, N, E] -> [B, N, E]: adds to each frame's feature what the others tell.

    Layers of CLIP's text tower on E-wide frame features, each frame seeing all. Raises ClipVipError if there
    are more frames than positions (``temporal_size``).
    """

    def __init__(self, config: ClipViPConfig):
        super().__init__()
        E, text = config.projection_dim, config.text_config
        head = text.hidden_size // text.num_attention_heads
        layers = CLIPTextConfig(
            hidden_size=E,
            intermediate_size=4 * E,
            num_hidden_layers=config.sequence_layers,
            num_attention_heads=E // head if E % head == 0 else 1,
            hidden_act=text.hidden_act,
            attn_implementation=proxy_attention.NAME,
        )
        self.positions = nn.Parameter(torch.randn(config.temporal_size, E))
        self.encoder = CLIPEncoder(layers)

    def forward(self, frames: Tensor) -> Tensor:
        N = frames.shape[1]
        if len(self.positions) < N:
            raise ClipVipError(
                f"sequential attention expected at most {len(self.positions)} frames, got {N}; sample fewer "
                "frames or build the model with a larger temporal_size"
            )
        placed = (frames + self.positions[:N]).to(self.positions.dtype)
        return frames + wide(self.encoder(inputs_embeds=placed).last_hidden_state)


class ClipViP(CLIPModel):
    """CLIP for videos and texts; both features are L2-normalised, their product is the cosine similarity.

    >>> model = ClipViP(ClipViPConfig.small(width=64, layers=2, heads=2, image_size=32, patch_size=8,
    ...                                     vocab_size=100, context_length=16, embed_dim=32))
    >>> model.encode_video(torch.randn(2, 4, 3, 32, 32)).shape
    torch.Size([2, 32])
    """

    config_class = ClipViPConfig
    config: ClipViPConfig
    patch_drop = 0.0  # a recipe's, for full attention in training

    def __init__(self, config: ClipViPConfig):
        if config.vision_config.attention_dropout or config.text_config.attention_dropout:
            raise ClipVipError(
                "attention_dropout expected 0, as in all CLIPs: proxy attention has none; set it to 0"
            )
        for each in (config, config.vision_config, config.text_config):
            # Not a user's choice: any other implementation would silently attend to the wrong tokens.
            each._attn_implementation = proxy_attention.NAME
        vision = config.vision_config
        sizes = vision.image_size, vision.patch_size
        # transformers' embeddings are replaced below, and know only squares.
        vision.image_size = vision.patch_size = 1
        super().__init__(config)
        vision.image_size, vision.patch_size = sizes
        joint = config.attention in JOINT
        self.vision_model.embeddings = ViPEmbeddings(
            vision, proxies=config.proxies if joint else 1, temporal_size=config.temporal_size if joint else 0
        )
        if config.attention == "sequential":
            self.frame_transformer = FrameTransformer(config)
        for module in self.modules():
            if isinstance(getattr(module, "activation_fn", None), QuickGELUActivation):
                module.activation_fn = QuickGELU()
        # transformers' code for "the first largest id", CLIP's and the authors' rule for the end of a text.
        self.text_model.eos_token_id = 2
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ViPEmbeddings):
            if module.added_cls is not None:
                init.normal_(module.added_cls)
            if module.temporal_embedding is not None:
                init.zeros_(module.temporal_embedding)
        elif isinstance(module, FrameTransformer):
            init.normal_(module.positions, std=0.01)

    # ---- videos ----

    def encode_video(self, pixels: Tensor) -> Tensor:
        """Frames [B, N, 3, H, W] (N = 1: a still image) -> features [B, E], L2-normalised, float32 or wider.

        Frames as they are shown, uint8 [B, N, H, W, 3], are normalised with CLIP's mean and deviation here.

        Raises ClipVipError for another shape or image size, and for N above the temporal size with
        "sequential".
        """
        tokens, layout = self._tokens(pixels)
        hidden = self.vision_model.pre_layrnorm(tokens)
        *layers, last = self.vision_model.encoder.layers
        for layer in layers:
            hidden = layer(hidden, None, **layout)
        first = self.vision_model.post_layernorm(last_layer_of_one_token(last, hidden))
        features = wide(self.visual_projection(first))
        if self.config.attention in JOINT:
            return F.normalize(features, dim=-1)
        return self._mean_of_frames(features.unflatten(0, pixels.shape[:2]))

    def video_states(self, pixels: Tensor) -> Tensor:
        """All tokens after the last layer, before post-LayerNorm: [B, S, D]; frames apart [B*N, 1+L, D].

        The slow, full pass that ``encode_video`` must agree with.
        """
        tokens, layout = self._tokens(pixels)
        hidden = self.vision_model.pre_layrnorm(tokens)
        for layer in self.vision_model.encoder.layers:
            hidden = layer(hidden, None, **layout)
        return hidden

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, dict[str, object]]:
        """Tokens, and the layout that proxy attention needs; empty for attention of all tokens to all."""
        if pixels.ndim != 5 or 0 in pixels.shape:
            raise ClipVipError(
                f"the video encoder expected frames [batch, frames, 3, height, width], one frame or more, "
                f"got {list(pixels.shape)}; a still image is a video of one frame"
            )
        channels, where = (
            (pixels.shape[4], "last") if pixels.dtype == torch.uint8 else (pixels.shape[2], "third")
        )
        if channels != 3:
            raise ClipVipError(
                f"the video encoder expected 3 channels as the {where} axis of {pixels.dtype} frames, got "
                f"{list(pixels.shape)}; bytes are [batch, frames, height, width, 3], normalised numbers "
                "[batch, frames, 3, height, width]"
            )
        embeddings = self.vision_model.embeddings
        if self.config.attention not in JOINT:
            return embeddings(pixels.flatten(0, 1)[:, None]), {}
        if self.config.attention == "full":
            return self._seen_in_training(embeddings(pixels)), {}
        N, L, M = pixels.shape[1], embeddings.num_patches, self.config.proxies
        return embeddings(pixels), {"frames": N, "patches": L, "proxies": M}

    def _seen_in_training(self, tokens: Tensor) -> Tensor:
        """In training, the class tokens and a random share 1 - ``patch_drop`` of each clip's patches.

        Full attention allows that (Papalampidi et al. 2023 drop 75 %); proxy attention needs frames of one length.
        """
        M = self.config.proxies
        patches = tokens.shape[1] - M
        kept = patches - round(self.patch_drop * patches)
        if not self.training or kept == patches:
            return tokens
        chosen = (
            torch.rand(len(tokens), patches, device=tokens.device).argsort(1)[:, :kept].sort(1).values + M
        )
        rows = chosen[..., None].expand(-1, -1, tokens.shape[2])
        return torch.cat([tokens[:, :M], tokens.gather(1, rows)], dim=1)

    def _mean_of_frames(self, frames: Tensor) -> Tensor:
        """Projected features of frames [B, N, E] -> [B, E]; with "sequential" frames first see each other."""
        if self.config.attention == "sequential":
            frames = self.frame_transformer(frames)
        return F.normalize(F.normalize(frames, dim=-1).mean(1), dim=-1)

    # ---- texts ----

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> features [B, E], L2-normalised, float32 or wider.

        The feature is the state at the first largest id, the end of the text.
        mask: [B, T], 1 where a token stands, 0 on the padding to the right. What the padding holds then does not
        matter (attention is causal, so the end of the text never sees what follows it).

        Raises ClipVipError for ids that are not [B, T], longer than the context, or (on a CPU) outside the
        vocabulary.
        """
        config = self.config.text_config
        if ids.ndim != 2 or 0 in ids.shape or ids.shape[1] > config.max_position_embeddings:
            raise ClipVipError(
                f"the text encoder expected ids [batch, 1 to {config.max_position_embeddings}], got "
                f"{list(ids.shape)}; cut the texts to the context length"
            )
        if ids.dtype not in (torch.int64, torch.int32):
            raise ClipVipError(
                f"the text encoder expected whole numbers as ids, got {ids.dtype}; use a tokenizer"
            )
        if mask is not None:
            self._check_mask(ids, mask)
            ids = ids.masked_fill(mask == 0, 0)
        if ids.device.type == "cpu" and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
            raise ClipVipError(
                f"the text encoder expected ids from 0 to {config.vocab_size - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}; use the tokenizer that belongs to the model"
            )
        text = self.text_model
        hidden = text.embeddings(input_ids=ids)
        *layers, last = text.encoder.layers
        for layer in layers:
            hidden = layer(hidden, None, is_causal=True)
        end = text.final_layer_norm(last_layer_of_one_token(last, hidden, ids.argmax(1)))
        return F.normalize(wide(self.text_projection(end)), dim=-1)

    @staticmethod
    def _check_mask(ids: Tensor, mask: Tensor) -> None:
        """Ones, then zeros: padding to the left, or an additive mask, would silently be read wrongly."""
        if mask.shape != ids.shape:
            raise ClipVipError(
                f"the mask expected {list(ids.shape)} as the ids, got {list(mask.shape)}; pass both alike"
            )
        if mask.device.type == "cpu":
            seen = mask != 0
            plain = bool(((mask == 0) | (mask == 1)).all())
            if not plain or not bool(seen[:, 0].all()) or bool((seen[:, 1:] & ~seen[:, :-1]).any()):
                raise ClipVipError(
                    "the mask expected 1 for every token and 0 for the padding to their right, got another; pad to the "
                    "right, and give ones and zeros"
                )

    # ---- files and strings (encoding.py) ----

    def encode_videos(self, paths: Sequence[str | Path], **options) -> np.ndarray:
        """Video files or folders of pictures -> features float32 [n, E], L2-normalised, in the order of ``paths``.

        options: frames (by default as many as have temporal embeddings), antialias, precision, batch, workers, as in
        ``encoding.encode_videos``. Raises VideoError naming a video that cannot be read, ClipVipError for no path.
        """
        return encoding.encode_videos(self, paths, **options)

    def encode_texts(self, texts: Sequence[str], **options) -> np.ndarray:
        """Strings -> features float32 [n, E], L2-normalised; longer ones than the model's context are cut.

        The tokenizer is the one saved beside the weights that ``from_pretrained`` read (clip_tokenizer.json), else
        CLIP's own. options: tokenizer, precision, batch. Raises ClipVipError if the tokenizer is not the model's.
        """
        return encoding.encode_texts(self, texts, **options)

    # ---- what transformers' users call ----

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """transformers' own, but strict: ClipVipError if a weight is missing, left over or of another shape.

        A plain CLIP lacks the weights that CLIP-ViP adds: load it with ``checkpoints.load_clip_vip``.
        """
        if isinstance(kwargs.get("proxies"), int):
            raise ClipVipError(
                "from_pretrained takes proxies= for the network, as everywhere in transformers; the number of video "
                "proxies is load_clip_vip's, or a configuration's"
            )
        if "attn_implementation" in kwargs:
            cls.set_attn_implementation(cls)
        name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        folder = Path(str(name), kwargs.get("subfolder") or "")
        kwargs["ignore_mismatched_sizes"] = True  # transformers lists them, and they are refused below
        try:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except Exception:
            if folder.is_dir():
                with one_sentence(folder):
                    read_folder(folder)  # names a file that is cut short, a pointer or a page for what it is
                    raise
            raise
        faults = [
            f"{len(found)} {what}: {', '.join(map(str, sorted(map(str, found))[:3]))}"
            for what, found in (
                ("missing", info.get("missing_keys")),
                ("left over", info.get("unexpected_keys")),
                ("of another shape", info.get("mismatched_keys")),
            )
            if found
        ]
        if faults:
            raise ClipVipError(
                f"{folder} does not fit the model ({'; '.join(faults)}), nothing was loaded; other sources are read by "
                "load_clip_vip in clipvip_lib.models.checkpoints"
            )
        if bad := not_finite(model.state_dict()):
            raise ClipVipError(
                f"the checkpoint holds values that are not finite in {len(bad)} weights ({', '.join(bad[:3])}), "
                "nothing was loaded; take an earlier one"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """transformers' own (model.safetensors, config.json) and a model card, README.md, unless one is there."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        card = Path(save_directory) / "README.md"
        if is_main_process and not card.exists():
            with atomic_path(card) as partial:
                partial.write_text(model_card(self), encoding="utf-8")

    def get_image_features(self, pixel_values: Tensor, **_) -> BaseModelOutputWithPooling:
        """``encode_video`` under transformers' name, so that CLIPModel's forward and contrastive loss
        work."""
        return BaseModelOutputWithPooling(pooler_output=self.encode_video(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_):
        """``encode_text`` under transformers' name."""
        return BaseModelOutputWithPooling(pooler_output=self.encode_text(input_ids, attention_mask))

    def set_attn_implementation(self, *_args, **_kwargs):
        """Refused: another implementation would silently attend to the wrong tokens."""
        raise ClipVipError(
            "CLIP-ViP's attention is part of the model, transformers' implementations cannot take its place; "
            f"choose attention= one of {', '.join(ATTENTIONS)} in the configuration"
        )

    def added_parameters(self) -> list[nn.Parameter]:
        """Proxies and temporal embedding: they start from nothing and may take their own learning rate.

        The transformer of "sequential" starts from the text tower, and is not among them.
        """
        embeddings = self.vision_model.embeddings
        added = (embeddings.added_cls, embeddings.temporal_embedding)
        return [parameter for parameter in added if parameter is not None]


def is_added(name: str) -> bool:
    """Whether a weight is one that CLIP-ViP or "sequential" adds to CLIP."""
    return name.endswith(("embeddings.added_cls", "embeddings.temporal_embedding")) or name.startswith(
        "frame_transformer."
    )


def last_layer_of_one_token(layer: nn.Module, hidden: Tensor, last: Tensor | None = None) -> Tensor:
    """What a transformers CLIPEncoderLayer makes of one token, [B, S, D] -> [B, D].

    Without ``last``: token 0, which attends to all (a video). With ``last``, int64 [B]: that token, which attends to
    itself and all before it (a text's end).

    The feature needs only that token of the last layer. So all but keys and values is computed for one token:
    exact, 7 % of the work at 12 layers and more than a quarter at 3.
    """
    if last is None:
        at, seen = (slice(None), 0), None
    else:
        at = torch.arange(len(hidden), device=hidden.device), last
        seen = (torch.arange(hidden.shape[1], device=hidden.device) <= last[:, None])[:, None, None]
    normed, attention = layer.layer_norm1(hidden), layer.self_attn
    q, k, v = (
        projection(x).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for projection, x in (
            (attention.q_proj, normed[at][:, None]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    one = hidden[at] + attention.out_proj(attend(q, k, v, seen=seen).transpose(1, 2).flatten(1))
    return one + layer.mlp(layer.layer_norm2(one))


def wide(x: Tensor) -> Tensor:
    """At least float32: norms and similarities of bfloat16 features lose rank order."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


AutoConfig.register("clip_vip", ClipViPConfig)
AutoModel.register(ClipViPConfig, ClipViP)
