"""Gradient caching: a contrastive batch of any size in the memory of a small one, with the same gradient.

The loss joins all features of the batch, but given their gradients every clip's way back is its own. So:

    1. encode the batch in chunks without keeping activations: features [B, E] of each source
    2. the loss of all features (gathered from all ranks), and its gradient with regard to these features
    3. encode each chunk again, now with activations, and go back from its features with the gradient of 2

One forward pass more (about a third of a step), activations of one chunk at a time. Exact up to rounding: CLIP-ViP
has no dropout, so both passes agree. Under DistributedDataParallel only the last chunk's backward pass sends
gradients.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983).
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from clipvip_lib.losses import ocl_loss
from clipvip_lib.omnisource import needs
from clipvip_lib.training.batches import Batch
from clipvip_lib.training.ranks import Ranks, gather, gather_plain


def backward(
    encoder: nn.Module, batch: Batch, loss: str, ranks: Ranks, *, chunk: int = 0, reduction: str = "mean"
) -> Tensor:
    """Add the gradient of the loss of the GLOBAL batch to the parameters; returns the loss, a detached scalar.

    encoder: an ``encoder.BatchEncoder``, or DistributedDataParallel around one.
    batch: this rank's clips; the global batch is all ranks' in the order of ranks, as many clips from each.
    chunk: clips encoded at a time; 0: the plain step, all at once. It need not divide the batch.
    loss, reduction: as for ``losses.ocl_loss``.

    Raises ClipVipError as ``ocl_loss``, RankLost if another rank is gone.
    """
    sources = sorted(needs(loss))
    mask = None if batch.caption_mask is None else batch.caption_mask.to(ranks.device)
    if mask is not None:
        mask = gather_plain(mask, ranks)

    def of_all(found: dict[str, Tensor], scale: Tensor) -> Tensor:
        given = [source for source in sources if source in found]  # the loss says which one is missing
        rows = gather(torch.stack([found[source] for source in given], dim=1), ranks)  # one call for all
        together = dict(zip(given, rows.unbind(1), strict=True))
        return ocl_loss(loss, together, scale, reduction, mask)

    if not 0 < chunk < len(batch.video):
        value = of_all(*encoder(batch))
        value.backward()
        return value.detach()
    parts = chunks(batch, chunk)
    bare = encoder.module if hasattr(encoder, "module") else encoder
    with torch.no_grad():
        encoded = [bare(part) for part in parts]
    sources = [source for source in sources if source in encoded[0][0]]
    cached = {s: torch.cat([found[s] for found, _ in encoded]).requires_grad_() for s in sources}
    scale = encoded[0][1].detach().requires_grad_()
    value = of_all(cached, scale)
    value.backward()
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        rows = slice(number * chunk, (number + 1) * chunk)
        quiet = contextlib.nullcontext() if last or bare is encoder else encoder.no_sync()
        with quiet:
            found, own_scale = encoder(part)
            ends, gradients = [found[s] for s in sources], [cached[s].grad[rows] for s in sources]
            if last:  # once, with the rest of what the loss asks of parameters
                ends, gradients = [*ends, own_scale], [*gradients, scale.grad]
            torch.autograd.backward(ends, gradients)
    return value.detach()


def chunks(batch: Batch, size: int) -> list[Batch]:
    """A batch as batches of at most ``size`` clips, in order."""
    return [
        Batch(
            video=batch.video[part],
            frame=None if batch.frame is None else batch.frame[part],
            texts=batch.texts.take(part),
            captions=None if batch.captions is None else batch.captions.take(part),
            caption_mask=None if batch.caption_mask is None else batch.caption_mask[part],
        )
        for part in (slice(start, start + size) for start in range(0, len(batch.video), size))
    ]
