"""``clipvip caption``: auxiliary captions of a corpus's shards, on one device or under torchrun on many."""

from __future__ import annotations

import argparse

from clipvip_lib.children import end_with_torchrun
from clipvip_lib.commands.arguments import (
    at_least,
    device,
    load_torch,
    path,
    precision,
    say_slower,
    share,
)
from clipvip_lib.say import say


def add(commands) -> None:
    parser = commands.add_parser(
        "caption",
        example="clipvip caption --shards '/data/{00000..00099}.tar' --weights caption_large.pt --out captions/",
        help="caption the middle frames of a corpus's shards",
        description="Captions the middle frame of every clip of the shards with OFA (or a Hugging Face model) and "
        "writes SHARD.captions.jsonl, each once and whole. Shards that have it are skipped, so run it again after an "
        "interruption to continue. Under torchrun the ranks share the shards and take over those of dead ranks.",
    )
    parser.add_argument(
        "--shards",
        required=True,
        metavar="PATTERN",
        help='tar files: a path with braces or globs, such as "path/{00000..00099}.tar"',
    )
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="folder of the captions")
    captioner = parser.add_mutually_exclusive_group(required=True)
    captioner.add_argument(
        "--weights",
        type=path,
        metavar="OFA",
        help="OFA's caption weights: fairseq's .pt, Hugging Face's folder or a name of its Hub, or a captioner of "
        "the study",
    )
    captioner.add_argument(
        "--hugging-face",
        type=path,
        metavar="MODEL",
        help="instead of OFA: a vision-to-text model by name or folder (BLIP, GIT, ViT-GPT2)",
    )
    parser.add_argument(
        "--bpe", type=path, metavar="DIR", help="folder with GPT-2's vocab.json and merges.txt, for OFA"
    )
    parser.add_argument(
        "--size", type=at_least(1), metavar="PIXELS", help="side of the images (default: 480)"
    )
    parser.add_argument("--beam", type=at_least(1), metavar="K", help="hypotheses per image (default: 5)")
    parser.add_argument(
        "--max-tokens", type=at_least(1), metavar="N", help="most tokens per caption (default: 16)"
    )
    parser.add_argument(
        "--parquet", action="store_true", help="write SHARD.captions.parquet too (needs pyarrow)"
    )
    parser.add_argument(
        "--batch", type=at_least(1), default=64, metavar="N", help="images at once (default: 64)"
    )
    precision(parser)
    parser.add_argument(
        "--device",
        type=device,
        default="auto",
        help="cpu, cuda, cuda:1 (default: this rank's GPU, or the CPU without one)",
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="decoding threads of each process (default: its share of the cores, at most 16)",
    )
    parser.add_argument(
        "--skip-share",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of a shard's samples that may be skipped if they cannot be read (default: 0)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import dataclasses
    import json
    import sys

    from clipvip_lib.data.shards import expand
    from clipvip_lib.errors import ClipVipError
    from clipvip_lib.files import make_folder
    from clipvip_lib.models.weight_names import expect_hugging_face, expect_ofa
    from clipvip_lib.progress import Progress, quiet
    from clipvip_lib.streams.parquet import need_pyarrow

    if arguments.parquet:
        need_pyarrow()  # fail now, not after the first shard
    rank, ranks, local, locals_ = _ranks()
    gone = (
        "clipvip caption: torchrun, which started this rank, is gone: the ranks end; finished shards are kept"
    )
    end_with_torchrun(
        lambda: None if local else say(f"{gone}; run the same command again to continue", sys.stderr)
    )
    shards = expand(arguments.shards)  # report a wrong path before torch is imported
    if arguments.hugging_face is not None and (arguments.bpe or arguments.size):
        raise ClipVipError(
            "--bpe and --size belong to OFA: a Hugging Face model has its own tokenizer and image size; leave them out"
        )
    if arguments.weights is not None:
        expect_ofa(arguments.weights, arguments.bpe)
    elif arguments.hugging_face is not None:  # a captioner of another kind checks itself
        expect_hugging_face(arguments.hugging_face)
    make_folder(arguments.out)
    load_torch(aloud=rank == 0)
    import torch

    from clipvip_lib.captions.caption_shards import caption_shards
    from clipvip_lib.captions.captioners import describe

    device = _device(arguments.device, local)
    captioner = _captioner(arguments, device)
    if rank == 0:
        say_slower(arguments.precision, device)
    name = f"rank {rank}: " if ranks > 1 else ""
    try:
        tally = caption_shards(
            shards,
            arguments.out,
            captioner,
            made_by=describe(captioner),
            batch=arguments.batch,
            threads=arguments.threads or _threads(locals_),
            skip_share=arguments.skip_share,
            parquet=arguments.parquet,
            rank=rank,
            ranks=ranks,
            progress=quiet if rank else Progress("caption", stream=sys.stderr),
            say=lambda text: say(f"clipvip caption: {name}{text}", sys.stderr),
        )
    except torch.OutOfMemoryError as error:
        raise ClipVipError(
            f"the device's memory does not hold a batch of {arguments.batch} images; choose a smaller --batch"
        ) from error
    rate = tally.captions / tally.seconds if tally.seconds else 0.0
    row = {"rank": rank, "ranks": ranks, **dataclasses.asdict(tally), "images_per_second": rate}
    row = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
    say(json.dumps(row))
    return 0


def _captioner(arguments: argparse.Namespace, device: str):
    from clipvip_lib.captions.captioners import HuggingFaceCaptioner, load_ofa_captioner

    if arguments.hugging_face is None:
        return load_ofa_captioner(
            arguments.weights,
            bpe=arguments.bpe,
            size=arguments.size,
            beam=arguments.beam,
            max_tokens=arguments.max_tokens,
            precision=arguments.precision,
            device=device,
        )
    return HuggingFaceCaptioner(
        arguments.hugging_face,
        beam=arguments.beam or 5,
        max_tokens=arguments.max_tokens or 16,
        precision=arguments.precision,
        device=device,
    )


def _ranks() -> tuple[int, int, int, int]:
    """Rank, ranks, rank on this machine, ranks on it, as torchrun sets them; no process group is made."""
    import os

    from clipvip_lib.errors import ClipVipError

    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    told = {name: os.environ.get(name, str(default)) for name, default in names.items()}
    if not all(value.isdecimal() for value in told.values()) or int(told["RANK"]) >= int(told["WORLD_SIZE"]):
        raise ClipVipError(
            f"expected RANK below WORLD_SIZE as torchrun sets them, got {told}; start by torchrun"
        )
    return tuple(int(value) for value in told.values())


def _device(asked: str, local: int) -> str:
    """This rank's device: by itself its GPU, in turns where ranks are more than GPUs."""
    import torch

    from clipvip_lib.features.embedding import device_of

    if asked in ("auto", "cuda") and torch.cuda.is_available():
        asked = f"cuda:{local}" if asked == "cuda" else f"cuda:{local % torch.cuda.device_count()}"
    return str(device_of(asked))


def _threads(processes: int) -> int:
    """Decoding threads per process, for so many processes: its cores minus one, which the model's thread uses."""
    from clipvip_lib.cores import cores

    return max(1, min(16, cores() // processes - 1))
