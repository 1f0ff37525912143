"""Two probes of the embedded world, which are not arms of a claim: can order be learned, is it needed?

A motion and its opposite show the same frames in another order. A classifier that sees all frames in order must
tell the two apart on clips that it has never seen (else no model could learn order here); one that sees a single
frame must not (else order is not needed). Both look at the patch states of the frozen mini CLIP, and are trained
with the scene's truth, which no model of the study ever sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvip_lib.data.frames import FrameStore
from clipvip_lib.data.transform import normalize
from clipvip_lib.data.world import MOTIONS, OPPOSITE
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.precision import choose

WIDTH, BATCH, EPOCHS, LR = 64, 64, 8, 3e-3


@dataclass(frozen=True)
class Probed:
    """Right and asked, for each of ``pairs``: how often the true one of two opposite motions scored higher."""

    pairs: tuple[tuple[str, str], ...]
    right: tuple[int, ...]
    asked: tuple[int, ...]


class MotionProbe(nn.Module):
    """Which motions a clip shows, from patch states [B, N, L, D] on a square grid -> scores [B, motions].

    The states of a place at all times are read together, then neighbouring places.
    """

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.places = nn.Linear(width * frames, WIDTH)
        self.near = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.out = nn.Linear(2 * WIDTH, len(MOTIONS))

    def forward(self, states: Tensor) -> Tensor:
        side = round(states.shape[2] ** 0.5)
        x = F.gelu(self.places(states.transpose(1, 2).flatten(2)))
        x = x.transpose(1, 2).unflatten(2, (side, side))
        for conv in self.near:
            x = x + F.gelu(conv(x))
        x = x.flatten(2)
        return self.out(torch.cat([x.mean(2), x.amax(2)], 1))


@torch.no_grad()
def patch_states(model: ClipViP, store: FrameStore, frames: int, precision: str, batch: int = 64) -> Tensor:
    """Patch states after the last layer, each frame seen by itself: float16 [clips, N, L, D].

    model: with attention "mean_pool", whose frames do not meet.
    """
    kind = getattr(torch, choose(precision, model.device))
    model, out = model.to(kind).eval(), []
    for start in range(0, len(store), batch):
        rows = range(start, min(start + batch, len(store)))
        pixels = normalize(torch.from_numpy(store.take(rows, frames))).to(kind)
        out.append(model.video_states(pixels).unflatten(0, (len(rows), frames))[:, :, 1:].half())
    return torch.cat(out)


def motion_table(motions: Sequence[Sequence[str]]) -> Tensor:
    """The motions of each clip, names -> bool [clips, motions]."""
    table = torch.zeros(len(motions), len(MOTIONS), dtype=torch.bool)
    for row, names in enumerate(motions):
        table[row, [MOTIONS.index(name) for name in names]] = True
    return table


def probe(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    one_frame: bool,
    seed: int,
    epochs: int = EPOCHS,
) -> Probed:
    """Train on clips and ask on others; train and test are (states [C, N, L, D], motions bool [C, motions]).

    one_frame: each clip is seen at one of its N times, drawn at random; all times are drawn alike often, so that
    the time itself does not tell the direction.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MotionProbe(train[0].shape[-1], 1 if one_frame else train[0].shape[1])
    mean, std = (f((0, 1, 2)) for f in (train[0].float().mean, train[0].float().std))

    def see(states: Tensor) -> Tensor:
        if one_frame:
            time = torch.randint(states.shape[1], (len(states),), generator=generator)
            states = states[torch.arange(len(states)), time][:, None]
        return (states.float() - mean) / std

    steps = max(1, epochs * len(train[0]) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(train[0]), (min(BATCH, len(train[0])),), generator=generator)
        loss = F.binary_cross_entropy_with_logits(net(see(train[0][rows])), train[1][rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        scores = torch.cat([net(see(part)) for part in test[0].split(256)]).numpy()
    return _ask(scores, test[1].numpy())


def _ask(scores: np.ndarray, shown: np.ndarray) -> Probed:
    """Of the clips that show one of two opposite motions and not the other: which scores higher?"""
    pairs = tuple((motion, OPPOSITE[motion]) for motion in MOTIONS[::2])
    right, asked = [], []
    for motion, opposite in pairs:
        a, b = MOTIONS.index(motion), MOTIONS.index(opposite)
        one = shown[:, a] != shown[:, b]
        right.append(int(((scores[one, a] > scores[one, b]) == shown[one, a]).sum()))
        asked.append(int(one.sum()))
    return Probed(pairs, tuple(right), tuple(asked))
