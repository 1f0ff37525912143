"""The training loop: steps, evaluations and snapshots, a stop at a signal, a checkpoint of all ranks.

The study trains with it on one device, ``clipvip train`` on any number of them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence

import torch

from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.progress import ProgressCallback
from clipvip_lib.stop_signals import WATCHED, StoppedBetweenSteps, StopSignals
from clipvip_lib.training.batches import BatchSource
from clipvip_lib.training.ranks import together
from clipvip_lib.training.recipes import TrainRecipe, even_steps
from clipvip_lib.training.run_folder import RunFolder
from clipvip_lib.training.step import Step


def train(
    model: ClipViP,
    source: BatchSource,
    loss: str,
    recipe: TrainRecipe,
    *,
    run: RunFolder,
    progress: ProgressCallback,
    evaluate: Callable[[ClipViP], float] | None = None,
    snapshot: Callable[[int], None] | None = None,
    snapshots: Sequence[int] = (),
    report: Callable[[dict], None] | None = None,
    signals: bool = True,
) -> None:
    """Train ``model`` in place for ``recipe.steps`` steps, resuming from the run's checkpoint if there is one.

    source: every rank's own; loss: a name of ``omnisource.LOSSES``.
    evaluate: a score on the VALIDATION split, larger is better, the same on every rank; asked
        ``recipe.evaluations`` times at equal distances. The model ends with the weights of the best one.
    snapshot: called on every rank at ``snapshots`` (numbers of steps done).
    report: called on the main rank with each row of metrics.jsonl.
    signals: whether SIGTERM and SIGINT stop the training between two steps, with a checkpoint; without, the
        process that started this one decides what they do.

    Raises:
        ClipVipError: the loss or gradient is not finite (on all ranks alike), memory is too small, data fail.
        RankLost: another rank is gone. The last checkpoint stays in all these cases.
        StoppedBetweenSteps(128 + number): a rank got SIGTERM or SIGINT; all finished the step and wrote a checkpoint.
    """
    ranks = run.ranks
    one_step = Step(model, loss, recipe, ranks)
    start = run.resume(model, one_step.optimizer, source.place)
    one_step.loaded()
    run.cut_metrics(start)
    evaluated = even_steps(recipe.steps, recipe.evaluations) if evaluate else []

    def save(done: int) -> None:
        run.save(done, model, one_step.optimizer, source.position(), torch.get_rng_state())

    saved_at = time.monotonic()
    with (
        StopSignals(ranks.store is not None, WATCHED if signals else ()) as stop,
        run.metrics.open("a") if ranks.main else contextlib.nullcontext() as rows,
    ):
        for step in range(start, recipe.steps):
            due = ranks.main and time.monotonic() - saved_at > 60 * recipe.save_minutes
            number, due = ranks.largest(stop.number, due)
            # Before the first step too: a person who stops a run is told of a checkpoint.
            if (step > start and (number or due)) or (number and step == 0):
                save(step)
                saved_at = time.monotonic()
            if number:
                raise StoppedBetweenSteps(128 + int(number))
            began = time.monotonic()
            with together(ranks):
                batch = source(step)
            fetched = time.monotonic()
            row = {"step": step + 1, **one_step(batch, step)}
            seconds = time.monotonic() - began
            row |= {
                "seconds": round(seconds, 4),
                "waited": round(fetched - began, 4),  # for data
                "clips_per_second": round(recipe.batch / seconds, 2),
            }
            if rows:
                rows.write(json.dumps(row) + "\n")
                rows.flush()
            if report and ranks.main:
                report(row)
            done = step + 1
            if done in snapshots and snapshot:
                snapshot(done)
            if done in evaluated:
                run.evaluated(done, _score(model, evaluate), model)
                save(done)
                saved_at = time.monotonic()
            if ranks.main:
                progress(done, recipe.steps, f"loss {row['loss']:.3f}")
    run.load_best(model)
    one_step.release()
    model.eval()


def _score(model: ClipViP, evaluate: Callable[[ClipViP], float]) -> float:
    model.eval()
    with torch.no_grad():
        score = evaluate(model)
    model.train()
    return score
