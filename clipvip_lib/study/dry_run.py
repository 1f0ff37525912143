"""``clipvip reproduce --plan``: what a run would do, on how much data and for how long. Nothing is run or written.

At ``paper`` the plan comes from arithmetic and stated assumptions (paper_plan.py). At the other profiles it comes from
the stages of the run: which are done, what they took, and what the others are expected to take.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from clipvip_lib import files, flops, scaling
from clipvip_lib.profiles import Profile
from clipvip_lib.progress import duration
from clipvip_lib.say import say
from clipvip_lib.statistics.claims import BENCHMARKS
from clipvip_lib.study import experiments, paper_plan
from clipvip_lib.study.outline import Outline, check_seeds, study_outline
from clipvip_lib.study.pipeline import check_notebooks, split_settings
from clipvip_lib.study.real import data_at_hand
from clipvip_lib.study.real.profile import planned, uncounted
from clipvip_lib.study.words import number
from clipvip_lib.workshop.board import Board
from clipvip_lib.workshop.machine import default_workers
from clipvip_lib.workshop.stages import Stage, closure
from clipvip_lib.workshop.tables import in_short
from clipvip_lib.workshop.workers import check_workers

WIDTH = 120
PAPER = "paper"
SUMMARIES = tuple(number(name) for name in experiments.SUMMARIES)


def dry_run(
    profile: str = "mini",
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    set: Mapping[str, object] | None = None,
    workers: int | None = None,
    outline: Outline | None = None,
    notebooks: Path | None = None,
    home: Path | None = None,
    stream: TextIO | None = None,
    as_json: bool = False,
) -> int:
    """Print the plan of a run with these arguments (``pipeline.reproduce`` takes the same); returns 0.

    as_json: as one JSON line with the same numbers, unrounded (``stage_facts``, ``paper_facts``).

    At ``paper`` ``set`` says where data and weights are, changes recipes and assumptions (``real.profile.planned``).
    Raises ClipVipError for what ``reproduce`` would refuse before anything runs.
    """
    stream, outline = stream or sys.stdout, outline or study_outline()
    seeds = check_seeds(list(seeds))
    asked = {outline.find(name) for name in only}
    names = [name for name in outline.notebooks if name in asked or not asked]
    check_workers(workers)
    if profile == PAPER:
        sized, settings = planned(set or {})
        if as_json:
            facts = paper_facts(sized, names, seeds, settings) | {"not_counted": uncounted(set or {})}
            return _say_json(facts, profile, names, seeds, stream)
        lines = paper_lines(sized, names, seeds, settings)
        if ignored := uncounted(set or {}):
            text = (
                f"Not counted: {', '.join(ignored)}. This plan counts changed steps and batches; for other epochs "
                "give --set postpretrain.steps=N or finetune.steps=N."
            )
            lines[1:1] = textwrap.wrap(text, WIDTH, break_on_hyphens=False)
    else:
        home, folder = home or files.home(), notebooks or files.shipped("notebooks")
        given, further = split_settings(profile, dict(set or {}))
        outline.draft(profile, **given)
        parameters = check_notebooks(folder, names, {"profile": profile, "seeds": seeds, **given}, further)
        sized = outline.profile(profile, **given)
        pages = [
            outline.page(name, folder, parameters[name], sized, outline.stages_for(name, sized, seeds))
            for name in names
        ]
        stages, workers = closure(pages), workers or default_workers()
        if as_json:
            return _say_json(stage_facts(stages, home, workers), profile, names, seeds, stream)
        lines = [*_head(profile, names, seeds), "", *stage_lines(stages, home, workers)]
    for line in lines:
        say(line, stream)
    return 0


def _say_json(
    facts: dict[str, object], profile: str, names: Sequence[str], seeds: Sequence[int], stream: TextIO
) -> int:
    asked = {"profile": profile, "notebooks": [*names], "seeds": [*seeds]}
    say(json.dumps(asked | facts, ensure_ascii=False, allow_nan=False), stream)
    return 0


# -------------------------------------------------------------------------------------- the stages of a cache


def stage_facts(stages: Sequence[Stage], home: Path, workers: int) -> dict[str, object]:
    """{workers, seconds_left, stages: [{stage, state, expected, took}]} of a run from this cache.

    state: "done", "begun" or "to do". expected: seconds of a core, declared; took: seconds here, None until it is done.
    seconds_left: of the whole run, at the pace of the stages that are done.
    """
    board, waiting = Board(len(stages), workers, stream=io.StringIO(), mode="plain"), []
    rows = []
    for stage in stages:
        took = None
        if stage.done(home):
            state, took = "done", stage.facts(home)["seconds"]
            board.ran(stage, took)
        else:
            waiting.append(stage)
            state = "begun" if stage.partial_folder(home).exists() else "to do"
        rows.append({"stage": stage.name, "state": state, "expected": stage.cost, "took": took})
    return {"workers": workers, "seconds_left": board.remaining([], waiting, 0.0), "stages": rows}


def stage_lines(stages: Sequence[Stage], home: Path, workers: int) -> list[str]:
    """One row per stage, with its state and its seconds, and the sum."""
    facts = stage_facts(stages, home, workers)
    table = [("stage", "state", "expected s", "took s")]
    for row in facts["stages"]:
        took = "-" if row["took"] is None else f"{row['took']:,.1f}"
        table.append((row["stage"], row["state"], f"{row['expected']:,.0f}", took))
    done = [row for row in facts["stages"] if row["took"] is not None]
    waiting = [row for row in facts["stages"] if row["took"] is None]
    spent = sum(row["took"] for row in done)
    lines = [
        *columns(table, right=(2, 3)),
        "",
        f"{len(done)} of {len(stages)} stages are done, they took {duration(spent)} of a core.",
    ]
    if waiting:
        total, left = sum(row["expected"] for row in waiting), facts["seconds_left"]
        pace = ""
        if spent:
            declared = sum(row["expected"] for row in done)
            pace = f", at the pace of those done: {spent / declared:.2f} times the expected seconds"
        lines.append(
            f"{len(waiting)} are to do: {duration(total)} of a core expected; about {duration(left)}"
        )
        lines.append(f"with {workers} workers{pace}.")
    return lines


# ------------------------------------------------------------------------------------------------- paper size


def _read_by(names: Sequence[str]) -> list[str]:
    """The numbers of the notebooks whose work is counted; empty for all, which those that sum up need."""
    numbers = [number(name) for name in names]
    return [] if {*numbers} & {*SUMMARIES} else numbers


def paper_facts(
    profile: Profile, names: Sequence[str], seeds: Sequence[int], settings: paper_plan.Settings
) -> dict[str, object]:
    """The plan at paper size: {gpus, data_root, model, stages, sums, data, lacks, assumptions}.

    model: {video_flops, parameters, clips_per_epoch, full_epochs}, the last of the rows "full ..". stages:
    ``paper_plan.Work`` by its names; sums: ``sum_rows``; data: {what, where, state, bytes} of what the stages need,
    bytes None if not known; lacks: {notebook: what it needs and is not there}; assumptions: {assumption, value, unit,
    reason}.
    """
    rows = paper_plan.works(profile, seeds, settings, _read_by(names))
    needed = frozenset().union(*(row.needs for row in rows))
    at_hand, sizes = data_at_hand.look(profile, settings), paper_plan.sizes_of(profile)
    return {
        "gpus": settings.gpus,
        "data_root": None if settings.data_root is None else str(settings.data_root),
        "model": {
            "video_flops": flops.video_flops(sizes),
            "parameters": flops.clip_parameters(sizes),
            "clips_per_epoch": paper_plan.epoch_clips(profile),
            "full_epochs": paper_plan.FULL_EPOCHS,
        },
        "stages": [
            dataclasses.asdict(row) | {"notebooks": sorted(row.notebooks), "needs": sorted(row.needs)}
            for row in rows
        ],
        "sums": sum_rows(profile, names, seeds, settings),
        "data": [
            {"what": need.name, "where": need.where, "state": need.state, "bytes": need.bytes or None}
            for name, need in at_hand.items()
            if name in needed
        ],
        "lacks": {
            name: data_at_hand.missing_of(number(name), rows, at_hand)
            for name in names
            if number(name) not in SUMMARIES
        },
        "assumptions": settings.rows(),
    }


def paper_lines(
    profile: Profile, names: Sequence[str], seeds: Sequence[int], settings: paper_plan.Settings
) -> list[str]:
    """The plan at paper size as lines."""
    rows = paper_plan.works(profile, seeds, settings, _read_by(names))
    at_hand = data_at_hand.look(profile, settings)
    most = _most_gpus_lines(profile, rows, max(settings.gpus, *scaling.GPUS))
    lines = [
        *_head(profile.name, names, seeds),
        *_model_lines(profile),
        "",
        f"Data and weights (data_root: {_root_text(settings)})",
        *_data_lines(rows, at_hand),
        *_published_lines(profile),
        "",
        f"Stages, with {settings.gpus} GPUs per run (GFLOP: of a clip in a training step, of an image or text forward;",
        "compute: GPU hours if that were all; wall: the resource that sets the pace; GB: what is kept on disk)",
        *_work_lines(rows),
        *(most if settings.gpus >= max(scaling.GPUS) else []),
        *_full_lines(profile, rows),
        "",
        "Sum (days: every run on all these GPUs, one run after the other; evaluations are seconds and left out)",
        *_sum_lines(sum_rows(profile, names, seeds, settings)),
        *([] if settings.gpus >= max(scaling.GPUS) else most),
        "",
        "Notebooks",
        *_notebook_lines(names, rows, at_hand),
        "",
        "Assumptions: not measured here; change one with --set NAME=VALUE (also gpus=N, for the stages' table),",
        "or take the rate of a training that ran here: --set measured=RUN, the --out of a `clipvip train`",
        *columns(
            [
                ("name", "value", "unit", "reason"),
                *((r["assumption"], f"{r['value']:g}", r["unit"], r["reason"]) for r in settings.rows()),
            ],
            right=(1,),
        ),
    ]
    return lines


def _model_lines(profile: Profile) -> list[str]:
    sizes, post, fine = paper_plan.sizes_of(profile), profile.postpretrain, profile.finetune
    million = flops.clip_parameters(sizes) / 1e6
    model = (
        f"Model: width {sizes.width}, {sizes.layers} layers, {sizes.frames} frames of {sizes.image_size} pixels in "
        f"patches of {sizes.patch_size}, {sizes.proxies} proxies: {flops.video_flops(sizes) / 1e9:.1f} GFLOP per "
        f"video, {million:.1f} million weights."
    )
    clips = paper_plan.epoch_clips(profile)
    amount = _epochs_text(post.steps * post.batch / clips)
    tuned = {name: paper_plan.finetuning_steps(profile, name) for name in BENCHMARKS}
    steps = ", ".join(f"{count:,} ({name})" for name, count in tuned.items())
    training = (
        f"Post-pretraining: {post.steps:,} steps of {post.batch:,} clips, {amount} of {paper_plan.LARGEST} "
        f"({clips / 1e6:.1f} million clips); fine-tuning: {steps} steps of {fine.batch}."
    )
    return [*textwrap.wrap(model, WIDTH), *textwrap.wrap(training, WIDTH)]


def _epochs_text(epochs: float) -> str:
    """For people, without an exponent: very few steps of the largest corpus, or very many, would have one."""
    if epochs == 1:
        return "one epoch"
    if epochs < 0.001:
        return "less than 0.001 epochs"
    return f"{epochs:.3g} epochs" if epochs < 100 else f"{epochs:,.0f} epochs"


def _root_text(settings: paper_plan.Settings) -> str:
    root = settings.data_root
    return "not given" if root is None else f"{root}" if root.is_dir() else f"{root}, no such folder"


def _data_lines(rows: Sequence[paper_plan.Work], at_hand: Mapping[str, data_at_hand.Need]) -> list[str]:
    table = [("what", "notebooks", "where", "at hand", "whole GB")]
    for name, need in at_hand.items():
        users = sorted(frozenset().union(*(row.notebooks for row in rows if name in row.needs)))
        if users:
            size = f"{need.bytes / 1e9:,.0f}" if need.bytes else "-"
            table.append((need.name, " ".join(users), _short(need.where), need.state, size))
    return columns(table, right=(4,))


def _published_lines(profile: Profile) -> list[str]:
    """A warning that no row depends on the data at hand, which may be smaller or made already."""
    clips = paper_plan.epoch_clips(profile) / 1e6
    text = (
        f"All below is for the published sizes ({clips:.1f} million clips of {paper_plan.LARGEST}, all of them to be "
        "captioned, and the whole benchmarks), not for what is at hand; a shorter training is counted with --set "
        "postpretrain.steps=N."
    )
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _work_lines(rows: Sequence[paper_plan.Work]) -> list[str]:
    table = [("notebooks", "stage", "runs", "steps", "GFLOP", "GPU hours", "compute", "wall", "GB")]
    for row in rows:
        table.append(
            (
                in_short(map(int, row.notebooks), "{:02d}", "-", " "),
                row.what,
                str(row.runs),
                f"{row.steps:,}" if row.steps else "-",
                f"{row.clip_flops / 1e9:,.1f}",
                _amount(row.hours, 2),
                _amount(row.computing, 2),
                row.wall,
                _amount(row.bytes / 1e9, 1),
            )
        )
    hours, computing = sum(row.hours for row in rows), sum(row.computing for row in rows)
    runs, kept = sum(row.runs for row in rows), sum(row.bytes for row in rows)
    table.append(
        ("", "sum", str(runs), "", "", _amount(hours, 2), _amount(computing, 2), "", _amount(kept / 1e9, 1))
    )
    return columns(table, right=(2, 3, 4, 5, 6, 8))


def _full_lines(profile: Profile, rows: Sequence[paper_plan.Work]) -> list[str]:
    """What the plan counts for the full method, and how much of it a run does by itself."""
    full = paper_plan.full_profile(profile)
    if full is None or not any(row.what.startswith("full ") for row in rows):
        return []
    epochs, steps = paper_plan.FULL_EPOCHS, full.postpretrain.steps
    text = (
        f"Counted as the authors trained: ablations for one epoch, the full CLIP-ViP of 06 for {epochs}, each with its "
        "fine-tunings. A run by itself takes 05's one-epoch model for 06; the full one is trained with --only 06 "
        f"--set postpretrain.steps={steps}."
    )
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _most_gpus_lines(profile: Profile, rows: Sequence[paper_plan.Work], gpus: int) -> list[str]:
    """Which trainings cannot use so many GPUs and are counted on fewer. Stands under the table that it explains."""
    batches = {
        "post-pretraining": (profile.postpretrain.batch, ("post-pretrain", "full ")),
        "fine-tuning": (profile.finetune.batch, ("fine-tune",)),
    }
    said = [
        f"{what} {batch:,}"
        for what, (batch, begins) in batches.items()
        if batch < gpus and any(row.what.startswith(begins) for row in rows)
    ]
    if not said:
        return []
    text = f"A run uses one GPU for each clip of its batch at most: of {gpus:,} GPUs {' and '.join(said)}."
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def sum_rows(
    profile: Profile, names: Sequence[str], seeds: Sequence[int], settings: paper_plan.Settings
) -> list[dict[str, object]]:
    """The whole plan by whether the clips are packed first, and by GPUs: {packed, gpus, hours, days, usd, walls}.

    walls: GPU hours by the resource that sets the pace.
    """
    found, seen = [], {}
    for packed in (False, True):
        for gpus in scaling.GPUS:
            asked = dataclasses.replace(settings, gpus=gpus, packed=packed)
            rows = paper_plan.works(profile, seeds, asked, _read_by(names))
            if seen.setdefault(gpus, rows) == rows and packed:
                continue  # nothing reads a corpus
            hours, walls = sum(row.hours for row in rows), {}
            for row in rows:
                walls[row.wall] = walls.get(row.wall, 0.0) + row.hours
            days, price = sum(row.elapsed for row in rows) / 24, hours * settings.assumed.gpu_hour_price
            found.append(
                {
                    "packed": packed,
                    "gpus": gpus,
                    "hours": hours,
                    "days": days,
                    "usd": price,
                    "walls": {
                        wall: walls[wall] for wall in sorted(walls, key=walls.__getitem__, reverse=True)
                    },
                }
            )
    return found


def _sum_lines(sums: Sequence[Mapping[str, object]]) -> list[str]:
    table = [("clips", "GPUs", "GPU hours", "days", "USD", "hours by wall")]
    for row in sums:
        shares = {wall: 100 * hours / row["hours"] for wall, hours in row["walls"].items()}
        said = ", ".join(f"{wall} {share:.1f} %" for wall, share in shares.items() if share >= 0.05)
        clips = "packed once" if row["packed"] else "as they are"
        amounts = (f"{row['hours']:,.0f}", f"{row['days']:,.1f}", f"{row['usd']:,.0f}")
        table.append((clips, f"{row['gpus']}", *amounts, said))
    return columns(table, right=(1, 2, 3, 4))


def _notebook_lines(
    names: Sequence[str], rows: Sequence[paper_plan.Work], at_hand: Mapping[str, data_at_hand.Need]
) -> list[str]:
    table = []
    for name in names:
        if number(name) in SUMMARIES:
            table.append((name, "sums up what the others have"))
            continue
        lacks = data_at_hand.missing_of(number(name), rows, at_hand)
        table.append((name, f"lacks {', '.join(lacks)}" if lacks else "has what it needs"))
    return columns(table)


# ------------------------------------------------------------------------------------------------------ tables


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of cells as lines, columns two apart; those in ``right`` aligned to the right. Cut at WIDTH."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
    return lines


def _amount(value: float, places: int) -> str:
    """From a hundred on, decimals tell nothing, and many seeds leave no room for them."""
    return f"{value:,.{places if value < 100 else 0}f}"


def _short(path: str, most: int = 40) -> str:
    return path if len(path) <= most else "…" + path[1 - most :]


def _head(profile: str, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    numbers = " ".join(number(name) for name in names)
    text = (
        f"Plan at profile {profile}, notebooks {numbers}, seeds {in_short(seeds, dash='-')}; nothing is run or "
        "written."
    )
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
