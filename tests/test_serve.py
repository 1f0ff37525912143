"""The search server with a real model, real videos and real requests: what it answers, and whom it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import patience
import pytest
import videos
from fault_runs import disks  # noqa: F401 (a fixture)
from hypothesis import given
from hypothesis import strategies as st
from small_clip import save_small, write_videos
from test_clips import jpeg, write_pictures, write_shard
from test_embed_commands import run

from clipvip_lib.data import clips
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features import search as module
from clipvip_lib.features import serve
from clipvip_lib.features.folder import Features
from clipvip_lib.features.media import Place
from clipvip_lib.features.serve import Refused, Server, address_of, wanted_part

ODD = "v\x1b[31m<script>alert(1)<∕script>"  # a folder's / is not in names
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    """A folder with weights, videos and features of them: files, one with an odd name, a shard, pictures."""
    root = tmp_path_factory.mktemp("indexed")
    write_videos(root / "videos", 3)
    (root / "videos" / f"{ODD}.mp4").write_bytes(videos.encode(30))
    write_shard(root / "videos" / "0.tar", {"k": {"mp4": videos.encode(60)}, "still": {"jpg": jpeg()}})
    write_pictures(root / "videos" / "frames", videos.pictures(5))
    (root / "secret.mp4").write_bytes(b"not indexed")
    save_small(root / "weights")
    assert run("embed", root / "videos", "--weights", root / "weights", "--out", root / "out") == 0
    return root


class Served:
    """A server in a thread, and its answers."""

    def __init__(self, folder: Path, token: str | None = None, every: bool = False) -> None:
        self.server = Server(address_of("127.0.0.1:0"), token)
        self.features = Features(folder)
        searcher = module.Searcher(self.features, every=every)
        arguments = (searcher, [], 5)
        self.thread = threading.Thread(target=self.server.answer_with, args=arguments, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str):
        """(status, headers, body) of a request; a name's _ is a -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def row(self, id: str) -> int:
        return next(i for i in range(len(self.features)) if self.features.row(i)["id"] == id)


@pytest.fixture(scope="module")
def served(indexed):
    served = Served(indexed / "out")
    yield served
    served.close()


def test_a_text_a_clip_and_a_row_find_videos(served, indexed):
    status, headers, body = served.ask("/api/search?q=a+dog+runs&top=3")
    answer = json.loads(body)
    assert status == 200 and headers["Content-Type"] == "application/json"
    (query,) = answer["queries"]
    expected = module.Searcher(served.features).answer(["a dog runs"], top=3)[0]["results"]
    assert query["asked"] == "a dog runs" and query["seconds"] > 0
    assert [each["row"] for each in query["results"]] == [each["row"] for each in expected]
    assert [each["score"] for each in query["results"]] == pytest.approx([each["score"] for each in expected])
    assert set(answer["items"]) == {str(each["row"]) for each in expected}
    clip = (indexed / "videos" / "v01.mp4").read_bytes()
    status, _, body = served.ask("/api/search?top=2&name=mine.mp4", "POST", clip)
    found = json.loads(body)["queries"][0]
    assert status == 200 and found["asked"] == "mine.mp4"
    assert found["results"][0]["row"] == served.row("v01") and found["results"][0]["score"] > 0.9999
    row = served.row("k")
    near = json.loads(served.ask(f"/api/search?like={row}")[2])["queries"][0]
    assert near["asked"] == "Like k" and near["results"][0]["row"] == row and len(near["results"]) == 5


def test_every_kind_of_row_is_served_and_nothing_of_a_request_is_a_path(served, indexed):
    shard = {"k": videos.encode(60), "still": jpeg()}
    for id, content, kind in (
        ("v00", (indexed / "videos" / "v00.mp4").read_bytes(), "video/mp4"),
        ("k", shard["k"], "video/mp4"),
        ("still", shard["still"], "image/jpeg"),
        ("frames", (indexed / "videos" / "frames" / "frames_002.png").read_bytes(), "image/png"),
    ):
        status, headers, body = served.ask(f"/media/{served.row(id)}")
        assert (status, headers["Content-Type"], body) == (200, kind, content)
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Accept-Ranges"] == "bytes"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"  # no other page may show a video
        assert headers["Referrer-Policy"] == "no-referrer"
        status, headers, body = served.ask(f"/media/{served.row(id)}", "HEAD")
        assert (status, int(headers["Content-Length"]), body) == (200, len(content), b"")


@pytest.mark.bad_input(
    "search --serve: a path, `..` or a number of no row in the address",
    says="404 and a sentence; nothing is read",
)
@pytest.mark.parametrize(
    "path",
    [
        "/media/../secret.mp4",
        "/media/..%2f..%2fsecret.mp4",
        "/../../etc/passwd",
        "//etc/passwd",
        "/media//etc/passwd",
        "/etc/passwd",
        "/media/-1",
        "/media/7",
        "/media/999999999999999",
        "/media/9999999999999999999999",
        "/media/0/../1",
        "/media/٣",
        "/media/0%00",
        "http://elsewhere/media/0",
        "/media/",
        "/nothing",
    ],
)
def test_no_path_of_a_request_is_read(served, indexed, path):
    path = quote(path, safe="/:%.")
    for each in (path, path.replace("secret.mp4", quote(str(indexed / "secret.mp4"), safe=""))):
        status, _, body = served.ask(each, Host="localhost")
        assert status == 404 and set(json.loads(body)) == {"error"}


@pytest.mark.bad_input("search --serve: a range that is not there", says="416 with the length")
def test_ranges(served):
    path = f"/media/{served.row('k')}"
    content = videos.encode(60)
    size = len(content)
    for asked, begin, end in (
        ("bytes=0-9", 0, 10),
        ("bytes=10-", 10, size),
        ("bytes=-7", size - 7, size),
        (f"bytes={size - 1}-{10**30}", size - 1, size),
        (f"bytes=-{10**30}", 0, size),
        ("Bytes=5-5", 5, 6),
    ):
        status, headers, body = served.ask(path, Range=asked)
        assert (status, body) == (206, content[begin:end]), asked
        assert headers["Content-Range"] == f"bytes {begin}-{end - 1}/{size}"
        assert int(headers["Content-Length"]) == end - begin
    for asked in (f"bytes={size}-", f"bytes={10**40}-{10**41}", "bytes=-0"):
        status, headers, body = served.ask(path, Range=asked)
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}") and b"error" in body
    for asked in (
        "bytes=9-3",
        "bytes=-",
        "bytes=--5",
        "bytes=0-1,3-4",
        "bytes=a-b",
        "lines=1-2",
        "bytes=-1-2",
        "x",
    ):
        status, headers, body = served.ask(path, Range=asked)  # not understood: the whole, as RFC 9110 has it
        assert (status, body) == (200, content) and "Content-Range" not in headers
    tag = served.ask(path)[1]["ETag"]
    assert served.ask(path, If_None_Match=tag)[0] == 304
    assert served.ask(path, Range="bytes=0-9", If_Range=tag)[0] == 206
    assert served.ask(path, Range="bytes=0-9", If_Range='"another"')[2] == content


@given(st.text("0123456789-,= bytes", max_size=30), st.integers(0, 50))
def test_any_range_is_within_the_file(text, length):
    try:
        part = wanted_part("bytes=" + text, length)
    except Refused as refused:
        assert refused.status == 416
    else:
        assert part is None or 0 <= part[0] < part[1] <= length


@pytest.mark.bad_input(
    "search --serve: a Host that is not its own, or another page's request", says="403 and a sentence"
)
def test_other_hosts_and_other_pages_are_refused(served):
    port = served.server.port
    for host in (
        "evil.com",
        f"evil.com:{port}",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "",
        "a b",
        "10.0.0.1",
    ):
        for path in ("/", "/media/0", "/api/search?q=dog"):
            status, _, body = served.ask(path, Host=host)
            assert status == 403 and "Host" in json.loads(body)["error"]
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST:9000"):
        assert served.ask("/media/0", Host=host)[0] == 200
    assert served.ask("/api/search?q=dog", Origin="http://evil.com")[0] == 403
    assert served.ask("/api/search", "POST", b"x", Origin="null")[0] == 403
    assert served.ask("/media/0", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert served.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    form = {
        "Sec_Fetch_Site": "cross-site",
        "Sec_Fetch_Mode": "navigate",
    }  # of another page, sent by its script
    assert served.ask("/api/search", "POST", b"x", **form)[0] == 403
    assert served.ask("/api/search?q=dog", Sec_Fetch_Site="same-origin")[0] == 200
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 403 ")
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 403 ")


def test_a_default_of_more_results_than_may_be_asked_for_is_cut(served, monkeypatch):
    monkeypatch.setattr(served.server, "top", 300)
    assert served.ask("/api/search?q=dog")[0] == 200


@pytest.mark.bad_input("search --serve: a question that is none", says="400, 411 or 413 and a sentence")
@pytest.mark.parametrize(
    ("path", "method", "status", "words"),
    [
        ("/api/search?q=", "GET", 400, "expected a text or a video to look for, got ''"),
        ("/api/search", "GET", 400, "expected a text or a video to look for"),
        ("/api/search?q=%ff", "GET", 400, "in UTF-8"),
        ("/api/search?q=dog&top=0", "GET", 400, "expected top from 1 to 200, got '0'"),
        ("/api/search?q=dog&top=1e9", "GET", 400, "expected top from 1 to 200, got '1e9'"),
        ("/api/search?like=-1", "GET", 400, "expected like from 0 to 6"),
        ("/api/search?like=7", "GET", 400, "expected like from 0 to 6"),
        ("/api/search?name=a%0ab.mp4", "POST", 400, "a\\nb.mp4 is not a readable video"),
        ("/", "POST", 404, "expected a clip"),
        ("/media/0", "PUT", 405, "expected GET, HEAD or POST, got PUT"),
        ("/api/search?q=" + "long+" * 20_000, "GET", 414, "too long"),
    ],
)
def test_bad_questions_are_answered_with_a_sentence(served, path, method, status, words):
    found, _, body = served.ask(path, method, b"no video" if method == "POST" else None)
    assert found == status and words in json.loads(body)["error"]


def test_wrong_methods_are_answered_like_all_else(served):
    status, headers, _ = served.ask("/media/0", "DELETE")
    assert status == 405 and headers["Allow"] == "GET, HEAD, POST"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Content-Type"] == "application/json"


def test_a_clip_needs_a_length_and_not_too_much(served):
    status, _, body = served.ask("/api/search", "POST", b"")
    assert status == 400 and "the clip is empty" in json.loads(body)["error"]
    for header, status in (("", 411), ("Content-Length: -5\r\n", 411), (f"Content-Length: {2**40}\r\n", 413)):
        with socket.create_connection(("127.0.0.1", served.server.port)) as raw:
            raw.sendall(f"POST /api/search HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
            answer = b""
            while piece := raw.recv(4096):
                answer += piece
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and b"expected a clip" in answer


def test_names_are_shown_as_names(served):
    row = next(i for i in range(len(served.features)) if "script" in served.features.row(i)["id"])
    item = json.loads(served.ask(f"/api/search?like={row}&top=1")[2])["items"][str(row)]
    assert "\\u001b[31m<script>" in item["id"] and "\x1b" not in item["id"] + item["about"]
    status, headers, body = served.ask("/")
    text = body.decode()
    rule = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in rule and "frame-ancestors 'none'" in rule
    assert "unsafe" not in rule and "http" not in rule and text.count("<script") == 2 and "{{" not in text


@pytest.mark.fault(
    "search --serve: a video is moved away, cut or replaced after it was embedded",
    sees="404 and a sentence in place of the player",
    keeps="the server",
)
@pytest.mark.parametrize("stamped", (True, False), ids=("stamped", "of before there were stamps"))
def test_a_video_that_is_gone_or_no_video_is_told(indexed, tmp_path, monkeypatch, stamped):
    shutil.copytree(indexed / "videos", tmp_path / "v")
    line = ("embed", tmp_path / "v", "--weights", indexed / "weights", "--out", tmp_path / "out")
    if not stamped:
        monkeypatch.setattr(clips, "stamp_of", lambda path: "")
    assert run(*line) == 0
    served = Served(tmp_path / "out")
    try:
        (tmp_path / "v" / "v00.mp4").unlink()
        os.mkfifo(tmp_path / "v" / "v00.mp4")
        (tmp_path / "v" / "v01.mp4").unlink()
        shard = tmp_path / "v" / "0.tar"
        shard.write_bytes(shard.read_bytes()[:3000])
        (tmp_path / "v" / "v02.mp4").write_bytes(videos.encode(20))
        told = {"v00": "a pipe or a device", "v01": "is gone since it was embedded"}
        told |= {"k": "changed since", "v02": "changed since"} if stamped else {"k": "is damaged"}
        for id, words in told.items():
            status, _, body = served.ask(f"/media/{served.row(id)}")
            assert status == 404 and words in json.loads(body)["error"]
            item = json.loads(served.ask(f"/api/search?like={served.row(id)}&top=1")[2])["items"]
            assert item[str(served.row(id))]["kind"] == "none"
        assert served.ask(f"/media/{served.row(ODD)}")[0] == 200
        late = Place(
            tmp_path / "v" / "v00.mp4", "video/mp4"
        )  # that it is a pipe comes after the look at its stamp
        with pytest.raises(ClipVipError, match="is not what was embedded"), late.open():
            pass
    finally:
        served.close()


def test_an_index_from_elsewhere_opens_no_other_files(indexed, tmp_path):
    paths = ("/etc/passwd", str(indexed / "weights" / "config.json"))
    index(indexed, tmp_path / "out", [{"path": path} for path in paths])
    served = Served(tmp_path / "out")
    try:
        for row in (0, 1):
            status, _, body = served.ask(f"/media/{row}")
            assert status == 404 and "has no suffix of a video" in json.loads(body)["error"]
    finally:
        served.close()


# ------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.bad_input("search --serve: a wrong token, or none", says="401 and a sentence")
def test_a_token_is_asked_for_everything(indexed):
    served = Served(indexed / "out", TOKEN)
    try:
        for path in (
            "/",
            "/media/0",
            "/api/search?q=dog",
            "/api/search?q=dog&token=" + TOKEN,
            "/?token=wrong",
            "/x",
        ):
            assert served.ask(path)[0] == 401
        assert served.ask("/", Cookie=f"clipvip-{served.server.port}=wrong")[0] == 401
        assert served.ask("/", Authorization="Bearer wrong")[0] == 401
        assert served.ask("/", Cookie="\x7f;=;;")[0] == 401
        status, headers, _ = served.ask(f"/?token={TOKEN}")
        assert status == 303 and headers["Location"] == "/"
        assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Lax" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert served.ask("/", Cookie=cookie)[0] == served.ask("/media/0", Cookie=cookie)[0] == 200
        assert served.ask("/media/0", Authorization=f"bearer {TOKEN}")[0] == 200
        assert served.ask("/", Cookie=cookie, Host="evil.com")[0] == 403
        assert TOKEN not in served.ask("/", Cookie=cookie)[2].decode()
        assert served.server.url.endswith(f"/?token={TOKEN}")
    finally:
        served.close()


def test_an_address_of_other_machines_takes_their_names_for_it():
    server = Server(address_of("0.0.0.0:0"), TOKEN)
    try:
        own = (f"{socket.gethostname()}:1", "192.168.0.5:8000", "[fe80::1]:8000", "localhost")
        assert all(server.is_ours(host) for host in own)
        assert not server.is_ours("evil.com") and not server.is_ours("1.2.3.4.evil.com")
    finally:
        server.server_close()


@pytest.mark.bad_input(
    "search --serve: an address, a port or a token that makes no sense", says="one sentence"
)
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("0.0.0.0:0", "other machines reach 0.0.0.0: expected --token"),
        ("[::]:0", "other machines reach [::]: expected --token"),
        ("0 --token short", "--token expected 16 or more letters"),
        ("127.0.0.1:99999", "--serve expected HOST:PORT or PORT"),
        ("a:b:c", "--serve expected HOST:PORT or PORT"),
        ("8000000", "--serve expected HOST:PORT or PORT"),  # not the address 0.122.18.0
        ("a-dog-that-runs.invalid", "expected the address of this machine"),
        ("192.0.2.1:0 --token", "cannot serve on 192.0.2.1:0"),
        ("0 --json", "--serve shows results in a browser: expected no --json"),
    ],
)
def test_bad_addresses_are_one_sentence(indexed, asked, words):
    with pytest.raises(ClipVipError) as caught:
        run("search", "--in", indexed / "out", "--serve", *asked.split())
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.bad_input(
    "search --serve: a port that is taken", says="`expected a free port`, before the model is loaded"
)
def test_a_taken_port_is_a_sentence_before_the_model_is_loaded(indexed, monkeypatch):
    monkeypatch.setattr(module, "Searcher", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClipVipError, match=rf"cannot serve on 127.0.0.1:{port} .*expected a free port"):
            run("search", "--in", indexed / "out", "--serve", port)


def test_questions_that_wait_do_not_hold_up_the_end(indexed, monkeypatch):
    monkeypatch.setattr(serve, "END_SECONDS", 1)
    served, goes_on, asked = Served(indexed / "out"), threading.Event(), threading.Event()

    def answer(*_arguments, **_options):
        asked.set()
        goes_on.wait(60)
        return [{"text": "dog", "results": []}]

    served.server.searcher.answer = answer
    with contextlib.ExitStack() as stack:
        stack.callback(goes_on.set)
        for _ in range(6):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.server.port))).sendall(
                b"GET /api/search?q=dog HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
        assert asked.wait(60)
        while len(served.server.answering) < 6:
            time.sleep(0.01)
        began = time.monotonic()
        served.close()
        assert time.monotonic() - began < 4


@pytest.mark.fault(
    "search --serve: Ctrl-C", sees="how many searches were answered; exit code 0", keeps="the features"
)
def test_the_command_serves_until_ctrl_c_and_loads_once(indexed):
    code = (
        "import signal, sys; from clipvip_lib import cli; from clipvip_lib.features import search as m\n"
        # what a shell starts in the background has it ignored, and so would this
        "signal.signal(signal.SIGINT, signal.default_int_handler); load = m.encoder_of\n"
        "m.encoder_of = lambda *a: print('LOADED', flush=True) or load(*a)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    line = [sys.executable, "-u", "-c", code, "search", "a dog", "--in", str(indexed / "out"), "--serve", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "LOADED\n"
            said = process.stdout.readline()
            port = int(re.match(r"http://127\.0\.0\.1:(\d+)/ searches 7 rows of .*; Ctrl-C ends it", said)[1])
            for _ in range(3):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/api/search?q=a+dog")
                assert connection.getresponse().status == 200
                connection.close()
            process.send_signal(signal.SIGINT)
            out, err = patience.wait(process)
        finally:
            patience.kill(process.pid)
    assert process.returncode == 0 and out == ""
    assert (
        err == f"clipvip: loading the model\nclipvip: no longer at 127.0.0.1:{port}; answered 3 questions\n"
    )


@pytest.mark.parametrize(
    "head",
    ["POST /api/search HTTP/1.1\r\nOrigin: http://elsewhere.example", "GET /media/999 HTTP/1.1"],
    ids=["refused before its path is looked at", "a GET with a body"],
)
def test_a_body_is_never_read_as_the_next_request(served, head):
    """Or another page could send requests that bear no Origin, within the body of one that is refused."""
    host = f"Host: 127.0.0.1:{served.server.port}"
    hidden = f"GET /media/0 HTTP/1.1\r\n{host}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=30) as connection:
        connection.sendall(f"{head}\r\n{host}\r\nContent-Length: {len(hidden)}\r\n\r\n{hidden}".encode())
        connection.settimeout(3)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionResetError):
            pass
    assert answer.count(b"HTTP/1.1 ") == 1 and answer.split()[1] in (b"403", b"404")


# ---------------------------------------------------------------------- slow clients, full disks, links, errors


def sending(port: int, length: int, body: bytes = b"") -> socket.socket:
    """A connection on which a clip of some length is being sent, of which the server has seen the head."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=patience.STILL)
    raw.sendall(
        f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode() + body
    )
    return raw


def rest(raw: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    while piece := raw.recv(2**16):
        found += piece
    return found


@pytest.mark.fault(
    "search --serve: more than four clips are sent at a time",
    sees="503 and `fewer at a time`",
    keeps="the server, and the clips that are being sent",
)
def test_clips_are_received_a_few_at_a_time(served, indexed):
    clip = (indexed / "videos" / "v01.mp4").read_bytes()
    slow = [sending(served.server.port, len(clip), clip[:100]) for _ in range(serve.MOST_UPLOADS)]
    try:
        patience.until(lambda: not served.server.uploads._value, "four uploads")
        status, headers, body = served.ask("/api/search", "POST", clip)
        assert (
            status == 503 and "fewer at a time" in json.loads(body)["error"] and headers["Retry-After"] == "5"
        )
        assert served.ask("/api/search?q=dog")[0] == 200  # and nobody else waits for them
        for raw in slow[:2]:
            raw.sendall(clip[100:])
            assert rest(raw).startswith(b"HTTP/1.1 200 ")
        for raw in slow[2:]:
            raw.close()
        patience.until(lambda: served.server.uploads._value == serve.MOST_UPLOADS, "no upload")
        assert served.ask("/api/search", "POST", clip)[0] == 200
    finally:
        for raw in slow:
            raw.close()


@pytest.mark.fault(
    "search --serve: a client that sends a byte at a time, or reads nothing",
    sees="the connection is closed; of a clip, 408",
    keeps="the server; others are answered meanwhile",
)
def test_slow_clients_are_cut_off_and_hold_nobody_up(indexed, monkeypatch):
    monkeypatch.setattr(serve, "IDLE_SECONDS", 2.0)
    served = Served(indexed / "out")
    port, ended = served.server.port, threading.Event()

    def drip(raw: socket.socket, text: bytes) -> None:
        for byte in text:
            try:
                raw.sendall(bytes([byte]))
            except OSError:  # cut off, as it should be
                return
            if ended.wait(0.25):  # each read is quick enough: only all of them are too slow
                return

    head = socket.create_connection(("127.0.0.1", port), timeout=patience.STILL)
    clip = sending(port, 1000)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    deaf.connect(("127.0.0.1", port))
    threads = [
        threading.Thread(
            target=drip, args=(head, b"GET /media/0 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10**4)
        ),
        threading.Thread(target=drip, args=(clip, b"x" * 1000)),
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in range(200):  # more than the system keeps for one who does not read
            deaf.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert served.ask("/api/search?q=dog")[0] == 200
        assert rest(head) == b""
        assert rest(clip).startswith(b"HTTP/1.1 408 ")
        with contextlib.suppress(ConnectionError):
            assert rest(deaf)  # what was sent before it was cut off
        patience.until(lambda: not served.server.until, "the end of all connections")
        assert served.ask("/api/search?q=dog")[0] == 200
    finally:
        ended.set()
        for raw in (head, clip, deaf):
            raw.close()
        for thread in threads:
            thread.join()
        served.close()


@pytest.mark.fault(
    "search --serve: an error while a video is read (a real one of the system)",
    sees="the connection is closed before the promised length; one sentence in the terminal",
    keeps="the server",
)
def test_an_error_in_the_middle_of_a_video_is_no_second_answer(indexed, tmp_path, capsys):
    odd = Path("/sys/class/net/lo/speed")  # it says that it holds 4096 bytes, and cannot be read
    try:
        odd.read_bytes()
    except OSError:
        if not odd.is_file() or odd.stat().st_size != 4096:
            pytest.skip(f"no {odd} here")
    else:
        pytest.skip(f"{odd} can be read here")
    (tmp_path / "v.mp4").symlink_to(odd)
    served = Served(
        index(indexed, tmp_path / "out", [{"path": str(tmp_path / "v.mp4"), "real": os.path.realpath(odd)}])
    )
    try:
        with socket.create_connection(("127.0.0.1", served.server.port), timeout=patience.STILL) as raw:
            raw.sendall(b"GET /media/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = rest(raw).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ") and b"Content-Length: 4096" in head and body == b""
        assert "clipvip: /media/0: cut off" in (said := capsys.readouterr().err) and "Traceback" not in said
        assert served.ask("/api/search?q=dog")[0] == 200
    finally:
        served.close()


def index(indexed: Path, folder: Path, rows: list[dict]) -> Path:
    """A folder of features with these rows."""
    from clipvip_lib.features.writer import FeatureWriter

    with FeatureWriter(folder, dict(Features(indexed / "out").settings)) as writer:
        for i, row in enumerate(rows):
            writer.add({"id": str(i), **row}, "", Features(indexed / "out").array[0])
        writer.join([str(i) for i in range(len(rows))])
    return folder


@pytest.mark.fault(
    "search --serve: a link is changed after its video was embedded",
    sees="404 and `as when it was embedded`",
    keeps="what the link leads to now is not shown",
)
def test_a_link_that_leads_elsewhere_is_not_followed(indexed, tmp_path):
    links, other = tmp_path / "links", tmp_path / "other"
    shutil.copytree(indexed / "videos", other)
    links.mkdir()
    for name in ("v00.mp4", "v01.mp4", "0.tar", "frames"):
        (links / name).symlink_to(indexed / "videos" / name)
    assert run("embed", links, "--weights", indexed / "weights", "--out", tmp_path / "out") == 0
    served = Served(tmp_path / "out")
    try:
        assert all(served.ask(f"/media/{served.row(id)}")[0] == 200 for id in ("v00", "v01", "k", "frames"))
        for name in ("v00.mp4", "0.tar", "frames"):
            (links / name).unlink()
            (links / name).symlink_to(other / name)
        for id in ("v00", "k", "frames"):
            status, _, body = served.ask(f"/media/{served.row(id)}")
            assert status == 404 and "as when it was embedded" in json.loads(body)["error"]
        assert served.ask(f"/media/{served.row('v01')}")[0] == 200
        (links / "v00.mp4").unlink()
        (links / "v00.mp4").symlink_to(indexed / "videos" / "v00.mp4")
        assert served.ask(f"/media/{served.row('v00')}")[0] == 200
    finally:
        served.close()


SMALL_DISK = """
set -e
mount -t tmpfs -o size=64k none "$TMPDIR"
exec "$@"
"""


@pytest.mark.fault(
    "search --serve: the folder of temporary files is full (a small tmpfs)",
    sees="507 and `No space left`; no traceback",
    keeps="the server; a smaller clip is answered",
)
@pytest.mark.thorough
def test_a_full_disk_is_a_sentence(indexed, tmp_path, disks):  # noqa: F811
    small = (indexed / "videos" / "v00.mp4").read_bytes()
    line = [
        sys.executable,
        "-u",
        "-m",
        "clipvip_lib.cli",
        "search",
        "--in",
        str(indexed / "out"),
        "--serve",
        "0",
    ]
    command = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", *line]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            port = int(re.match(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())[1])
            for clip, expected in ((bytes(2**20), 507), (small, 200), (bytes(2**20), 507)):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience.STILL)
                connection.request("POST", "/api/search", clip)
                answer = connection.getresponse()
                body = json.loads(answer.read())
                connection.close()
                assert answer.status == expected
                assert expected == 200 or ("No space left" in body["error"] and "TMPDIR" in body["error"])
            process.send_signal(signal.SIGTERM)
            _, err = patience.wait(process)
        finally:
            patience.kill(process.pid)
    assert process.returncode == 0 and "no longer at" in err and "Traceback" not in err, err
