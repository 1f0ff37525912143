"""``clipvip embed``: videos, frame folders, shards and texts to features on disk."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clipvip_lib.commands.arguments import (
    at_least,
    device,
    load_torch,
    path,
    precision,
    say_slower,
    seconds,
)
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.precision import INT8
from clipvip_lib.say import counted, say

if TYPE_CHECKING:
    from clipvip_lib.data.clips import Clip


def add(commands) -> None:
    parser = commands.add_parser(
        "embed",
        example="clipvip embed talks/ --weights model/ --out features/ --windows 10 --stride 5",
        help="write the features of videos and texts to a folder",
        description="Encodes videos (files, folders, folders of pictures, tar shards) into DIR/features.npy with "
        "DIR/ids.jsonl, and the texts of a file into DIR/texts/. What is done is skipped, so run it again after an "
        "interruption, or with more videos beside the earlier ones, to continue. features.npy holds just the videos "
        "that this run names. Other weights or settings are refused.",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help='video files, folders, frame folders, shards ("path/{00000..00099}.tar")',
    )
    parser.add_argument("--texts", metavar="FILE", help="texts: one per line, .jsonl (id, text) or .csv")
    parser.add_argument(
        "--weights",
        required=True,
        type=path,
        metavar="W",
        help="a folder, a .pt or .safetensors file, an open_clip name (ViT-B-32, with --tag), or a name of the Hugging "
        "Face Hub (openai/clip-vit-base-patch32, hf-hub:laion/..)",
    )
    parser.add_argument("--tag", metavar="TAG", help="of an open_clip name: its weights, or a file of them")
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="folder of the features")
    parser.add_argument(
        "--attention",
        metavar="A",
        help=f"{', '.join(ATTENTIONS)} (default: the checkpoint's; mean_pool for a plain CLIP)",
    )
    parser.add_argument(
        "--frames", type=at_least(1), metavar="N", help="frames of each video (default: the checkpoint's, 12)"
    )
    parser.add_argument(
        "--windows",
        type=seconds,
        metavar="S",
        help="cut videos into windows of S seconds, a row for each with its start and end (default: a video is a row)",
    )
    parser.add_argument(
        "--stride",
        type=seconds,
        metavar="S",
        help="seconds from the start of one window to the next (default: as long as a window)",
    )
    parser.add_argument(
        "--antialias",
        action=argparse.BooleanOptionalAction,
        help="resize with Pillow as CLIP does, or in the authors' way (default: as the model was trained, if its "
        "config.json says so, else the authors' way)",
    )
    precision(parser, int8=True)
    parser.add_argument("--float16", action="store_true", help="store the features in float16")
    parser.add_argument("--parquet", action="store_true", help="write features.parquet too (needs pyarrow)")
    parser.add_argument(
        "--skip-bad",
        type=at_least(0),
        default=0,
        metavar="N",
        help="leave out up to N unreadable videos (default 0)",
    )
    parser.add_argument(
        "--damaged",
        choices=("refuse", "accept"),
        default="refuse",
        help="accept damaged videos with the pictures that the decoder makes up, and say so in ids.jsonl; those that "
        "were left out are tried again (default: refuse)",
    )
    parser.add_argument(
        "--ids",
        default="name",
        metavar="KIND",
        help="name: path below the source, or a sample's key (default); path: the whole path",
    )
    parser.add_argument(
        "--batch",
        type=at_least(1),
        metavar="N",
        help="videos encoded together (default: 2 on a CPU, 32 on a GPU)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that decode (default: one per core, at most 16)"
    )
    parser.add_argument(
        "--part",
        type=at_least(1),
        default=256,
        metavar="N",
        help="videos in a part, the most a kill costs (default 256)",
    )
    parser.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda, cuda:1 (default: a GPU, if there)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON line, meta.json, for the videos and one for the texts",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from clipvip_lib.data.clips import list_clips, workers_of
    from clipvip_lib.data.windows import Windows, expect_ids
    from clipvip_lib.errors import ClipVipError
    from clipvip_lib.features.text_files import read_texts
    from clipvip_lib.files import make_folder
    from clipvip_lib.models.weight_names import expect_clip
    from clipvip_lib.progress import Progress
    from clipvip_lib.streams.parquet import need_pyarrow

    if not arguments.sources and arguments.texts is None:
        raise ClipVipError(
            "embed expected videos or --texts FILE, got neither; `clipvip embed --help` shows how"
        )
    if any(not source.strip() for source in arguments.sources):  # Path("") is the current folder
        raise ClipVipError("embed expected videos, got an empty name; write . for the current folder")
    if arguments.stride is not None and arguments.windows is None:
        raise ClipVipError("--stride belongs to --windows: expected both; leave it out or add --windows")
    windows = None
    if arguments.windows is not None:
        windows = Windows(arguments.windows, arguments.stride or arguments.windows)
    expect_clip(arguments.weights, arguments.tag, arguments.attention)
    workers_of(arguments.workers)
    if arguments.parquet:
        need_pyarrow()  # fail now, not after hours of embedding
    # Listed before torch is imported and the model loaded, so that a wrong path is reported at once.
    clips = list_clips(arguments.sources, arguments.ids)
    if note := clips.note():
        say(f"clipvip: {note}", sys.stderr)
    if windows is not None:
        expect_ids(clip.id for clip in clips)
    texts = [] if arguments.texts is None else read_texts(arguments.texts)
    _expect_settings(arguments)
    if (
        clips and not arguments.skip_bad and not Path(arguments.out).exists()
    ):  # else it may be embedded already
        _expect_video(clips[0])  # `embed FILE` where the file is not a video
    make_folder(arguments.out)
    load_torch()
    from clipvip_lib.features.embedding import embed_texts, embed_videos, load_encoder
    from clipvip_lib.features.folder import PARQUET, write_parquet

    encoder = load_encoder(arguments.weights, arguments.tag, arguments.attention, arguments.device)
    if encoder.untrained:
        say(
            f"clipvip: {len(encoder.untrained)} weights are not in {arguments.weights} and untrained "
            f"({', '.join(encoder.untrained[:3])}); --attention mean_pool needs none",
            sys.stderr,
        )
    if clips and arguments.antialias is None and encoder.model.config.antialias is None:
        say(
            f"clipvip: {arguments.weights} does not say how frames were resized in training; assuming the authors' "
            "way, without antialiasing (--antialias: as CLIP does)",
            sys.stderr,
        )
    say_slower(arguments.precision, encoder.model.device)
    out = Path(arguments.out)
    options = {"precision": arguments.precision, "stored": "float16" if arguments.float16 else "float32"}
    copies = [copy for copy in (out / PARQUET, out / "texts" / PARQUET) if copy.is_file()]
    if clips:
        _report(
            "video",
            arguments.json,
            out,
            embed_videos,
            encoder,
            clips,
            out,
            frames=arguments.frames,
            antialias=arguments.antialias,
            batch=arguments.batch,
            workers=arguments.workers,
            part=arguments.part,
            skip_bad=arguments.skip_bad,
            damaged=arguments.damaged,
            windows=windows,
            progress=Progress("embed", stream=sys.stderr),
            **options,
        )
    if texts:
        options["progress"] = Progress("texts", stream=sys.stderr)
        _report(
            "text",
            arguments.json,
            out / "texts",
            embed_texts,
            encoder,
            texts,
            out / "texts",
            **options,
        )
    for written in [out] * bool(clips) + [out / "texts"] * bool(texts):
        if arguments.parquet:
            say(str(write_parquet(written)), sys.stderr if arguments.json else None)
        elif written / PARQUET in copies and not (written / PARQUET).exists():
            say(
                f"clipvip: removed {written / PARQUET}, which lacked rows; --parquet writes it again",
                sys.stderr,
            )
    return 0


def _expect_video(clip: Clip) -> None:
    """Raises VideoError for a file that is not a video; samples of shards and frame folders are read later."""
    from clipvip_lib.data.container import VideoError, look

    if not clip.entry and Path(clip.path).is_file():
        try:
            look(clip.path)
        except VideoError as error:
            raise VideoError(f"{error} (--skip-bad 1 would leave it out)") from error


def _expect_settings(arguments: argparse.Namespace) -> None:
    """What is known of the settings before the model is loaded, held against those of a folder that is there."""
    from clipvip_lib.features.writer import expect_settings

    def known(**asked: object) -> dict:
        return {name: value for name, value in asked.items() if value not in (None, "auto")}

    stored = "float16" if arguments.float16 else "float32"
    settings = known(stored=stored, precision=arguments.precision, attention=arguments.attention)
    if arguments.texts is not None:
        of_texts = {name: value for name, value in settings.items() if value != INT8}
        expect_settings(Path(arguments.out) / "texts", of_texts)
    if arguments.sources:
        settings |= known(frames=arguments.frames, antialias=arguments.antialias)
        window = None if arguments.windows is None else float(arguments.windows)
        stride = window if arguments.stride is None else float(arguments.stride)
        expect_settings(arguments.out, settings | {"window": window, "stride": stride})


def _report(what: str, as_json: bool, out: Path, embed, *arguments, **options) -> None:
    start = time.perf_counter()
    meta = embed(*arguments, **options)
    if as_json:
        say(json.dumps({"kind": f"{what}s", "folder": str(out), **meta}, ensure_ascii=False))
        return
    cut = f", {meta['cut']} of them cut at {meta['context_length']} tokens" if meta.get("cut") else ""
    cut += (
        f", {meta['unknown']} of them with words that the model does not know" if meta.get("unknown") else ""
    )
    left_out = f", {meta['skipped']} left out (skipped.jsonl)" if meta["skipped"] else ""
    left_out += f", {meta['damaged']} of them damaged (ids.jsonl)" if meta.get("damaged") else ""
    what = "window" if "window" in meta["settings"] else what
    others = f"; {meta['others']} more of an earlier run are not in it" if "others" in meta else ""
    say(
        f"{counted(meta['rows'], what)}{cut}{left_out} in {out / 'features.npy'}, {meta['width']} numbers each, "
        f"{time.perf_counter() - start:.1f} s{others}"
    )
