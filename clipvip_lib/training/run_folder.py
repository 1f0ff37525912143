"""The folder of one training run: what must survive a kill, and what a person reads.

    checkpoint.pt    weights, optimiser, step, every rank's place in its data; whole or not at all
    metrics.jsonl    one row per step; cut back to the checkpoint when a run resumes
    best-NNNNNN.pt   weights of the best evaluation so far
    step-NNNNNN/     snapshots that were asked for, as save_pretrained writes them
    model/           the result, with its tokenizer; every loader reads it
    result.json      written last: the run is done

What is exact after a resumption. On the same number of ranks, everything. One or two of them, with one CPU thread each,
give the same weights, bit for bit. More average their gradients in another order in the first step of each start,
because DistributedDataParallel lays them out again after it: the same up to rounding. On another number: weights,
optimiser, step and schedule, and the batches where they come from a frame store (batch number ``step`` of the whole is
a function of seed and step, and is dealt out again); gradients are then the same up to the order of sums. Streams of
shards continue as ``streams/stream.py`` says.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import make_folder, read_json, sync, write_bytes
from clipvip_lib.locks import Lock, Taken
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.models.hub import TOKENIZER
from clipvip_lib.training.ranks import Ranks, together
from clipvip_lib.training.weights import UNREADABLE, load_state, save_state

#: Parts of ``about`` that early runs did not note: a run that lacks them counts as the same.
LATER = ("data's content", "captions' names and sizes")


@dataclass
class RunFolder:
    """Paths and state of a run. ``about``: what the run is; a checkpoint of another one is refused."""

    path: Path
    about: Mapping[str, object]
    ranks: Ranks
    evaluations: list[dict] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def best(self, step: int) -> Path:
        return self.path / f"best-{step:06d}.pt"

    def differences(self, before: Mapping[str, object]) -> list[tuple[str, object, object]]:
        """Where a stored ``about`` differs from this run's: name, what it was and what it is."""
        now = json.loads(json.dumps(self.about))
        names = {*before, *now} - {name for name in LATER if name not in before}
        names = sorted(names, key=lambda name: (name in LATER, name))  # an option says more than a digest
        return [(n, before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)]

    # ---- checkpoints ----

    def save(
        self, step: int, model: ClipViP, optimizer: torch.optim.Optimizer, position: object, rng: torch.Tensor
    ) -> None:
        """Write the checkpoint; every rank must call. ``position``: of this rank in its data, as JSON has it.

        Raises ClipVipError if it cannot be written, on the other ranks StoppedElsewhere.
        """
        states = self.ranks.collect({"position": position, "rng": rng})
        with together(self.ranks):
            if self.ranks.main:
                state = {
                    "step": step,
                    "about": json.dumps(self.about),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "positions": json.dumps([each["position"] for each in states]),
                    "rng": [each["rng"] for each in states],
                    "evaluations": self.evaluations,
                }
                save_state(state, self.checkpoint)
                self._drop_old_bests()

    def resume(
        self,
        model: ClipViP,
        optimizer: torch.optim.Optimizer,
        place: Callable[[list, int], None],
    ) -> int:
        """Load the checkpoint if there is one; returns the number of steps done.

        place: called with every rank's position in the data (of as many ranks as there were) and the step.
        Raises ClipVipError if the checkpoint is damaged, or of another run (says in what).
        """
        if not self.checkpoint.exists():
            return 0
        try:
            state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
            before = json.loads(state["about"])
        except UNREADABLE as error:
            raise ClipVipError(
                f"cannot resume from {self.checkpoint}: expected a checkpoint of clipvip train, got something else "
                "or half of it; remove it to start from scratch"
            ) from error
        for name, was, now in self.differences(before):
            raise ClipVipError(
                f"cannot resume from {self.checkpoint}: {name} was {was!r} and is {now!r}; give the former one, or "
                "another --out to start from scratch"
            )
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except UNREADABLE as error:
            raise ClipVipError(
                f"cannot resume from {self.checkpoint}: it does not fit this model; give the same --weights and "
                "options, or another --out to start from scratch"
            ) from error
        positions = json.loads(state["positions"])
        if len(positions) == self.ranks.size:
            torch.set_rng_state(state["rng"][self.ranks.rank])
        place(positions, int(state["step"]))
        self.evaluations = state["evaluations"]
        return int(state["step"])

    def evaluated(self, step: int, score: float, model: ClipViP) -> None:
        """Note a score on validation; the weights are kept if none was better. Every rank must call."""
        best = max((row["score"] for row in self.evaluations), default=float("-inf"))
        self.evaluations.append({"step": step, "score": score})
        with together(self.ranks):
            if self.ranks.main and score >= best:
                save_state(model.state_dict(), self.best(step))

    def best_step(self) -> int | None:
        """The step of the best score, the latest of equal ones; None without evaluations."""
        rows = self.evaluations
        return max(rows, key=lambda row: (row["score"], row["step"]))["step"] if rows else None

    def load_best(self, model: ClipViP) -> None:
        """The weights of the best evaluation into the model, if there was one."""
        if (step := self.best_step()) is not None:
            load_state(model, self.best(step))

    def _drop_old_bests(self) -> None:
        for path in self.path.glob("best-*.pt"):
            if path != self.best(self.best_step() or -1):
                path.unlink()

    # ---- rows and results ----

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def finished(self) -> dict | None:
        """The result of a run that is done. Raises ClipVipError for another run's, and if the model is gone."""
        if not self.result.exists():
            return None
        stored = read_json(self.result)
        parts = [stored.get(name) for name in ("about", "result")] if isinstance(stored, dict) else [None]
        if not all(isinstance(part, dict) for part in parts):
            raise ClipVipError(
                f"{self.result} expected the result of clipvip train, got other JSON; remove it, or give another --out"
            )
        about, result = parts
        if differing := self.differences(about):
            raise ClipVipError(
                f"{self.result} holds the result of another run ({', '.join(row[0] for row in differing)}); give "
                "another --out, or remove it"
            )
        model = self.path / "model"
        if not model.is_dir():
            raise ClipVipError(
                f"{self.result} expected its model in {model}, it is gone; put it back, or remove the result to train "
                "again"
            )
        return result | {"model": str(model)}  # a folder may have been moved

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def cut_metrics(self, step: int) -> None:
        """Keep the rows of the first ``step`` steps: what was written after the checkpoint is done again."""
        if self.ranks.main:
            rows = [row for row in read_metrics(self.metrics) if row["step"] <= step]
            write_bytes(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def save_model(self, name: str, model: ClipViP, tokenizer: ClipTokenizer) -> None:
        """Write the model and its tokenizer as a folder, whole or not at all. Every rank must call."""
        with together(self.ranks):
            if self.ranks.main:
                partial = make_folder(self.path / f"{name}.partial")
                try:
                    model.save_pretrained(partial)
                    tokenizer.save(partial / TOKENIZER)
                    for path in (*partial.iterdir(), partial):
                        sync(path)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)  # on a full disk it takes the room
                    raise
                shutil.rmtree(self.path / name, ignore_errors=True)
                partial.rename(self.path / name)

    def clear(self) -> None:
        """After the result: checkpoints are no longer needed."""
        if self.ranks.main:
            for path in (self.checkpoint, *self.path.glob("best-*.pt")):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path, ranks: Ranks) -> Iterator[None]:
    """Hold a run's folder: two runs would mix their rows and overwrite each other's checkpoints. Every rank must call.

    The system lets go of it when the main rank dies. Raises ClipVipError, on the other ranks StoppedElsewhere, if
    another process holds it.
    """
    with contextlib.ExitStack() as stack:
        with together(ranks):
            if ranks.main:
                try:
                    stack.enter_context(Lock(path))
                except Taken:
                    raise ClipVipError(
                        f"another process is writing to {path}: expected one run at a time; wait for it, or give "
                        "another --out"
                    ) from None
                except ClipVipError:
                    pass  # training does not need a file system with locks
        yield


def checkpoint_step(path: Path) -> int | None:
    """The step of a checkpoint, without reading its weights; None if it does not say."""
    try:
        return int(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["step"])
    except UNREADABLE:
        return None


def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    path = Path(path)
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
