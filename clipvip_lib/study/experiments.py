"""The study as a graph of stages: what is trained on what, and which notebook reads which result.

    image-text ──> clip ─────────────────┬─────────────> clip4clip (fine-tuned as it is)
    corpora ──> frames ──> captions ──> post-pretrained ──> fine-tuned on msrvtt, didemo ──> claims
                     caption pairs ──> captioner ──┘

One arm serves every question that needs it: mean pooling post-pretrained on hdvila-100m is an arm of 01 and of 04,
four proxies with V-S an arm of 04 and of 05, and CLIP-ViP itself (06) is 05's last row. Arms of one question differ
in one thing only; steps, clips seen, schedule and choice of checkpoint are the same for all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clipvip_lib.data import corpora
from clipvip_lib.data.benchmarks import BENCHMARKS
from clipvip_lib.data.world import CLIPS_PER_VIDEO
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.omnisource import RELEASED, needs
from clipvip_lib.profiles import Profile, WorldSize
from clipvip_lib.statistics.claims import CORPORA, LOSS_ARMS, METHOD_ARMS, TEXT_ARMS, checkpoint
from clipvip_lib.statistics.language_gap import POOL
from clipvip_lib.training.recipes import even_steps
from clipvip_lib.workshop.stages import Stage

NOTEBOOKS = (
    "00_start_here",
    "01_data_size",
    "02_language_gap",
    "03_ofa_captions",
    "04_video_proxy",
    "05_ocl_losses",
    "06_clip_vip",
    "07_cost",
    "08_verdict",
)
SUMMARIES = ("07_cost", "08_verdict")  # the bill and the verdict are about everything
LARGEST = "hdvila-100m"
SHARES = {name: size / corpora.RELATIVE_SIZES[LARGEST] for name, size in corpora.RELATIVE_SIZES.items()}
BASELINE_LOSS = "V-S"
STEPS = "clipvip_lib.study.steps:"
TRAINING = ("clipvip_lib.training.loop", "clipvip_lib.models.checkpoints", "clipvip_lib.captions.captioner")


@dataclass(frozen=True)
class Arm:
    """One way to make a video model: an attention, and what it was post-pretrained on (None: not at all)."""

    attention: str = "mean_pool"
    proxies: int = 4
    loss: str = BASELINE_LOSS
    corpus: str | None = LARGEST

    @property
    def captions(self) -> bool:
        """Whether the loss joins OFA captions."""
        return "C" in needs(self.loss)

    @property
    def slug(self) -> str:
        """The arm's name in stage names: "proxy-4/V-S/hdvila-100m"."""
        name = f"proxy-{self.proxies}" if self.attention == "proxy" else self.attention
        return f"{name}/{self.loss.replace(' ', '')}/{self.corpus}" if self.corpus else f"{name}/as-it-is"


BASELINE = Arm(corpus=None)  # CLIP4Clip's mean pooling
METHOD = Arm("proxy", 4, RELEASED)  # CLIP-ViP


def attention_arms(profile: Profile) -> dict[str, Arm]:
    """The ablation of 04 by the names that claims use; only the attention differs."""
    proxies = {f"proxy-{count}": Arm("proxy", count) for count in profile.proxy_counts}
    return {"mean_pool": Arm(), "sequential": Arm("sequential"), "full": Arm("full")} | proxies


def loss_arms() -> dict[str, Arm]:
    """The ablation of 05; only the loss differs."""
    return {loss: Arm("proxy", 4, loss) for loss in LOSS_ARMS}


def text_arms() -> dict[str, Arm]:
    """The third ablation, also in 05: on which texts four proxies are post-pretrained. "captions" is the released
    loss without its subtitles."""
    arms = (
        Arm("proxy", 4, corpus=None),
        Arm("proxy", 4, BASELINE_LOSS),
        Arm("proxy", 4, "V-C + F-C"),
        METHOD,
    )
    return dict(zip(TEXT_ARMS, arms, strict=True))


def stages_of_profile(build: Callable) -> Callable:
    """A function that makes stages, called once per combination of arguments. It describes the embedded world; for a
    `RealProfile` the function of the same name in real/stages.py takes its place; without one it raises NotAtHand."""

    @functools.cache
    @functools.wraps(build)
    def made(profile: Profile, *which, **named):
        if is_real(profile):
            if (real := getattr(profile.graph(), build.__name__, None)) is None:
                raise NotAtHand(
                    f"{build.__name__}: expected the embedded world, which alone has such a stage"
                )
            return real(profile, *which, **named)
        return build(profile, *which, **named)

    return made


class NotAtHand(ClipVipError):
    """A stage was asked for whose data or weights are not there."""


def is_real(profile: Profile) -> bool:
    """Whether the profile is of real corpora at hand, not of the embedded world."""
    return hasattr(profile, "at_hand")


# ---------------------------------------------------------------------------------------- the world, as files


def _training(profile: Profile, steps: int, float32: float, bfloat16: float) -> float:
    """Seconds of a core that steps of a training take, from those of one step in each precision, measured on an AMD
    EPYC of family 25; all costs here are of that processor."""
    return steps * (bfloat16 if profile.precision == "bfloat16" else float32)


def _split(total: int, parts: int) -> list[tuple[int, int]]:
    """(first, count) of each of ``parts`` even parts of ``total``."""
    edges = [round(total * part / parts) for part in range(parts + 1)]
    return [(first, last - first) for first, last in itertools.pairwise(edges)]


WORLD = ("clipvip_lib.data.corpora",)
DECODING = ("clipvip_lib.data.frames", "clipvip_lib.data.shards")


@functools.cache
def images(profile: Profile, name: str) -> list[Stage]:
    """Shards of still images, "image-text" or "caption-pairs"."""
    world = profile.world
    total = world.image_text if name == "image-text" else world.caption_pairs
    parts = _split(total, max(1, round(total / 12_000)))
    return [
        Stage(
            f"world/{name}/{part}",
            STEPS + "write_images",
            {"name": name, "seed": world.seed, "first": first, "count": count},
            imports=WORLD,
            cost=count * 0.001,
        )
        for part, (first, count) in enumerate(parts)
    ]


@functools.cache
def corpus(profile: Profile, name: str) -> list[Stage]:
    """Shards of a post-pretraining corpus. hdvila-10m is cut out of hdvila-100m."""
    world = profile.world
    if name == "hdvila-10m":
        shards = corpus(profile, LARGEST)
        config = {"share": SHARES[name], "seed": world.seed}
        inputs = {f"shard-{part:02d}": stage for part, stage in enumerate(shards)}
        return [Stage(f"world/{name}/0", STEPS + "write_subset", config, inputs, WORLD, cost=1.0)]
    videos = round(world.corpus_clips * SHARES[name]) // CLIPS_PER_VIDEO
    return [
        Stage(
            f"world/{name}/{part}",
            STEPS + "write_corpus",
            _said(world, name) | {"first": first, "videos": count},
            imports=WORLD,
            cost=count * CLIPS_PER_VIDEO * 0.006,
        )
        for part, (first, count) in enumerate(_split(videos, world.shards if name == LARGEST else 1))
    ]


def _said(world: WorldSize, name: str) -> dict:
    """Which corpus of which world, and what is said in it."""
    said = {"as_written": world.spoken_as_written, "rewritten": world.rewritten}
    return {"corpus": name, "seed": world.seed} | said


@stages_of_profile
def benchmark(profile: Profile, name: str) -> Stage:
    """A downstream set: videos and annotations."""
    world = profile.world
    clips = {"train": world.train, "val": world.val, "test": world.test}
    config = {"name": name, "seed": world.seed, "clips": clips, "tells_order": world.tells_order}
    return Stage(
        f"world/{name}", STEPS + "write_benchmark", config, imports=WORLD, cost=sum(clips.values()) * 0.008
    )


def _decoding(profile: Profile, frames: int) -> dict:
    return {"frames": frames, "size": profile.model.image_size, "antialias": profile.model.antialias}


@functools.cache
def shard_frames(profile: Profile, name: str) -> list[Stage]:
    """Decoded frames and texts of every shard of a corpus or of the image-text pairs."""
    still = name == "image-text"
    shards = images(profile, name) if still else corpus(profile, name)
    config = _decoding(profile, 1 if still else profile.model.cached_frames)
    clips = profile.world.image_text if still else profile.world.corpus_clips * SHARES[name]
    cost = clips / len(shards) * (0.001 if still else 0.005)
    return [
        Stage(f"frames/{name}/{part}", STEPS + "decode_shard", config, {"shard": shard}, DECODING, cost)
        for part, shard in enumerate(shards)
    ]


@stages_of_profile
def benchmark_frames(profile: Profile, name: str) -> Stage:
    """Decoded frames and texts of a downstream set."""
    config = {"name": name, **_decoding(profile, profile.model.cached_frames)}
    imports = ("clipvip_lib.data.frames", "clipvip_lib.data.benchmarks")
    inputs = {"benchmark": benchmark(profile, name)}
    clips = profile.world.train + profile.world.val + profile.world.test
    return Stage(f"frames/{name}", STEPS + "decode_benchmark", config, inputs, imports, cost=clips * 0.006)


# -------------------------------------------------------------------------------------------------- captions


@stages_of_profile
def captioner(profile: Profile) -> Stage:
    """OFA trained on the world's caption pairs: one for the whole study, as the authors used one existing OFA."""
    config = {
        "size": dataclasses.asdict(profile.captioner),
        "seed": profile.world.seed,
        "device": profile.device,
        "precision": profile.precision,
    }
    inputs = {"pairs": images(profile, "caption-pairs")[0]}
    cost = _training(profile, profile.captioner.stem_steps + profile.captioner.steps, 0.15, 0.12)
    imports = ("clipvip_lib.captions.captioner_training",)
    return Stage("captioner", STEPS + "train_captioner", config, inputs, imports, cost)


@stages_of_profile
def captions(profile: Profile) -> list[Stage]:
    """OFA's captions of the middle frames of hdvila-100m, shard by shard."""
    shards = corpus(profile, LARGEST)
    cost = profile.world.corpus_clips / len(shards) / 150
    return [
        Stage(
            f"captions/{LARGEST}/{part}",
            STEPS + "caption_shard",
            inputs={"captioner": captioner(profile), "shard": shard},
            imports=("clipvip_lib.captions.captioner",),
            cost=cost,
        )
        for part, shard in enumerate(shards)
    ]


@stages_of_profile
def caption_check(profile: Profile) -> Stage:
    """Does the captioner name what is there, on scenes that it has never seen?"""
    inputs = {"captioner": captioner(profile), "benchmark": benchmark(profile, "msrvtt")}
    config = {"clips": min(500, profile.world.test), "stills": min(500, profile.world.test), "examples": 6}
    return Stage(
        "caption-check",
        STEPS + "check_captioner",
        config,
        inputs,
        ("clipvip_lib.captions.captioner",),
        cost=7.0,
    )


# -------------------------------------------------------------------------------------------------- training


@stages_of_profile
def clip(profile: Profile, seed: int) -> Stage:
    """The mini CLIP: image-text pre-training."""
    config = {
        "model": dataclasses.asdict(profile.model),
        "recipe": dataclasses.asdict(profile.pretrain),
        "seed": seed,
        "device": profile.device,
    }
    inputs = {f"pairs-{part}": stage for part, stage in enumerate(shard_frames(profile, "image-text"))}
    cost = _training(profile, profile.pretrain.steps, 0.15, 0.1)
    return Stage(f"clip/seed{seed}", STEPS + "pretrain_clip", config, inputs, TRAINING, cost)


def snapshots(profile: Profile) -> list[int]:
    """Numbers of steps at which post-pretraining keeps its weights: evenly spaced, the last at the end."""
    return even_steps(profile.postpretrain.steps, profile.curve_points)


def start_of(profile: Profile, arm: Arm, snapshot: int | None) -> tuple[int | None, str]:
    """Which snapshot a fine-tuning begins from (None: the arm is not post-pretrained; by default the last), and what
    stage names say of it."""
    last = snapshots(profile)[-1]
    step = None if arm.corpus is None else snapshot or last
    return step, f"{arm.slug}-step{step}" if step not in (None, last) else arm.slug


@stages_of_profile
def postpretrained(profile: Profile, arm: Arm, seed: int) -> Stage:
    """An arm after post-pretraining."""
    config = {
        "model": dataclasses.asdict(profile.model),
        "recipe": dataclasses.asdict(profile.postpretrain),
        "attention": arm.attention,
        "proxies": arm.proxies,
        "loss": arm.loss,
        "group": profile.group,
        "snapshots": snapshots(profile),
        "seed": seed,
        "device": profile.device,
    }
    inputs = {"clip": clip(profile, seed)}
    inputs |= {f"frames-{part:02d}": stage for part, stage in enumerate(shard_frames(profile, arm.corpus))}
    if arm.captions:
        inputs |= {f"captions-{part:02d}": stage for part, stage in enumerate(captions(profile))}
    step = (0.13, 0.1) if arm.captions else (0.09, 0.07)
    cost = _training(profile, profile.postpretrain.steps, *step)
    return Stage(
        f"postpretrain/{arm.slug}/seed{seed}", STEPS + "postpretrain", config, inputs, TRAINING, cost
    )


@stages_of_profile
def finetuned(profile: Profile, arm: Arm, name: str, seed: int, snapshot: int | None = None) -> Stage:
    """An arm fine-tuned on a benchmark and scored on its test split.

    snapshot: not from the end of post-pretraining but from that step.
    """
    step, where = start_of(profile, arm, snapshot)
    config = {
        "model": dataclasses.asdict(profile.model),
        "recipe": dataclasses.asdict(profile.finetune),
        "attention": arm.attention,
        "proxies": arm.proxies,
        "group": profile.group,
        "snapshot": step,
        "keep_weights": True,
        "seed": seed,
        "device": profile.device,
    }
    cost = _training(profile, profile.finetune.steps, 0.1, 0.07) + 4.0
    return Stage(
        f"finetune/{name}/{where}/seed{seed}",
        STEPS + "finetune",
        config,
        _start(profile, arm, name, seed),
        TRAINING,
        cost,
    )


@stages_of_profile
def zero_shot(profile: Profile, arm: Arm, name: str, seed: int) -> Stage:
    """An arm scored on a benchmark's test split without fine-tuning."""
    config = dict(finetuned(profile, arm, name, seed).config)
    config |= {"recipe": config["recipe"] | {"steps": 0}, "keep_weights": False}
    stage = f"zero-shot/{name}/{arm.slug}/seed{seed}"
    return Stage(stage, STEPS + "finetune", config, _start(profile, arm, name, seed), TRAINING, 4.0)


def _start(profile: Profile, arm: Arm, name: str, seed: int) -> dict[str, Stage]:
    inputs = {"clip": clip(profile, seed), "frames": benchmark_frames(profile, name)}
    return inputs if arm.corpus is None else inputs | {"start": postpretrained(profile, arm, seed)}


@stages_of_profile
def order_probes(profile: Profile, seed: int) -> Stage:
    """Two probes that are not arms: order can be learned from all frames, and not from one."""
    config = {
        "model": dataclasses.asdict(profile.model),
        "benchmarks": list(BENCHMARKS),
        "epochs": profile.probe_epochs,
        "seed": seed,
        "precision": profile.precision,
    }
    inputs = {"clip": clip(profile, seed)}
    for name in BENCHMARKS:
        inputs |= {
            f"frames-{name}": benchmark_frames(profile, name),
            f"truth-{name}": benchmark(profile, name),
        }
    imports = ("clipvip_lib.statistics.probes", "clipvip_lib.models.checkpoints")
    return Stage(f"order-probes/seed{seed}", STEPS + "probe_order", config, inputs, imports, cost=30.0)


# -------------------------------------------------------------------------------------------- gap and cost


@stages_of_profile
def language_gap(profile: Profile, seed: int) -> Stage:
    """NMI of every source of texts with both benchmarks in the space of a seed's text encoder.

    Which texts are drawn does not depend on the seed, so that seeds differ in their encoders only.
    """
    inputs = {
        "clip": clip(profile, seed),
        "text-subtitles": shard_frames(profile, LARGEST)[0],
        "text-subtitles of hdvila-10m": shard_frames(profile, "hdvila-10m")[0],
        "text-ofa captions": captions(profile)[0],
        "text-alt-text": alt_texts(profile),
        "text-caption pairs": caption_pair_texts(profile),
    }
    inputs |= {f"text-{name}": benchmark_frames(profile, name) for name in BENCHMARKS}
    imports = ("clipvip_lib.statistics.language_gap", "clipvip_lib.training.evaluation")
    return Stage(f"language-gap/seed{seed}", STEPS + "language_gap", gaps(profile), inputs, imports, cost=9.0)


def gaps(profile: Profile) -> dict:
    """How gaps are measured."""
    return {
        "texts": profile.nmi_texts,
        "draws": profile.nmi_draws,
        "restarts": 10,
        "seed": profile.world.seed,
        "precision": profile.precision,
    }


@functools.cache
def alt_texts(profile: Profile) -> Stage:
    """As many texts of webvid as the gap's draws need: the miniature of the corpus has fewer clips."""
    videos = -(-POOL * profile.nmi_texts // CLIPS_PER_VIDEO)
    config = _said(profile.world, "webvid-2.5m") | {"videos": videos}
    return Stage("world/alt-text", STEPS + "write_texts", config, imports=WORLD, cost=0.5)


@functools.cache
def caption_pair_texts(profile: Profile) -> Stage:
    """The caption pairs' texts (with frames, as any shard is decoded)."""
    inputs = {"shard": images(profile, "caption-pairs")[0]}
    cost = profile.world.caption_pairs * 0.001
    return Stage(
        "frames/caption-pairs", STEPS + "decode_shard", _decoding(profile, 1), inputs, DECODING, cost
    )


@stages_of_profile
def held_out_loss(profile: Profile, seed: int) -> Stage:
    """Loss of the arms of 01 on clips like those of a corpus that no training saw: the premise of claim 1."""
    arms = {name: postpretrained(profile, Arm(corpus=name), seed) for name in CORPORA}
    config = {
        "model": dataclasses.asdict(profile.model),
        "snapshots": snapshots(profile),
        "batch": profile.postpretrain.batch,
        "like": {name: _kind(name) for name in CORPORA},
        "seed": seed,
        "precision": profile.precision,
    }
    inputs = {"clip": clip(profile, seed)} | {f"arm-{name}": stage for name, stage in arms.items()}
    for kind in dict.fromkeys(map(_kind, CORPORA)):
        world, videos = profile.world, round(profile.world.corpus_clips * SHARES[kind]) // CLIPS_PER_VIDEO
        shard = Stage(
            f"world/held-out/{kind}",
            STEPS + "write_corpus",
            _said(world, kind) | {"first": videos, "videos": world.val // CLIPS_PER_VIDEO},
            imports=WORLD,
            cost=world.val * 0.006,
        )
        inputs[f"frames-{kind}"] = Stage(
            f"frames/held-out/{kind}",
            STEPS + "decode_shard",
            _decoding(profile, profile.model.cached_frames),
            {"shard": shard},
            DECODING,
            cost=world.val * 0.006,
        )
    imports = ("clipvip_lib.losses", "clipvip_lib.training.evaluation", "clipvip_lib.models.checkpoints")
    return Stage(f"held-out-loss/seed{seed}", STEPS + "held_out_loss", config, inputs, imports, cost=5.0)


def _kind(corpus: str) -> str:
    """The corpus whose clips are like those of ``corpus``: hdvila-10m is a part of hdvila-100m."""
    return LARGEST if corpus == "hdvila-10m" else corpus


@stages_of_profile
def cost(profile: Profile) -> Stage:
    """Seconds per step by attention and number of frames. Timed on the machine that ran it: read the ratios."""
    arms = [["mean_pool", 1], ["full", 4], ["proxy", 4]]
    config = {
        "model": dataclasses.asdict(profile.model),
        "arms": arms,
        "frames": list(profile.cost_frames),
        "batch": 16,
        "repeats": 5,
        "precision": profile.precision,
    }
    imports = ("clipvip_lib.models.clip_vip",)
    return Stage("cost", STEPS + "measure_cost", config, imports=imports, cost=10.0)


# ------------------------------------------------------------------------------------------------- notebooks


def scored_arms(profile: Profile) -> dict[tuple[str, str], tuple[Arm, int | None]]:
    """Every arm that a statement names, by (its name there, benchmark): the arm and the snapshot."""
    first, last = snapshots(profile)[0], snapshots(profile)[-1]
    found: dict[tuple[str, str], tuple[Arm, int | None]] = {}
    for name in CORPORA:
        for which, step in (("first", first), ("last", last)):
            found[checkpoint(name, which), "msrvtt"] = (Arm(corpus=name), step)
    arms = attention_arms(profile) | loss_arms() | text_arms()
    arms |= dict(zip(METHOD_ARMS, (BASELINE, METHOD), strict=True))
    for name, arm in arms.items():
        for benchmark_name in BENCHMARKS:
            found[name, benchmark_name] = (arm, None)
    return found


def stages_for(notebook: str, profile: Profile, seeds: Sequence[int]) -> list[Stage]:
    """The stages whose results a notebook reads; of real corpora those whose data are at hand.

    Raises ClipVipError for an unknown notebook, and for ``paper`` without data, which can only be planned.
    """
    if notebook not in NOTEBOOKS:
        raise unknown("notebook", notebook, NOTEBOOKS)
    if profile.name == "paper" and not is_real(profile):
        raise ClipVipError(
            "profile 'paper' needs data at hand: expected a RealProfile; take RealProfile.of(settings)"
        )
    if notebook in SUMMARIES:
        others = [name for name in NOTEBOOKS if name not in SUMMARIES]
        every = [stage for other in others for stage in stages_for(other, profile, seeds)]
        bill = at_hand(functools.partial(cost, profile))
        return [*bill, *{stage.name: stage for stage in every}.values()]
    wanted = _wanted(reads(profile)[notebook], profile, seeds)
    return [stage for build in wanted for stage in at_hand(build)]


def at_hand(build: Callable[[], Stage | list[Stage]]) -> list[Stage]:
    """The stages that a call makes; none if what they need is not at hand."""
    try:
        made = build()
    except NotAtHand:
        return []
    return made if isinstance(made, list) else [made]


Asked = tuple[Arm, str, int | None]  # an arm, the benchmark that it is fine-tuned on, and from which snapshot


@dataclass(frozen=True)
class Reads:
    """What a notebook reads. tuned: fine-tuned arms; zero_shot: whether it reads the baseline and the method among them
    before fine-tuning, too; full: whether, at the published size, it asks for the method with the authors' full number
    of epochs; videos: whether it shows the benchmarks' videos; by_seed, once: makers of other stages."""

    tuned: Sequence[Asked] = ()
    zero_shot: bool = False
    full: bool = False
    videos: bool = True
    by_seed: tuple[Callable[[Profile, int], Stage], ...] = ()
    once: tuple[Callable[[Profile], Stage | list[Stage]], ...] = ()


def reads(profile: Profile) -> dict[str, Reads]:
    """What each notebook reads, but for the summaries, which read everything: the one table from notebooks to arms."""

    def on_both(arms: Iterable[Arm]) -> list[Asked]:
        return [(arm, name, None) for arm in arms for name in BENCHMARKS]

    alone = (BASELINE, "msrvtt", None)
    # At the published size the notebook that introduces the study does not ask for a post-pretraining.
    small = profile.name != "paper"
    shown = [alone, (Arm(), "msrvtt", None), (METHOD, "msrvtt", None)] if small else [alone]
    curves = [
        (Arm(corpus=name), "msrvtt", step) for name, step in itertools.product(CORPORA, snapshots(profile))
    ]
    return {
        "00_start_here": Reads(shown, zero_shot=small, by_seed=(order_probes,)),
        "01_data_size": Reads([alone, *curves], videos=False, by_seed=(held_out_loss,)),
        "02_language_gap": Reads(by_seed=(language_gap,)),
        "03_ofa_captions": Reads(by_seed=(language_gap,), once=(captions, caption_check, captioner)),
        "04_video_proxy": Reads(on_both(attention_arms(profile).values())),
        "05_ocl_losses": Reads(on_both(dict.fromkeys([*loss_arms().values(), *text_arms().values()]))),
        "06_clip_vip": Reads(on_both((BASELINE, METHOD)), zero_shot=True, full=True),
    }


def _wanted(found: Reads, profile: Profile, seeds: Sequence[int]) -> Iterable[Callable]:
    """The stages that a notebook reads, as calls that make them."""
    ask = functools.partial
    for seed in seeds:
        for arm, name, step in found.tuned:
            yield ask(finetuned, profile, arm, name, seed, step)
            if found.zero_shot and arm in (BASELINE, METHOD):
                yield ask(zero_shot, profile, arm, name, seed)
        yield from (ask(make, profile, seed) for make in found.by_seed)
    yield from (ask(make, profile) for make in found.once)
    if found.videos:
        yield from (
            ask(benchmark, profile, name) for name in dict.fromkeys(name for _, name, _ in found.tuned)
        )
