"""``clipvip convert-texts``: writes texts and captions from other sources as files beside the shards."""

from __future__ import annotations

import argparse

from clipvip_lib.commands.arguments import at_least, path

COLUMNS = "videoid,name"  # WebVid's


def add(commands) -> None:
    parser = commands.add_parser(
        "convert-texts",
        example="clipvip convert-texts --shards '/data/webvid/{00000..00099}.tar' --csv webvid.csv",
        help="put subtitles, captions or alt-texts beside the shards they belong to",
        description="Writes for each shard the texts of its samples, whole or not at all, as SHARD.texts.jsonl or "
        "SHARD.captions.jsonl; shards that already have them are skipped. A sample's id is looked up in one source: an "
        "LMDB of the CLIP-ViP authors, WebVid's table, or what video2dataset kept of the subtitles.",
    )
    parser.add_argument(
        "--shards",
        required=True,
        metavar="PATTERN",
        help="'/data/{00000..00099}.tar', a glob or a folder",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="where to write (default: beside the shards)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--subtitles",
        type=path,
        metavar="LMDB",
        help="texts from an LMDB from clip id to subtitle, or a .jsonl of clip_id and text",
    )
    source.add_argument(
        "--captions",
        type=path,
        metavar="LMDB",
        help="captions from an LMDB from clip id to caption, or a .json list of image_id and caption",
    )
    source.add_argument(
        "--csv", type=path, metavar="FILE", help="texts from a table with the columns videoid and name"
    )
    source.add_argument(
        "--own-subtitles", action="store_true", help="texts from clip_subtitles in each sample's key.json"
    )
    ids = parser.add_mutually_exclusive_group()
    ids.add_argument(
        "--id",
        metavar="TEMPLATE",
        help="a sample's id from its key and the fields of its key.json, such as '{video_id}.{clip}.mp4' "
        "(default: '{clip_id}', with --csv '{videoid}')",
    )
    ids.add_argument(
        "--metadata",
        nargs="+",
        metavar="JSONL",
        help="HD-VILA's metadata: ids by video and span of each clip",
    )
    parser.add_argument(
        "--columns",
        metavar="ID,TEXT",
        help=f"columns of --csv (default {COLUMNS})",
    )
    parser.add_argument(
        "--allow-missing",
        type=at_least(0),
        default=0,
        metavar="N",
        help="accept up to N clips without a text (default 0)",
    )
    parser.set_defaults(run=run)


def _refuse_idle(arguments: argparse.Namespace) -> None:
    """Raises ClipVipError for an option that has no effect with the given source."""
    from clipvip_lib.errors import ClipVipError

    if arguments.own_subtitles and (arguments.id is not None or arguments.metadata):
        idle = "--metadata" if arguments.metadata else "--id"
        raise ClipVipError(
            f"--own-subtitles stand in each sample's own key.json: expected no {idle}, which finds a sample in another "
            "source; leave it out"
        )
    if arguments.columns is not None and arguments.csv is None:
        raise ClipVipError(
            "--columns names those of a table: expected --csv beside it; leave it out or add --csv"
        )


def run(arguments: argparse.Namespace) -> int:
    import json
    import sys

    from clipvip_lib.data.shards import expand
    from clipvip_lib.progress import Progress
    from clipvip_lib.say import say
    from clipvip_lib.streams.shard_texts import (
        convert,
        ids_by_span,
        ids_by_template,
        own_subtitles,
        source_texts,
    )

    _refuse_idle(arguments)
    kind = "captions" if arguments.captions else "texts"
    if arguments.own_subtitles:
        text_of = own_subtitles
    else:
        columns = COLUMNS if arguments.columns is None else arguments.columns
        texts = source_texts(arguments.subtitles or arguments.captions, arguments.csv, columns)
        if arguments.metadata:
            id_of = ids_by_span(arguments.metadata)
        else:
            id_of = ids_by_template(arguments.id or ("{videoid}" if arguments.csv else "{clip_id}"))

        def text_of(key: str, about: dict) -> str | None:
            found = id_of(key, about)
            return None if found is None else texts(found)

    progress = Progress("convert-texts", stream=sys.stderr)
    result = convert(
        expand(arguments.shards), kind, text_of, arguments.out, arguments.allow_missing, progress
    )
    say(json.dumps(result))
    return 0
