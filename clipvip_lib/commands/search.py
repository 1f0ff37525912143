"""``clipvip search``: the videos (or texts) of a folder of features that are nearest to a text or a video."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from clipvip_lib.commands.arguments import at_least, device, load_torch, path
from clipvip_lib.say import exact_seconds


def add(commands) -> None:
    parser = commands.add_parser(
        "search",
        example='clipvip search "a person cooking" --in features/ --top 5 --html found.html',
        help="find videos by a sentence or a video",
        description="Encodes texts and videos with the weights that made the features in DIR, and prints the nearest "
        "rows with their cosine similarities. Texts that `clipvip embed --texts` wrote are in DIR/texts. --html and "
        "--serve show them as a page with players.",
    )
    parser.add_argument("queries", nargs="*", metavar="TEXT", help='what to look for: "a person cooking"')
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="a video to look for")
    parser.add_argument(
        "--in", dest="features", required=True, type=path, metavar="DIR", help="folder of `clipvip embed`"
    )
    parser.add_argument(
        "--top", type=at_least(1), default=10, metavar="K", help="results per query (default 10)"
    )
    parser.add_argument(
        "--all-windows",
        action="store_true",
        help="list every window (default: of windows that overlap in a video, only the best)",
    )
    parser.add_argument("--weights", type=path, metavar="W", help="where the weights are now, if they moved")
    parser.add_argument("--tag", metavar="TAG", help="of --weights, if it is an open_clip name")
    parser.add_argument(
        "--faiss", action="store_true", help="use an index (approximate, for millions of rows)"
    )
    parser.add_argument(
        "--probes", type=at_least(1), metavar="N", help="number of index cells to search (default 32)"
    )
    parser.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda, cuda:1 (default: a GPU, if there)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line per query")
    parser.add_argument("--html", metavar="FILE", help="write a page too, in which the videos can be played")
    parser.add_argument(
        "--serve",
        nargs="?",
        const="127.0.0.1:8000",
        metavar="HOST:PORT",
        help="answer in a browser, with the model loaded once, until Ctrl-C (default 127.0.0.1:8000; port 0: any)",
    )
    parser.add_argument(
        "--token",
        nargs="?",
        const="",
        metavar="WORD",
        help="with --serve: who asks must send it; without WORD one is made; required where other machines reach HOST",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from clipvip_lib.features.folder import Features
    from clipvip_lib.features.query_settings import weights_of
    from clipvip_lib.say import say

    _check(arguments)
    features = Features(arguments.features)  # report a wrong folder before torch is imported
    server = _bound(arguments)
    weights_of(features.settings, arguments.weights, arguments.tag)
    load_torch()
    from clipvip_lib.features.search import PROBES, Searcher

    probes = PROBES if arguments.probes is None else arguments.probes
    index = probes if arguments.faiss else None
    asked = (arguments.weights, arguments.tag, arguments.device, index, arguments.all_windows)
    searcher = Searcher(features, *asked)
    start = time.perf_counter()
    found = []
    if arguments.queries or arguments.video:
        found = searcher.answer(arguments.queries, arguments.video, arguments.top)
    if len(found) == 1:
        found[0]["seconds"] = round(time.perf_counter() - start, 4)
    if server is not None:
        from clipvip_lib.features.serve import serve

        serve(server, searcher, found, arguments.top)
        return 0
    for query in found:
        if arguments.json:
            say(json.dumps(query, ensure_ascii=False, allow_nan=False))
            continue
        say(query.get("text", query.get("video")))
        if query.get("cut"):
            say("clipvip: this text is longer than the model reads: its end was cut off", sys.stderr)
        if words := query.get("unknown"):
            say(f"clipvip: the model does not know these words: {', '.join(words)}", sys.stderr)
        for rank, result in enumerate(query["results"], 1):
            about = result["text"] if "text" in result else _place(result)
            say(f"{rank:>5}  {result['score']:+.4f}  {result['id']}  {about}")
            if "lost" in result:
                say(f"clipvip: {result['lost']}", sys.stderr)
    if arguments.html is not None:
        from clipvip_lib.features.search_page import file_page
        from clipvip_lib.files import write_bytes

        page = file_page(features, found, Path(arguments.html), arguments.top)
        write_bytes(arguments.html, page.encode())
        say(f"clipvip: {arguments.html}, {len(page.encode()) / 1024:.0f} KiB, opens in a browser", sys.stderr)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises ClipVipError for options that do not go together, names that are not there, and texts that are none."""
    from clipvip_lib.data.container import look
    from clipvip_lib.data.frame_folders import frame_files
    from clipvip_lib.errors import ClipVipError
    from clipvip_lib.features.text_files import check_asked
    from clipvip_lib.files import kind_of, make_folder

    for name, needs in (("probes", "faiss"), ("tag", "weights"), ("token", "serve")):
        if getattr(arguments, name) is not None and getattr(arguments, needs) in (None, False):
            raise ClipVipError(f"--{name} belongs to --{needs}: expected both; leave it out or add --{needs}")
    if arguments.queries or arguments.video:
        check_asked(arguments.queries, arguments.video)
    elif arguments.serve is None:
        raise ClipVipError('search expected a text or --video FILE, such as clipvip search "a dog" --in DIR')
    if arguments.serve is not None and (arguments.json or arguments.html is not None):
        other = "--json" if arguments.json else "--html"
        raise ClipVipError(
            f"--serve shows results in a browser: expected no {other}; leave one of the two out"
        )
    for video in arguments.video:
        kind = kind_of(video)
        if not kind:
            raise ClipVipError(
                f"cannot read {video!r}: expected a video to look for, it is not there; check the path"
            )
        if kind == "folder":
            frame_files(video)
        else:
            look(video)
    if arguments.html is not None:
        of_a_page = Path(arguments.html).suffix.lower() in (".html", ".htm") and arguments.html[-1:] != "/"
        if not of_a_page or kind_of(arguments.html) == "folder":
            raise ClipVipError(
                f"--html expected a file to write that ends in .html, got {arguments.html!r}; name another one"
            )
        make_folder(Path(arguments.html).parent)


def _bound(arguments: argparse.Namespace):
    """The server of --serve, which has its port but does not answer yet, or None."""
    if arguments.serve is None:
        return None
    import secrets

    from clipvip_lib.features.serve import Server, address_of

    return Server(
        address_of(arguments.serve), secrets.token_urlsafe(24) if arguments.token == "" else arguments.token
    )


def _place(result: dict) -> str:
    key = f" ({result['key']})" if "key" in result else ""
    window = (
        f"  {exact_seconds(result['start'])}-{exact_seconds(result['end'])} s" if "start" in result else ""
    )
    left_out = f", {result['overlapping']} more overlap it" if result.get("overlapping") else ""
    return f"{result['path']}{key}{window}{left_out}"
