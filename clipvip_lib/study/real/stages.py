"""The study's graph on real corpora: functions with the names of those in experiments.py, for a `RealProfile`.

    weights ─────────┬──────────────────────> fine-tuned as they are ──┐
    corpora (shards) ┴──> post-pretrained ──> fine-tuned on benchmarks ┴─> claims
       └──> captions (sidecars, or made with OFA)

Trainings are ``clipvip train`` under torchrun, the same command that docs/training.md gives. A stage only chooses the
options and reads the results. Data are identified by the names and sizes of their files, not byte by byte. A stage
without its data raises NotAtHand.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipvip_lib.profiles import Profile
from clipvip_lib.statistics.claims import BENCHMARKS, TEXT_SOURCES
from clipvip_lib.statistics.language_gap import POOL
from clipvip_lib.streams.sidecars import sidecar_path
from clipvip_lib.study import experiments
from clipvip_lib.study.experiments import LARGEST, SHARES, Arm, NotAtHand
from clipvip_lib.study.paper_plan import PAIRS
from clipvip_lib.workshop.stages import Stage

STEPS = "clipvip_lib.study.real.steps:"
TRAINING = ("clipvip_lib.training.run", "clipvip_lib.models.checkpoints")
TEXT_SHARDS = 8  # texts of the language gap are read from so many shards, evenly chosen


def clip(profile: Profile, seed: int) -> Stage:
    """The given weights, loaded strictly and written as this project's. The same for every seed."""
    profile.require("weights")
    path = profile.settings.weights
    config = {"weights": str(path), "files": _print([path], times=True)}
    return Stage("clip", STEPS + "take_weights", config, imports=TRAINING)


def corpus(profile: Profile, name: str) -> Stage:
    """The shards of a corpus with the captions and texts beside them, as links. hdvila-10m may be drawn from
    hdvila-100m: every tenth."""
    profile.require(name)
    shards = _shards(profile, name)
    if not shards:
        whole = _shards(profile, LARGEST)
        count = max(1, round(len(whole) * SHARES[name]))
        shards = [whole[len(whole) * i // count] for i in range(count)]
    beside = [sidecar_path(shard, kind) for kind in ("captions", "texts") for shard in shards]
    sidecars = [path for path in beside if path.is_file()]
    config = {"files": [str(path) for path in (*shards, *sidecars)], "sizes": _print([*shards, *sidecars])}
    return Stage(f"corpus/{name}", STEPS + "link_files", config)


def captions(profile: Profile) -> list[Stage]:
    """OFA's captions of hdvila-100m: nothing to make if every shard has them beside it."""
    if profile.at_hand["captions"].there:
        return []
    profile.require(LARGEST, "ofa")
    config = {"weights": str(profile.settings.ofa), "files": _print([profile.settings.ofa], times=True)}
    config |= {"gpus": profile.settings.gpus, "skip_share": profile.settings.skip_share}
    inputs = {"corpus": corpus(profile, LARGEST)}
    imports = ("clipvip_lib.captions.captioner", "clipvip_lib.models.ofa")
    return [Stage(f"captions/{LARGEST}", STEPS + "caption_corpus", config, inputs, imports)]


def benchmark(profile: Profile, name: str) -> Stage:
    """A downstream set's files and folders as links."""
    profile.require(name)
    files = sorted((profile.settings.data_root / name).iterdir())
    config = {"files": [str(path) for path in files], "sizes": _print(files)}
    return Stage(f"benchmark/{name}", STEPS + "link_files", config)


def benchmark_frames(profile: Profile, name: str) -> Stage:
    """Decoded frames and texts of a downstream set, at the size that the weights see."""
    config = {"name": name, "recipe": f"finetune-{name}", "changes": profile.changed("finetune")}
    inputs = {"benchmark": benchmark(profile, name), "clip": clip(profile, 0)}
    imports = ("clipvip_lib.training.stores", "clipvip_lib.data.benchmarks")
    return Stage(f"frames/{name}", STEPS + "decode_benchmark", config, inputs, imports)


def postpretrained(profile: Profile, arm: Arm, seed: int) -> Stage:
    """An arm after post-pretraining: the same steps on every corpus."""
    inputs = {"clip": clip(profile, seed), "corpus": corpus(profile, arm.corpus)}
    if arm.captions and (made := captions(profile)):
        inputs["captions"] = made[0]
    recipe = {"steps": profile.postpretrain.steps} | profile.changed("postpretrain")
    config = {"loss": arm.loss, "recipe": recipe, "snapshots": experiments.snapshots(profile)}
    config |= {"skip_share": profile.settings.skip_share, **_how(profile, arm, seed)}
    return Stage(f"postpretrain/{arm.slug}/seed{seed}", STEPS + "postpretrain", config, inputs, TRAINING)


def finetuned(
    profile: Profile,
    arm: Arm,
    name: str,
    seed: int,
    snapshot: int | None = None,
) -> Stage:
    """An arm fine-tuned on a benchmark by the authors' recipe and scored on its test split."""
    step, where = experiments.start_of(profile, arm, snapshot)
    config = {
        "name": name,
        "recipe": profile.changed("finetune"),
        "snapshot": step,
        **_how(profile, arm, seed),
    }
    inputs = _start(profile, arm, name, seed)
    return Stage(f"finetune/{name}/{where}/seed{seed}", STEPS + "finetune", config, inputs, TRAINING)


def zero_shot(profile: Profile, arm: Arm, name: str, seed: int) -> Stage:
    """An arm scored on a benchmark's test split without fine-tuning."""
    config = dict(finetuned(profile, arm, name, seed).config)
    stage = f"zero-shot/{name}/{arm.slug}/seed{seed}"
    return Stage(stage, STEPS + "zero_shot", config, _start(profile, arm, name, seed), TRAINING)


def language_gap(profile: Profile, seed: int) -> Stage:
    """NMI of subtitles and of every other source at hand with both benchmarks."""
    sources = {"subtitles": LARGEST, "alt-text": "webvid-2.5m", "caption pairs": PAIRS}
    inputs = {"clip": clip(profile, seed), "text-subtitles": _texts(profile, "subtitles", LARGEST)}
    for name in TEXT_SOURCES[1:]:
        try:
            inputs[f"text-{name}"] = _texts(profile, name, sources.get(name, LARGEST))
        except NotAtHand:
            continue
    inputs |= {f"text-{name}": _texts(profile, name, name) for name in BENCHMARKS}
    imports = ("clipvip_lib.statistics.language_gap", "clipvip_lib.training.evaluation")
    return Stage(
        f"language-gap/seed{seed}",
        experiments.STEPS + "language_gap",
        experiments.gaps(profile),
        inputs,
        imports,
    )


# ------------------------------------------------------------------------------------------------------ parts


def _texts(profile: Profile, name: str, source: str) -> Stage:
    """Some texts of a set, evenly drawn."""
    stage, config = (
        f"texts/{name.replace(' ', '-')}",
        {"texts": POOL * profile.nmi_texts, "shards": TEXT_SHARDS},
    )
    if source in BENCHMARKS:
        inputs = {"benchmark": benchmark(profile, source)}
        return Stage(stage, STEPS + "benchmark_texts", {**config, "name": source}, inputs)
    inputs = {"corpus": corpus(profile, source)}
    if name == "ofa captions":
        if made := captions(profile):
            inputs["captions"] = made[0]
        return Stage(stage, STEPS + "caption_texts", config, inputs)
    return Stage(stage, STEPS + "shard_texts", config, inputs)


def _how(profile: Profile, arm: Arm, seed: int) -> dict:
    return {
        "attention": arm.attention, "proxies": arm.proxies, "gpus": profile.settings.gpus, "seed": seed
    }  # fmt: skip


def _start(profile: Profile, arm: Arm, name: str, seed: int) -> dict[str, Stage]:
    inputs = {"clip": clip(profile, seed), "benchmark": benchmark(profile, name)}
    inputs["frames"] = benchmark_frames(profile, name)
    return inputs if arm.corpus is None else inputs | {"start": postpretrained(profile, arm, seed)}


def _shards(profile: Profile, name: str) -> list[Path]:
    return sorted((profile.settings.data_root / name).glob("*.tar"))


def _print(paths: Iterable[Path], times: bool = False) -> str:
    """A hash of names and sizes (and times of change) of files, and of all files of folders."""
    return _print_of(tuple(paths), times)


@functools.cache
def _print_of(paths: Sequence[Path], times: bool) -> str:
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                facts = file.stat()
                when = facts.st_mtime_ns if times else ""
                digest.update(f"{file.relative_to(path.parent)}\0{facts.st_size}\0{when}\n".encode())
    return digest.hexdigest()[:16]
