"""The study's words: what its pages explain, and how they call the embedded miniatures, which are not the real sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MEANINGS = {
    "arm": "One of the models that a claim compares: the same training, with one thing changed.",
    "contrast": "The difference between two arms on one benchmark, over the same seeds and the same queries.",
    "statement": "A part of a claim that can be decided: one sentence with its contrasts and one verdict.",
    "margin": "How large a difference may be and still not matter; set beforehand.",
    "R@1": "The share of queries whose own answer is ranked first, in per cent.",
    "average recall": "The mean of R@1, R@5 and R@10, in points of per cent.",
    "NMI": (
        "Normalised mutual information: how well two clusters tell two sets of texts apart. "
        "0: they are mixed; 1: they are apart. A smaller value is a smaller language gap."
    ),
    "proxies": "Added tokens that see all frames. A patch sees its own frame and the proxies.",
    "mean pooling": "Each frame is encoded alone and the frames' features are averaged: the order of frames is lost.",
    "full attention": "Every token of a video sees every other; the cost grows with the square of the frames.",
    "told apart": "The model prefers a clip to the one in which its events are undone, given a text that tells them.",
    "V-S": "The loss that compares each video (V) with its subtitle (S).",
    "V-C": "The loss that compares each video (V) with the caption (C) of its middle frame.",
    "F-C": "The loss that compares the middle frame (F) with its caption (C).",
    "V-S,C": "The loss in which a video has two positives: its subtitle and its caption.",
    "V-S,C + F-C": (
        "The paper's loss: a video against its subtitle and its caption, and the middle frame against the caption."
    ),
    "OFA": "The image captioner that writes what the middle frame shows. Here a miniature of it, mini-OFA.",
    "mini-OFA": "A small OFA, trained on the embedded world's caption pairs. It is not a released OFA.",
    "DSL": "Dual softmax: a score counts more if the video also prefers the text. It looks at all queries at once.",
    "transductive": "It uses all test queries at once, which a search for one sentence could not.",
    "post-pretraining": "Further training of CLIP on videos with subtitles and captions, before fine-tuning.",
    "zero-shot": "Without fine-tuning on the benchmark.",
    "prediction interval": "Where a further run is expected, in 95 of 100 cases.",
    "mini-MSRVTT": "The embedded world's benchmark in the form of MSR-VTT. It is not the real set.",
    "mini-DiDeMo": "The embedded world's benchmark of paragraphs, in the form of DiDeMo. It is not the real set.",
    "mini-HD-VILA": "The embedded world's videos with subtitles, in the form of HD-VILA. It is not the real set.",
}

_MINIATURES = {
    "msrvtt": "mini-MSRVTT",
    "didemo": "mini-DiDeMo",
    "hdvila": "mini-HD-VILA",
    "webvid": "mini-WebVid",
}
_KEY = re.compile(r"(?<![\w/.`*-])(msrvtt|didemo|hdvila|webvid)(?:(-(?:\d+|2\.5)m))?(?![\w/`*-])")
_CAPTIONS = re.compile(r"(?<![\w-])(?:ofa|OFA) captions\b")


def number(notebook: str) -> str:
    """A notebook's number: "04" of "04_video_proxy"."""
    return notebook.partition("_")[0]


def seeds_in_words(seeds: Sequence[int]) -> str:
    """ "seed 3", "seeds 0–4"."""
    from clipvip_lib.workshop.tables import in_short

    return f"seed{'s' if len(seeds) > 1 else ''} {in_short(seeds)}"


def miniatures(text: str) -> str:
    """A text in which what is embedded has names of its own: mini-MSRVTT for msrvtt, mini-OFA for its captioner."""
    return _KEY.sub(
        lambda found: _MINIATURES[found[1]] + (found[2] or "").upper(),
        _CAPTIONS.sub("mini-OFA captions", text),
    )


def named_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A table in which headings, labels and words call the embedded sets by their own names."""

    def named(value: object) -> object:
        return miniatures(value) if isinstance(value, str) else value

    words = frame.apply(lambda column: column.map(named) if column.dtype.kind not in "biufcM" else column)
    counted = frame.index.dtype.kind in "iu"
    return words.rename(columns=named) if counted else words.rename(index=named, columns=named)
