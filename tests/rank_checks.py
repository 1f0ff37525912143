"""What each real process of tests/test_ranks.py does: compares the ranks with one rank, writes JSON.

Run under torchrun: ``rank_checks.py FOLDER``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.omnisource import LOSSES, needs
from clipvip_lib.training import grad_cache
from clipvip_lib.training import ranks as distributed
from clipvip_lib.training.batches import Batch, Tokens
from clipvip_lib.training.encoder import BatchEncoder
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import get_recipe
from clipvip_lib.training.step import Step, wrap

GLOBAL = 8  # clips of the global batch
RECIPE = get_recipe(
    "postpretrain",
    steps=20,
    batch=GLOBAL,
    lr=1e-3,
    lr_added=1e-3,
    frames=3,
    precision="float32",
    clip_norm=1.0,
)


def small_model(seed: int = 0) -> ClipViP:
    torch.manual_seed(seed)
    return ClipViP(
        ClipViPConfig.small(
            width=16, layers=2, heads=2, image_size=24, patch_size=12, vocab_size=64, context_length=16,
            embed_dim=16, proxies=2, frames=3,
        )
    )  # fmt: skip


def global_batch(step: int, count: int = GLOBAL) -> Batch:
    """A batch of random clips and texts of several lengths; the third clip has no caption."""
    draw = torch.Generator().manual_seed(step)

    def tokens() -> Tokens:
        lengths = torch.randint(4, 13, (count, 1), generator=draw)
        mask = (torch.arange(12) < lengths).long()
        ids = torch.randint(1, 62, (count, 12), generator=draw) * mask
        return Tokens(ids.scatter(1, lengths - 1, 63), mask)

    def pixels(frames: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, frames, 24, 24, 3), generator=draw, dtype=torch.uint8)

    return Batch(pixels(3), pixels(1), tokens(), tokens(), torch.arange(count) != 2)


def own_part(batch: Batch, ranks: Ranks) -> Batch:
    return grad_cache.chunks(batch, len(batch.video) // ranks.size)[ranks.rank]


def gradient(encoder, model, batch, loss, ranks, chunk=0) -> tuple[float, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    value = grad_cache.backward(encoder, batch, loss, ranks, chunk=chunk)
    used = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return value.item(), torch.cat(used).clone()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def gradients_of_a_loss(ranks: Ranks) -> list[dict]:
    """Loss and gradient of R ranks against one rank with the whole batch, plain and in chunks."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        for loss in LOSSES if dtype == torch.float64 else ["V-S,C + F-C"]:
            model = small_model().to(dtype)
            whole = global_batch(0)
            if "C" not in needs(loss):
                whole = dataclasses.replace(whole, frame=None, captions=None, caption_mask=None)
            alone = BatchEncoder(model)
            expected_loss, expected = gradient(alone, model, whole, loss, Ranks())
            encoder = wrap(model, RECIPE, ranks)
            for chunk in (0, 1, 3):
                value, found = gradient(encoder, model, own_part(whole, ranks), loss, ranks, chunk)
                rows.append(
                    {
                        "dtype": str(dtype),
                        "loss": loss,
                        "chunk": chunk,
                        "loss_difference": abs(value - expected_loss) / abs(expected_loss),
                        "gradient_difference": relative(found, expected),
                    }
                )
    return rows


def gathering(ranks: Ranks) -> dict:
    """``gather`` against torch's own differentiable all_gather, whose backward pass sums over ranks."""
    from torch.distributed.nn.functional import all_gather

    torch.manual_seed(ranks.rank)
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    weight = torch.randn(
        3 * ranks.size, 2, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = distributed.gather(found, ranks), torch.cat(list(all_gather(expected)))
    (ours.square() * weight).sum().backward()
    (theirs.square() * weight).sum().backward()
    flags = distributed.gather_plain(torch.tensor([ranks.rank % 2 == 0]), ranks)
    return {
        "values": torch.equal(ours, theirs),
        "gradient": relative(found.grad, expected.grad),
        "flags": flags.tolist(),
        "flag_type": str(flags.dtype),
    }


def dealing(ranks: Ranks) -> list[int]:
    """The counts for which rows that were dealt out do not come back in order (none, it is hoped)."""
    wrong = []
    for count in range(1, 4 * ranks.size + 2):
        rows = torch.arange(count)[:, None] * torch.ones(1, 3)
        own = rows[distributed.share(range(count), ranks)]
        if not torch.equal(distributed.gather_dealt(own, ranks, count), rows):
            wrong.append(count)
    return wrong


def twenty_steps(ranks: Ranks) -> dict:
    """Parameters after 20 steps: of this rank (a digest), and against one rank with the whole batches."""
    losses, models = {}, {}
    for name, with_ranks in (("ranks", ranks), ("alone", Ranks())):
        model = models[name] = small_model()
        one_step = Step(model, "V-S,C + F-C", RECIPE, with_ranks)
        for number in range(20):
            row = one_step(own_part(global_batch(number), with_ranks), number)
            losses.setdefault(name, []).append(row["loss"])
    flat = {name: torch.nn.utils.parameters_to_vector(model.parameters()) for name, model in models.items()}
    return {
        "digest": hashlib.sha256(flat["ranks"].detach().numpy().tobytes()).hexdigest(),
        "moved": relative(flat["ranks"], torch.nn.utils.parameters_to_vector(small_model().parameters())),
        "difference": relative(flat["ranks"], flat["alone"]),
        "losses": losses,
    }


def agreeing(ranks: Ranks) -> dict:
    """Flags, a failure on the last rank alone, and a message that all have."""
    largest = ranks.largest(ranks.rank, -ranks.rank)
    try:
        with distributed.together(ranks):
            if ranks.rank == ranks.size - 1:
                raise ClipVipError("this one failed")
        outcome = "went on"
    except ClipVipError as error:
        outcome = type(error).__name__
    distributed.say_once(ranks, "said by one of all", about="greeting")
    return {"largest": largest, "outcome": outcome, "collected": ranks.collect({"rank": ranks.rank})}


def main(folder: Path) -> None:
    ranks = distributed.start(3600)
    found = {
        "rank": ranks.rank,
        "size": ranks.size,
        "agreeing": agreeing(ranks),
        "gathering": gathering(ranks),
        "dealing": dealing(ranks),
        "gradients": gradients_of_a_loss(ranks),
        "steps": twenty_steps(ranks),
    }
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps(found))
    distributed.stop()
    assert not dist.is_initialized()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
