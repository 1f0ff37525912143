"""From a clip's middle frame to an auxiliary caption: OFA -> at most 16 tokens (section 4 of the paper).

``Captioner`` is an OFA with its tokenizer and beam; the authors' is the released OFA-large, the mini study trains a
small one (captioner_training.py). Whole shards are captioned by caption_shards.py.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path, make_folder, read_json, write_json
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.ofa import OFA, PROMPT, OFAConfig, ofa_preprocess
from clipvip_lib.models.ofa_tokenizer import OFATokenizer
from clipvip_lib.models.ofa_weights import TIED, load_ofa
from clipvip_lib.precision import autocast, choose

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def postprocess(text: str) -> str:
    """A decoded caption without ASCII punctuation and outer spaces (the authors' utils/eval_utils.py)."""
    return text.translate(NO_PUNCTUATION).strip()


class Captioner:
    """OFA, its tokenizer, the image size it was trained at and the beam: ``caption(images) -> texts``.

    Released OFAs caption at 480 pixels with a beam of 5. ``precision``: float32, bfloat16
    (autocast) or "auto", the faster one on the model's device.
    """

    def __init__(
        self,
        model: OFA,
        tokenizer: OFATokenizer,
        image_size: int,
        beam: BeamSettings | None = None,
        precision: str = "float32",
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ClipVipError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the model {model.config.vocab_size}; "
                "use the tokenizer that the model was trained with"
            )
        self.model, self.tokenizer, self.image_size = model.eval(), tokenizer, image_size
        self.beam = beam or BeamSettings()
        self.precision = choose(precision, next(model.parameters()).device)

    def caption(self, images: Sequence[np.ndarray], batch: int = 64) -> list[str]:
        """One caption for each uint8 RGB image [H, W, 3]; sizes may differ."""
        device = next(self.model.parameters()).device
        texts: list[str] = []
        for start in range(0, len(images), batch):
            pixels = ofa_preprocess(images[start : start + batch], self.image_size, device)
            prompt = self.tokenizer([PROMPT]).expand(len(pixels), -1).to(device)
            with autocast(self.precision, device):
                found = beam_search(self.model, prompt, pixels, self.beam)
            texts += [postprocess(self.tokenizer.decode(hypotheses[0].tokens)) for hypotheses in found]
        return texts

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors, tokenizer.json and, last, config.json into ``folder``."""
        folder = make_folder(folder)
        weights = {k: v.contiguous() for k, v in self.model.state_dict().items() if k not in TIED}
        with atomic_path(folder / "model.safetensors") as partial:
            save_file(weights, partial)
        self.tokenizer.save(folder / "tokenizer.json")
        beam, about = (
            dataclasses.asdict(self.beam),
            {"image_size": self.image_size, "precision": self.precision},
        )
        write_json(folder / "config.json", {"ofa": self.model.config.to_dict(), "beam": beam, **about})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Captioner:
        """Read what ``save`` wrote. Raises ClipVipError naming what is missing or does not fit."""
        folder = Path(folder)
        config = read_json(folder / "config.json")
        try:
            sizes, beam = OFAConfig.from_dict(config["ofa"]), BeamSettings(**config["beam"])
            image_size, precision = config["image_size"], config["precision"]
        except (KeyError, TypeError) as error:
            raise ClipVipError(
                f"{folder} is not a whole captioner (config.json: {error}); train or save it again"
            ) from error
        model, _ = load_ofa(folder, config=sizes)
        return cls(model, OFATokenizer.load(folder / "tokenizer.json"), image_size, beam, precision)
