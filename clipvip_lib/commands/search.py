"""``clipvip search``: the videos (or texts) of a folder of features that are nearest to a text or a video."""

from __future__ import annotations

import argparse
import json
import sys

from clipvip_lib.commands.arguments import folder


def add(commands) -> None:
    parser = commands.add_parser(
        "search",
        help="find videos by a sentence or a video",
        description="Encodes texts and videos with the weights that made the features in DIR, and prints the nearest "
        "rows with their cosine similarities. Texts that `clipvip embed --texts` wrote are in DIR/texts.",
    )
    parser.add_argument("queries", nargs="*", metavar="TEXT", help='what to look for: "a person cooking"')
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="a video to look for")
    parser.add_argument(
        "--in", dest="features", required=True, type=folder, metavar="DIR", help="folder of `clipvip embed`"
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="results per query (default 10)")
    parser.add_argument(
        "--weights", type=folder, metavar="W", help="where the weights are now, if they moved"
    )
    parser.add_argument("--tag", metavar="TAG", help="of --weights, if it is an open_clip name")
    parser.add_argument(
        "--faiss", action="store_true", help="use an index (approximate, for millions of rows)"
    )
    parser.add_argument(
        "--probes", type=int, metavar="N", help="number of index cells to search (default 32)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON line per query")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from clipvip_lib.errors import ClipVipError
    from clipvip_lib.features.folder import Features
    from clipvip_lib.say import say

    if not arguments.queries and not arguments.video:
        raise ClipVipError('search expected a text or --video FILE, such as clipvip search "a dog" --in DIR')
    if arguments.probes is not None and not arguments.faiss:
        raise ClipVipError("--probes belongs to --faiss: expected both; leave it out or add --faiss")
    if arguments.tag is not None and arguments.weights is None:
        raise ClipVipError("--tag belongs to --weights: expected both; leave it out or add --weights")
    features = Features(arguments.features)  # report a wrong folder before torch is imported
    from clipvip_lib.features.search import PROBES, answer

    probes = PROBES if arguments.probes is None else arguments.probes
    found = answer(
        features,
        arguments.queries,
        arguments.video,
        top=arguments.top,
        weights=arguments.weights,
        pretrained_tag=arguments.tag,
        device=arguments.device,
        probes=probes if arguments.faiss else None,
    )
    for query in found:
        if arguments.json:
            say(json.dumps(query, ensure_ascii=False, allow_nan=False))
            continue
        say(query.get("text", query.get("video")))
        if query.get("cut"):
            say("clipvip: this text is longer than the model reads: its end was cut off", sys.stderr)
        for rank, result in enumerate(query["results"], 1):
            about = result["text"] if "text" in result else _place(result)
            say(f"{rank:>5}  {result['score']:+.4f}  {result['id']}  {about}")
    return 0


def _place(result: dict) -> str:
    key = f" ({result['key']})" if "key" in result else ""
    window = f"  {result['start']:g}-{result['end']:g} s" if "start" in result else ""
    return f"{result['path']}{key}{window}"
