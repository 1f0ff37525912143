"""The study at paper size as a plan: stages, data and weights, GPU hours, disk. Nothing is run or written.

The plan follows from the profile and the study's graph (experiments.py), from counted FLOPs (flops.py) and from stated
assumptions (scaling.py), so a change to any of them changes the plan. Paper size does not use the embedded world and
its small models: corpora, benchmarks, CLIP and OFA come from the available data, and the plan says which are there.

Ablations are post-pretrained for one epoch of the largest corpus. The published CLIP-ViP of notebook 06 takes three
epochs, which are a separate training here. ``reproduce`` uses the one-epoch model for both unless told to train longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clipvip_lib import flops, scaling
from clipvip_lib.data.benchmarks import SETS
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.omnisource import needs
from clipvip_lib.profiles import PROFILES, Profile
from clipvip_lib.statistics.claims import BENCHMARKS, CORPORA
from clipvip_lib.statistics.language_gap import POOL
from clipvip_lib.study import experiments
from clipvip_lib.study.experiments import LARGEST, METHOD, SHARES, Arm
from clipvip_lib.study.words import number
from clipvip_lib.training.recipes import RECIPES
from clipvip_lib.workshop.stages import Stage

if TYPE_CHECKING:
    from clipvip_lib.study.measured import Rate

WEIGHTS = {"weights": "CLIP's weights", "ofa": "OFA-large caption weights"}  # by the names that --set has
PATHS = ("data_root", *WEIGHTS, "measured")  # what --set gives as a file or folder
PAIRS = "caption-pairs"  # texts of an image-caption corpus, for notebook 02
READERS = tuple(number(name) for name in experiments.NOTEBOOKS if name not in experiments.SUMMARIES)
FULL_EPOCHS = int(RECIPES["postpretrain-full"].epochs)  # more than of the ablations
CAPTION_LINE_BYTES = 100  # {"key": .., "caption": ..} with a caption of about ten words


@dataclass(frozen=True)
class Settings:
    """What ``--set`` may say: where data and weights are, how many GPUs a training has, the share of a corpus's
    samples that may be skipped because they cannot be read, and every assumption. measured: the rate of a training
    that ran here (``--set`` names its folder), in place of gpu_tflops and gpu_share. packed: whether the corpora are
    packed once, before all trainings (``clipvip pack``)."""

    data_root: Path | None = None
    weights: Path | None = None
    ofa: Path | None = None
    gpus: int = scaling.GPUS[0]
    skip_share: float = 0.0
    measured: Rate | None = None
    assumed: scaling.Assumptions = field(default_factory=scaling.Assumptions)
    packed: bool = False

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Settings:
        """Settings from names and values. Raises ClipVipError for an unknown name or a value of another kind."""
        assumptions = [f.name for f in dataclasses.fields(scaling.Assumptions)]
        found: dict[str, object] = {}
        changed: dict[str, float] = {}
        for name, value in given.items():
            if name in PATHS:
                if not isinstance(value, str) or not value.strip():
                    raise ClipVipError(
                        f"--set {name}=...: expected a file or folder, got {value!r}; name one"
                    )
                found[name] = Path(value).expanduser()
            elif name == "gpus":
                if type(value) is not int or value < 1:
                    raise ClipVipError(
                        f"--set gpus=...: expected a whole number from 1, got {value!r}; change it"
                    )
                found[name] = value
            elif name == "skip_share":
                if type(value) not in (int, float) or not 0 <= value <= 1:
                    raise ClipVipError(
                        f"--set skip_share=...: expected a share from 0 to 1, got {value!r}; change it"
                    )
                found[name] = float(value)
            elif name in assumptions:
                changed[name] = value
            else:
                raise unknown("setting of a plan", name, [*PATHS, "gpus", "skip_share", *assumptions])
        if "measured" in found:
            from clipvip_lib.study.measured import rate

            if twice := {"gpu_tflops", "gpu_share"} & changed.keys():
                raise ClipVipError(
                    f"--set measured=...: expected it without {min(twice)}, which it takes the place of; leave one out"
                )
            found["measured"] = rate(found["measured"])
            # Captioning, which did not run, keeps its ratio to training.
            default = scaling.Assumptions()
            beside = {"caption_share": round(default.caption_share / default.gpu_share, 3)}
            changed = beside | changed | {"gpu_tflops": found["measured"].tflops, "gpu_share": 1.0}
        return cls(**found, assumed=scaling.Assumptions().but(**changed))

    def rows(self) -> list[dict[str, object]]:
        """{assumption, value, unit, reason} of each, where one was measured with where."""
        rows = self.assumed.rows()
        if self.measured is None:
            return rows
        reasons = {
            "gpu_tflops": self.measured.words,
            "gpu_share": "measured: in gpu_tflops",
            "caption_share": "of the measured rate reached by OFA-large, as on an H200",
        }
        return [row | {"reason": reasons.get(row["assumption"], row["reason"])} for row in rows]


@dataclass(frozen=True)
class Work:
    """Like stages in one row.

    clip_flops: of a clip, image or text, a training step's or a forward pass. hours: GPU hours of all runs;
    computing: those if data came at once and gradients took no time. elapsed: hours if these runs come one after the
    other, each on all its GPUs. bytes: what stays on disk. steps: of a run, the mean of runs that differ.
    """

    notebooks: frozenset[str]
    what: str
    runs: int
    needs: frozenset[str]
    steps: int = 0
    clip_flops: float = 0.0
    hours: float = 0.0
    computing: float = 0.0
    elapsed: float = 0.0
    wall: str = ""
    bytes: float = 0.0


# ------------------------------------------------------------------------------------------------- the work


@dataclass
class Training:
    """One training of the study: its stage, its arm, the notebooks that read it. full: from the three epochs."""

    stage: Stage
    arm: Arm
    readers: set[str]
    full: bool = False


def works(
    profile: Profile, seeds: Sequence[int], settings: Settings, notebooks: Sequence[str] = ()
) -> list[Work]:
    """Everything that would be computed, in its order; with ``notebooks`` (numbers) only what these read."""
    wanted = frozenset(notebooks) or frozenset(READERS)
    tuned = [each for each in _finetunings(profile, seeds) if each.readers & wanted]
    starts: dict[tuple[str, bool], Training] = {}
    for each in tuned:
        if each.arm.corpus:
            start = Training(each.stage.inputs["start"], each.arm, set(), each.full)
            starts.setdefault((start.stage.name, each.full), start).readers.update(each.readers)
    groups: dict[str, list[Training]] = {}
    for start in sorted(starts.values(), key=lambda start: start.full):  # the full one behind the ablations
        full = f"full CLIP-ViP: {FULL_EPOCHS} epochs of {LARGEST}"
        groups.setdefault(full if start.full else f"post-pretrain {start.arm.slug}", []).append(start)
    for each in tuned:
        groups.setdefault(f"fine-tune for {min(each.readers)}", []).append(each)
    rows = [_language_gap(profile, seeds, settings), _captions(profile, starts.values(), settings)]
    rows += [_frame_store(profile, name, tuned, settings) for name in BENCHMARKS]
    if settings.packed and starts:
        rows.append(_packs(profile, starts.values(), settings))
    rows += [_trainings(profile, what, members, settings) for what, members in groups.items()]
    return [row for row in rows if row.notebooks & wanted]


def full_profile(profile: Profile) -> Profile | None:
    """The profile with the published number of epochs of the full CLIP-ViP.

    None if all arms are trained alike: in the embedded world, and where a number of steps was asked for.
    """
    recipe = profile.postpretrain
    if profile.name != "paper" or recipe.steps != PROFILES["paper"].postpretrain.steps:
        return None
    longer = dataclasses.replace(recipe, steps=FULL_EPOCHS * recipe.steps)
    return dataclasses.replace(profile, postpretrain=longer)


def _finetunings(profile: Profile, seeds: Sequence[int]) -> list[Training]:
    """Every fine-tuning of the study once, with the notebooks that read it."""
    longer = full_profile(profile)
    found: dict[tuple[str, bool], Training] = {}
    for notebook, read in experiments.reads(profile).items():
        for arm, name, step in read.tuned:
            full = longer is not None and read.full and arm == METHOD
            for seed in seeds:
                stage = experiments.finetuned(longer if full else profile, arm, name, seed, step)
                training = Training(stage, arm, set(), full)
                found.setdefault((stage.name, full), training).readers.add(number(notebook))
    return list(found.values())


def _readers(profile: Profile, *makers: Callable) -> frozenset[str]:
    """The numbers of the notebooks that read what one of these makes."""
    found = experiments.reads(profile).items()
    return frozenset(number(name) for name, read in found if {*makers} & {*read.by_seed, *read.once})


def finetuning_steps(profile: Profile, benchmark: str) -> int:
    """Steps of a fine-tuning on a whole training split. At paper size every benchmark has its own number of passes,
    as ``clipvip train`` takes them, where the profile names one number for all; a number that was asked for wins."""
    recipe = profile.finetune
    if profile.name != "paper" or recipe.steps != PROFILES["paper"].finetune.steps:
        return recipe.steps
    own = dataclasses.replace(RECIPES[f"finetune-{benchmark}"], batch=recipe.batch)
    return own.for_data(SETS[benchmark].sizes["train"]).steps


def sizes_of(profile: Profile, attention: str = "proxy", proxies: int | None = None) -> flops.ClipSizes:
    """The model of a profile for counting, by default under its own proxies.

    The text tower is that of the CLIPs of this width, the default of ``flops.ClipSizes``: a profile names none.
    """
    m = profile.model
    return flops.ClipSizes(
        attention=attention,
        proxies=proxies or m.proxies,
        frames=m.frames,
        width=m.width,
        layers=m.layers,
        mlp=4 * m.width,
        image_size=m.image_size,
        patch_size=m.patch_size,
        embed_dim=m.embed_dim,
        context_length=m.context_length,
    )


def method_step(
    profile: Profile, gpus: int, assumed: scaling.Assumptions, batch: int | None = None
) -> scaling.StepTime:
    """A step of post-pretraining by the whole method (V-S,C + F-C), at the profile's batch if none is given."""
    return arm_step(profile, METHOD, METHOD.loss, batch or profile.postpretrain.batch, gpus, assumed)


def arm_step(
    profile: Profile, arm: Arm, loss: str, batch: int, gpus: int, assumed: scaling.Assumptions
) -> scaling.StepTime:
    """A training step of an arm."""
    return scaling.training_step(sizes_of(profile, arm.attention, arm.proxies), loss, batch, gpus, assumed)


def _trainings(profile: Profile, what: str, members: list[Training], settings: Settings) -> Work:
    """A row of trainings: post-pretrainings of one arm, or fine-tunings of one notebook, which read frame stores."""
    assumed = settings.assumed.packed() if settings.packed else settings.assumed
    hours, computing, elapsed, kept, products, clips = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    walls, asked, steps = [], {"weights"}, []
    for stage, arm in ((each.stage, each.arm) for each in members):
        config, recipe = stage.config, stage.config["recipe"]
        if "loss" not in config:
            recipe = recipe | {"steps": finetuning_steps(profile, stage.name.split("/")[1])}
        steps.append(recipe["steps"])
        loss = config.get("loss", experiments.BASELINE_LOSS)
        sizes, gpus = sizes_of(profile, arm.attention, arm.proxies), min(settings.gpus, recipe["batch"])
        step = arm_step(profile, arm, loss, recipe["batch"], gpus, assumed)
        if "loss" not in config:
            step = dataclasses.replace(step, decode=0.0, read=0.0)
        elapsed += recipe["steps"] * step.seconds / 3600
        hours += recipe["steps"] * step.seconds * gpus / 3600
        computing += recipe["steps"] * step.computing * gpus / 3600
        walls.append(step.wall)
        kept += len(config.get("snapshots", [0])) * flops.clip_parameters(sizes) * scaling.FLOAT32
        products += recipe["steps"] * recipe["batch"] * flops.step_flops(sizes, needs(loss))
        clips += recipe["steps"] * recipe["batch"]
        asked |= {arm.corpus} if "loss" in config else {stage.name.split("/")[1]}
        asked |= {"captions"} if "loss" in config and arm.captions else set()
    notebooks = frozenset().union(*(each.readers for each in members))
    wall = max(walls, key=walls.count)
    return Work(
        notebooks,
        what,
        len(members),
        frozenset(asked),
        round(sum(steps) / len(steps)),
        products / clips,
        hours,
        computing,
        elapsed,
        wall,
        kept,
    )


def _frame_store(profile: Profile, name: str, tuned: Iterable[Training], settings: Settings) -> Work:
    """A benchmark's videos decoded once for all fine-tunings on it. The processors do this while the GPUs wait."""
    readers = (each.readers for each in tuned if each.stage.name.split("/")[1] == name)
    clips, frames = sum(SETS[name].sizes.values()), RECIPES[f"finetune-{name}"].kept_frames
    hours = clips * settings.assumed.decode_ms / 1000 / settings.assumed.cores_per_gpu / 3600
    return Work(
        frozenset().union(*readers),
        f"decode {name} into a frame store",
        runs=1,
        needs=frozenset({name, "weights"}),
        hours=hours,
        elapsed=hours / settings.gpus,
        wall="decode",
        bytes=clips * (frames + 1) * profile.model.image_size**2 * 3,  # with the middle frame
    )


def _packs(profile: Profile, starts: Iterable[Training], settings: Settings) -> Work:
    """Every corpus decoded once and packed, by the processors beside the GPUs. Captions are made of the originals."""
    starts = list(starts)
    corpora = frozenset(start.arm.corpus for start in starts)
    clips = sum(epoch_clips(profile, corpus) for corpus in corpora)
    hours = clips * settings.assumed.packing_ms / 1000 / settings.assumed.cores_per_gpu / 3600
    return Work(
        frozenset().union(*(start.readers for start in starts)),
        "pack the corpora",
        runs=1,
        needs=corpora,
        hours=hours,
        elapsed=hours / settings.gpus,
        wall="decode",
        bytes=clips * settings.assumed.packed_mb * 1e6,
    )


def epoch_clips(profile: Profile, corpus: str = LARGEST) -> float:
    """Clips of a corpus, whatever part of it a run takes: the profile's own post-pretraining is one epoch of the
    largest, the others have their share of it."""
    recipe = PROFILES[profile.name].postpretrain
    return recipe.steps * recipe.batch * SHARES[corpus]


def caption_flops(batch: int = 64) -> float:
    """FLOPs of a caption by OFA-large under the released settings: 480 pixels, its beam at full length."""
    from clipvip_lib.models.beam import BeamSettings
    from clipvip_lib.models.ofa import OFA_SIZES

    beam = BeamSettings()
    steps = beam.max_len_b + 1
    pixels, prompt = scaling.CAPTION_PIXELS, scaling.PROMPT_TOKENS
    return flops.ofa_flops(OFA_SIZES["large"], pixels, prompt, beam.beam_size, steps, batch) / batch


def _captions(profile: Profile, starts: Iterable[Training], settings: Settings) -> Work:
    made = _readers(profile, experiments.captions, experiments.language_gap)
    readers = made.union(*(start.readers for start in starts if start.arm.captions))
    clips, an_image, batch = epoch_clips(profile), caption_flops(), 64
    step = scaling.caption_step(an_image, settings.gpus, settings.assumed, batch)
    each = clips / batch / 3600  # GPU hours per second of a step, because a step is a batch on every GPU
    return Work(
        readers,
        f"caption {LARGEST} with OFA-large",
        runs=1,
        needs=frozenset({LARGEST, "ofa"}),
        clip_flops=an_image,
        hours=each * step.seconds,
        computing=each * step.computing,
        elapsed=each * step.seconds / settings.gpus,
        wall=step.wall,
        bytes=clips * CAPTION_LINE_BYTES,
    )


def _language_gap(profile: Profile, seeds: Sequence[int], settings: Settings) -> Work:
    stage, a_text = experiments.language_gap(profile, seeds[0]), flops.text_flops(sizes_of(profile))
    texts = sum(name.startswith("text-") for name in stage.inputs) * POOL * profile.nmi_texts
    per_second = settings.assumed.gpu_tflops * settings.assumed.gpu_share * 1e12
    hours = texts * a_text * len(seeds) / per_second / 3600
    return Work(
        _readers(profile, experiments.language_gap),
        f"language gap of {texts:,} texts",
        runs=len(seeds),
        needs=frozenset({"weights", "captions", PAIRS, *CORPORA, *BENCHMARKS}),
        clip_flops=a_text,
        hours=hours,
        computing=hours,
        elapsed=hours,
        wall="towers",
    )
