"""Who captions an image: OFA, as in the paper, or a vision-to-text model of Hugging Face.

The interface is small, ``ImageCaptioner``: images in, one sentence each out. OFA's weights and the way they are used
(480 pixels, beam 5, 16 tokens: facts of the authors' caption script) are the default; the other implementation is
for those who cannot get them. ``describe`` says whose captions a folder holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from clipvip_lib.captions.captioner import Captioner, postprocess
from clipvip_lib.errors import ClipVipError, first_line
from clipvip_lib.models.beam import BeamSettings
from clipvip_lib.models.hub import BPE_FILES, local
from clipvip_lib.models.ofa import OFA
from clipvip_lib.models.ofa_tokenizer import OFATokenizer
from clipvip_lib.models.ofa_weights import load_ofa
from clipvip_lib.models.weight_names import expect_ofa, is_captioner
from clipvip_lib.precision import autocast, choose

SIZE = 480  # pixels at which OFA's caption weights were trained and are evaluated


class ImageCaptioner(Protocol):
    """What captions a corpus.

    image_size: side of the square to which images may be brought beforehand (transform.resize, antialiased)
    without changing the caption; None if they must be given as they were decoded.
    """

    image_size: int | None

    def caption(self, images: Sequence[np.ndarray], batch: int = 64) -> list[str]:
        """One caption for each uint8 RGB image [H, W, 3]; sizes may differ."""
        ...


def load_ofa_captioner(
    weights: str | Path,
    *,
    bpe: str | Path | None = None,
    size: int | None = None,
    beam: int | None = None,
    max_tokens: int | None = None,
    precision: str = "float32",
    device: str | torch.device = "cpu",
) -> Captioner:
    """OFA's released caption weights, or a folder of ``Captioner.save``, ready to caption on ``device``.

    Args:
        weights: fairseq's .pt, Hugging Face's folder or its name on the Hub, or a folder of ``Captioner.save``.
        bpe: folder with GPT-2's vocab.json and merges.txt; by default ``weights`` if it is a folder.
        size, beam, max_tokens: pixels per side, hypotheses, tokens at most; by default 480, 5 and 16, for a saved
            captioner those that it was saved with.

    Raises ClipVipError if weights or tokenizer are missing, damaged or do not belong together.
    """
    folder = local(weights)
    expect_ofa(folder, bpe)
    if is_captioner(folder):
        saved = Captioner.load(folder)
        model, tokenizer, settings = saved.model, saved.tokenizer, saved.beam
        size = size or saved.image_size
    else:
        tokenizer = OFATokenizer.from_files(*(Path(bpe or folder, name) for name in BPE_FILES))
        model, _ = load_ofa(folder)
        settings, size = BeamSettings(), size or SIZE
    if beam is not None:
        settings = dataclasses.replace(settings, beam_size=beam)
    if max_tokens is not None:
        settings = dataclasses.replace(settings, max_len_b=max_tokens)
    longest = 16 * model.config.image_bucket_size
    if not 1 <= size <= longest:
        raise ClipVipError(
            f"this OFA sees images of 1 to {longest} pixels per side, got {size}; choose another size"
        )
    precision = choose(precision, device)
    if precision == "bfloat16":
        cast_once(model)
    return Captioner(model.to(device), tokenizer, size, settings, precision)


def cast_once(model: OFA) -> None:
    """Keep in bfloat16, in place, the weights that autocast would cast at every use: the numbers stay the same.

    In inference mode autocast remembers no weights, and each of a caption's 17 steps casts all of the decoder's.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, value in list(module.named_parameters(recurse=False)):
                # Also parts the output projection from the token embedding, which autocast leaves in float32.
                setattr(module, name, nn.Parameter(value.detach().to(torch.bfloat16), requires_grad=False))


# -------------------------------------------------------------------------------------------- Hugging Face


class HuggingFaceCaptioner:
    """A vision-to-text model of Hugging Face that describes an image without a prompt: BLIP, GIT, ViT-GPT2 and others.

    model: its name (downloaded once by transformers) or a folder. Code that comes with a model is never run. It brings
    its own image size. Captions lose punctuation as OFA's do.

    Raises ClipVipError if it cannot be loaded, or does not caption a first picture.
    """

    image_size = None

    def __init__(
        self,
        model: str | Path,
        *,
        beam: int = 5,
        max_tokens: int = 16,
        precision: str = "float32",
        device: str | torch.device = "cpu",
    ) -> None:
        from transformers import (
            AutoImageProcessor,
            AutoModelForImageTextToText,
            AutoTokenizer,
        )  # takes seconds

        if beam < 1 or max_tokens < 1:
            raise ClipVipError(f"expected a beam and a length of at least 1, got {beam} and {max_tokens}")
        self.beam, self.max_tokens, self.precision = beam, max_tokens, choose(precision, device)
        plain = {
            "trust_remote_code": False
        }  # by default transformers asks at a terminal whether to run such code
        try:
            self.processor = AutoImageProcessor.from_pretrained(model, **plain)
            self.tokenizer = AutoTokenizer.from_pretrained(model, **plain)
            self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32, **plain)
        except Exception as error:  # whatever the libraries make of a name, a connection, a file
            raise ClipVipError(
                f"cannot load the captioner {model} ({first_line(error)}): expected the name or folder of a Hugging "
                "Face vision-to-text model with its image processor and tokenizer; check the name and the connection"
            ) from error
        self.model.to(device).eval()
        self._end_generation_well()
        try:
            self.caption([np.full((64, 64, 3), 127, np.uint8)])
        except Exception as error:
            raise ClipVipError(
                f"{model} does not caption an image by itself ({first_line(error)}): expected a model that needs no "
                "prompt, such as BLIP, GIT or ViT-GPT2; choose one of those"
            ) from error

    def caption(self, images: Sequence[np.ndarray], batch: int = 64) -> list[str]:
        """One caption for each uint8 RGB image [H, W, 3]; sizes may differ."""
        from PIL import Image

        texts: list[str] = []
        for start in range(0, len(images), batch):
            pictures = [Image.fromarray(image) for image in images[start : start + batch]]
            inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
            with torch.inference_mode(), autocast(self.precision, self.model.device):
                tokens = self.model.generate(
                    **inputs, num_beams=self.beam, do_sample=False, max_new_tokens=self.max_tokens
                )
            found = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            texts += [postprocess(" ".join(text.split())) for text in found]
        return texts

    def _end_generation_well(self) -> None:
        """A saved limit of length gives way to ours; GPT-2's decoders lack a padding token."""
        settings = self.model.generation_config
        settings.max_length = None
        if settings.pad_token_id is None:
            pad = self.tokenizer.pad_token_id
            settings.pad_token_id = self.tokenizer.eos_token_id if pad is None else pad


# ------------------------------------------------------------------------------------------ whose captions


def describe(captioner: Captioner | HuggingFaceCaptioner) -> dict:
    """What decides the captions, JSON-ready: two captioners that say the same here caption alike, up to rounding."""
    about = {"weights": checksum(captioner.model), "precision": captioner.precision}
    if isinstance(captioner, Captioner):
        return {
            "captioner": "OFA",
            "size": captioner.image_size,
            **dataclasses.asdict(captioner.beam),
            **about,
        }
    kind = f"Hugging Face {captioner.model.config.model_type}"
    return {"captioner": kind, "beam": captioner.beam, "max_tokens": captioner.max_tokens, **about}


def checksum(model: nn.Module) -> str:
    """A checksum of a model's weights, by names, shapes and at most 1024 values of each: the file may have moved."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // 1024)][:1024].cpu()
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
