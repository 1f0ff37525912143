"""In JupyterLab the live model answers: a box to type a sentence in, sliders over what the proxies look at.

Elsewhere (papermill, nbval) nothing is shown here: what a page holds in their place stands beside them in the cell. An
answer that fails is shown as the error that a cell would show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipvip_lib.data.corpora import encode_jpeg
from clipvip_lib.study.figures import spotlight
from clipvip_lib.study.players import Player, players_html, sized
from clipvip_lib.workshop.lab import live

if TYPE_CHECKING:
    from ipywidgets import Widget

#: Groups of players, a title and a caption, as ``Study.players`` takes them.
Answer = tuple[Mapping[str, Sequence[Player]], str, str]


def sentence_box(answer: Callable[[str], Answer], sentences: Sequence[str]) -> None:
    """A box to type any sentence in, which offers some; the videos of its answer play below."""
    if live():
        from ipywidgets import Combobox, Layout

        box = Combobox(
            description="Sentence",
            placeholder="type one and press Enter",
            options=tuple(dict.fromkeys(sentences)),
            continuous_update=False,
            layout=Layout(width="min(40rem, 95%)"),
        )
        _show({"sentence": box}, lambda sentence: answer(sentence) if sentence.strip() else None)


def attention_sliders(looks: Callable[[int], tuple[np.ndarray, np.ndarray]], clips: int) -> None:
    """Sliders over clip, layer, head, proxy and frame of the proxies' attention.

    looks: from the number of a clip, below ``clips``, to its frames uint8 [N, H, W, 3] and the shares of attention
    [layers, heads, proxies, N, rows, columns].
    """
    if live():
        from ipywidgets import IntSlider, SelectionSlider

        layers, heads, proxies, frames = looks(0)[1].shape[:4]
        names = [("all", slice(None)), *((str(head + 1), slice(head, head + 1)) for head in range(heads))]
        controls = {
            "clip": IntSlider(1, 1, clips),
            "layer": IntSlider(layers, 1, layers),
            "head": SelectionSlider(options=names),
            "proxy": IntSlider(1, 1, proxies),
            "frame": IntSlider(1, 1, frames),
        }
        for name, control in controls.items():
            control.description = name

        def answer(clip: int, layer: int, head: slice, proxy: int, frame: int) -> Answer:
            seen, shares = looks(clip - 1)
            return _looked_at(seen, shares[layer - 1, head, proxy - 1].mean(0), frame)

        _show(controls, answer)


def _looked_at(frames: np.ndarray, shares: np.ndarray, chosen: int) -> Answer:
    """Frames uint8 [N, H, W, 3] as dark as they are little looked at; shares [N, rows, columns]; chosen: from 1."""
    by_frame = 100 * shares.sum((1, 2)) / max(float(shares.sum()), 1e-9)
    row, column = np.unravel_index(shares[chosen - 1].argmax(), shares.shape[1:])
    pictures = zip(sized(spotlight(frames, shares)), by_frame, strict=True)
    players = [
        Player(encode_jpeg(picture), f"frame {i}", f"{share:.0f} %", own=i == chosen)
        for i, (picture, share) in enumerate(pictures, start=1)
    ]
    said = f"{by_frame[chosen - 1]:.0f} % of what the proxy gives the frames goes to frame {chosen}"
    return {"": players}, said, f"Most of it to row {row + 1}, column {column + 1}."


def _show(controls: Mapping[str, Widget], answer: Callable[..., Answer | None]) -> None:
    """The controls in a row that wraps, and below them what is answered whenever one of them changes."""
    from IPython.display import HTML, display
    from ipywidgets import HBox, Layout, interactive_output

    def draw(**chosen: object) -> None:
        if said := answer(**chosen):
            display(HTML(players_html(*said, play=True)))

    display(HBox([*controls.values()], layout=Layout(flex_flow="row wrap")))
    display(interactive_output(draw, dict(controls)))
