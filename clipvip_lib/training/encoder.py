"""From a batch to the features of its sources: what a loss joins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.precision import autocast
from clipvip_lib.training.batches import Batch


def features(model: ClipViP, batch: Batch) -> dict[str, Tensor]:
    """The L2-normalised features [B, E] of a batch's sources: V, S and, where the batch has them, F and C."""
    device = model.device
    out = {"V": model.encode_video(batch.video.to(device))}
    if batch.frame is not None:
        out["F"] = model.encode_video(batch.frame.to(device))
    sources = [batch.texts] if batch.captions is None else [batch.texts, batch.captions]
    length = max(tokens.ids.shape[1] for tokens in sources)  # all texts in one pass
    ids, mask = (
        torch.cat([F.pad(part, (0, length - part.shape[1])) for part in parts]).to(device)
        for parts in ([t.ids for t in sources], [t.mask for t in sources])
    )
    return out | dict(zip("SC", model.encode_text(ids, mask).chunk(len(sources)), strict=False))


class BatchEncoder(nn.Module):
    """The model as one module from a batch to (features {source: [B, E]}, logit_scale []).

    What DistributedDataParallel wraps: logit_scale is handed out, so that its gradient is waited for too.
    precision: bfloat16 runs under autocast, which begins and ends here: it keeps the weights that it has cast, and
    those cast in the pass without activations would have no way back in the other one.
    """

    def __init__(self, model: ClipViP, precision: str = "float32"):
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with autocast(self.precision, self.model.device):
            return features(self.model, batch), self.model.logit_scale
