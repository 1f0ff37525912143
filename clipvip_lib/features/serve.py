"""`clipvip search --serve`: search in a browser, by one model that stays loaded.

What is served: the page, answers to searches, and the videos of rows, by the row's number; no name of a file is ever
taken from a request. Other pages in the same browser cannot use the server: the Host header must be one of its own
(a name that was rebound to this machine is another), requests that a browser says come from elsewhere are refused, and
no answer allows another origin. An address that other machines can reach needs a token.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.media import Media, Place, copy
from clipvip_lib.features.search_page import fragment, items, page, policy, queries_of
from clipvip_lib.say import counted, say, shown

PORT = 8000
MOST_TOP = 200
MOST_BYTES = 2**30  # of a clip that is sent to be looked for
IDLE_SECONDS = 60  # for a request's head, and between two
SLOWEST = 2**16  # bytes a second of a clip that is sent
READ_ON_SECONDS = 2
END_SECONDS = 2  # that all who are still answered have when the server ends
MOST_UPLOADS = 4  # clips received at a time: each may take MOST_BYTES of the disk
MOST_THREADS = 500  # each connection has one
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Address:
    """host: as given; ip: what it stands for; port: 0 is any free one."""

    host: str
    ip: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.ip).is_loopback


def address_of(text: str) -> Address:
    """``HOST:PORT``, ``PORT`` or ``HOST``. Raises ClipVipError for what is neither, or not an address."""
    match = re.fullmatch(
        r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):)?(\d{1,99})|(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)", text
    )
    host, port = (match[1] or match[3] or "127.0.0.1", int(match[2] or PORT)) if match else ("", 65536)
    if port > 65535:
        raise ClipVipError(
            f"--serve expected HOST:PORT or PORT (below 65536), such as 127.0.0.1:{PORT}, got {text!r}; texts to look "
            "for stand before --serve"
        )
    try:
        ip = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError) as error:
        raise ClipVipError(
            f"--serve expected the address of this machine, such as 127.0.0.1, got {host!r} ({error}); correct it"
        ) from error
    return Address(host.lower(), str(ip), port)


def check_token(address: Address, token: str | None) -> None:
    """Raises ClipVipError for a token that is too short or odd, or none where other machines reach the server."""
    if token is not None and not TOKEN.fullmatch(token):
        raise ClipVipError(
            "--token expected 16 or more letters, digits, - and _, got something else; leave the word out, and one is "
            "made"
        )
    if token is None and not address.is_loopback:
        raise ClipVipError(
            f"other machines reach {address.host}: expected --token beside it, which makes one; add it, or serve on "
            "127.0.0.1"
        )


class Server(ThreadingHTTPServer):
    """Bound at once, so that a taken port is told before a model is loaded; `answer_with` begins to answer.

    Raises ClipVipError if the address is taken or not of this machine.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: Address, token: str | None = None) -> None:
        check_token(address, token)
        self.address_family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
        self.address, self.token, self.answered = address, token, 0
        try:
            super().__init__((address.ip, address.port), Handler)
        except OSError as error:
            raise ClipVipError(
                f"cannot serve on {address.host}:{address.port} ({error.strerror}): expected a free port of this "
                "machine; name another one, or 0 for any"
            ) from error
        self.port = self.server_address[1]
        self.uploads = threading.BoundedSemaphore(MOST_UPLOADS)
        self.answering: dict[threading.Thread, socket.socket] = {}
        self.until: dict[socket.socket, float] = {}  # when what a client sends must be there
        self.cookie = f"clipvip-{self.port}"

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the network for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.address.host, self.server_address[1]

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        anywhere = ipaddress.ip_address(self.address.ip).is_unspecified
        host = socket.gethostname() if anywhere else self.address.host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def answer_with(self, searcher, found: list[dict], top: int) -> None:
        """Answer requests until Ctrl-C. found: answers that the page shows first."""
        self.searcher, self.media, self.top = searcher, Media(searcher.features), top
        self.found, self.busy = found, threading.Lock()
        try:
            self.serve_forever(poll_interval=0.2)
        finally:
            self.socket.close()
            # A thread that outlives the interpreter may abort the process, torch being loaded.
            answering, until = list(self.answering.items()), time.monotonic() + END_SECONDS
            for _, connection in answering:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread, _ in answering:
                thread.join(max(0, until - time.monotonic()))

    def process_request(self, request, client_address) -> None:
        if threading.active_count() > MOST_THREADS:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:
        self.answering[threading.current_thread()] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self.answering[threading.current_thread()]

    def service_actions(self) -> None:
        """What comes too slowly ends here; a limit on each read would let a client send a byte at a time for ever."""
        now = time.monotonic()
        for connection, until in list(self.until.items()):
            if now > until:
                self.until.pop(connection, None)
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)  # who reads finds the end

    def is_ours(self, host: str) -> bool:
        """Whether a request's Host is a name of this server. Its port is that of a tunnel, maybe."""
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = match[1].lower()
        if name in ("localhost", "127.0.0.1", "[::1]", self.address.host):
            return True
        if self.address.is_loopback:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))  # no name, so none that was rebound
        return name == socket.gethostname().lower()

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # the browser went away
            traceback.print_exc()


class Refused(Exception):
    """An error status and a sentence."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "clipvip", ""

    def setup(self) -> None:
        self.timeout = IDLE_SECONDS  # for one read, or one write of a piece to a client that does not read
        super().setup()

    def finish(self) -> None:
        self._expect_within(None)
        super().finish()

    def handle_one_request(self) -> None:
        self.begun = False
        self._expect_within(IDLE_SECONDS)
        super().handle_one_request()

    def parse_request(self) -> bool:
        # What service_actions cut off is not answered, even where it could be read as a request.
        if super().parse_request() and self.connection in self.server.until:
            return True
        self.close_connection = True
        return False

    def _expect_within(self, seconds: float | None) -> None:
        """Within these seconds the client must have sent what is read next; None: nothing is read."""
        if seconds is None:
            self.server.until.pop(self.connection, None)
        else:
            self.server.until[self.connection] = time.monotonic() + seconds

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, in the form of all other answers."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            told = f"expected GET, HEAD or POST, got {self.command[:20]}"
            self._say_no(Refused(HTTPStatus.METHOD_NOT_ALLOWED, told, Allow="GET, HEAD, POST"))
        elif code == HTTPStatus.REQUEST_URI_TOO_LONG:
            self._say_no(Refused(code, "this text is too long to look for; shorten it"))
        else:
            why = message or HTTPStatus(code).phrase
            self._say_no(Refused(code, f"expected a request of HTTP, got another ({why})"))

    def log_message(self, format: str, *arguments: object) -> None:
        pass  # a line for each piece of a video would hide what matters

    # ---- which requests are answered ----

    def _answer(self, answer) -> None:
        self._expect_within(None)
        path, _, query = self.path.partition("?")
        if self.command == "POST" or "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what is left of a body would be read as the next request
        try:
            self._check_sender()
            fields = self._fields(query)
            if self._let_in(path, fields):
                answer(path, fields)
        except Refused as refused:
            self._say_no(refused)
        except ClipVipError as error:
            self._say_no(Refused(400, str(error)))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            if self.begun:  # half an answer is on its way: another one would be taken for the rest of it
                self.close_connection = True
                say(f"clipvip: {self.path}: cut off ({error})", sys.stderr)
                return
            traceback.print_exc()
            self._say_no(Refused(500, "the server failed; its terminal says how"))

    def _check_sender(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.is_ours(hosts[0]):
            raise Refused(
                403, "expected the address that the server told as the Host of the request, got another"
            )
        origin = self.headers.get("Origin")
        foreign = origin is not None and origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}")
        site = self.headers.get("Sec-Fetch-Site", "none")
        from_link = self.headers.get("Sec-Fetch-Mode") == "navigate" and self.command == "GET"
        if foreign or (site not in ("none", "same-origin") and not from_link):
            raise Refused(403, "expected a request of the server's own page, got one of another page")

    def _fields(self, query: str) -> dict[str, str]:
        try:
            return {
                name: values[-1]
                for name, values in parse_qs(
                    query, keep_blank_values=True, max_num_fields=8, errors="strict"
                ).items()
            }
        except ValueError:
            raise Refused(
                400, "expected fields such as q=a+dog in UTF-8, got others; correct the address"
            ) from None

    def _let_in(self, path: str, fields: dict[str, str]) -> bool:
        """Whether to answer; a token in the address becomes a cookie, so that it is seen no longer."""
        token = self.server.token
        if token is None:
            return True
        if path == "/" and "token" in fields and _same(fields["token"], token):
            cookie = f"{self.server.cookie}={token}; Path=/; HttpOnly; SameSite=Lax"
            self._send(303, b"", "text/plain", {"Location": "/", "Set-Cookie": cookie})
            return False
        with contextlib.suppress(CookieError):
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
            if found is not None and _same(found.value, token):
                return True
        scheme, _, told = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(told, token):
            return True
        raise Refused(
            401,
            "expected the token that the server told: open the address from its terminal",
            **{"WWW-Authenticate": "Bearer"},
        )

    # ---- what they get ----

    def _get(self, path: str, fields: dict[str, str]) -> None:
        if path == "/":
            server = self.server
            shown_rows = items(server.media, server.found, _address)
            text = page(server.searcher.features, server.found, shown_rows, True, server.top)
            allowed = f"{policy(True)}; frame-ancestors 'none'"
            self._send(200, text.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": allowed})
        elif path == "/api/search":
            self._search(fields)
        elif match := re.fullmatch(r"/media/(\d{1,15})", path, re.ASCII):
            self._media(int(match[1]))
        else:
            raise Refused(404, "nothing is here: expected /, /api/search or /media/ROW")

    def _post(self, path: str, fields: dict[str, str]) -> None:
        if path != "/api/search":
            raise Refused(404, "nothing is here: expected a clip, sent to /api/search")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,15}", length, re.ASCII):
            raise Refused(411, "expected a clip and its Content-Length, got none")
        if not int(length):
            raise Refused(400, "the clip is empty: expected a video; choose another file")
        if int(length) > MOST_BYTES:
            raise Refused(
                413,
                f"expected a clip of at most {MOST_BYTES} bytes, got {int(length)}; cut out the part you mean",
            )
        if not self.server.uploads.acquire(blocking=False):
            raise Refused(
                503,
                f"{MOST_UPLOADS} clips are being sent: expected fewer at a time; send it again",
                **{"Retry-After": "5"},
            )
        try:
            self._search_clip(int(length), {name: fields[name] for name in ("name", "top") if name in fields})
        finally:
            self.server.uploads.release()

    def _search_clip(self, length: int, fields: dict[str, str]) -> None:
        with contextlib.ExitStack() as stack:
            try:
                # Unbuffered: what a full disk did not take would be tried again when the file is closed.
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="clipvip-", buffering=0))
                self._receive(length, file)
            except (ConnectionError, TimeoutError):
                raise
            except OSError as error:
                raise Refused(
                    507,
                    f"the server cannot keep the clip ({error.strerror or error}): expected room for {length} bytes in "
                    "its folder of temporary files; free some, or start it with another one in TMPDIR",
                ) from error
            self._search(fields, Path(file.name))

    def _receive(self, length: int, file) -> None:
        self._expect_within(IDLE_SECONDS + length / SLOWEST)
        try:
            copy_in(self.rfile, length, file)
        except ConnectionAbortedError:
            if self.connection in self.server.until:
                raise
            raise Refused(408, f"expected the clip at {SLOWEST} bytes a second, it came slower") from None
        finally:
            self._expect_within(None)

    def _search(self, fields: dict[str, str], clip: Path | None = None) -> None:
        server, start = self.server, time.perf_counter()
        top, name = (
            _number(fields.get("top", str(min(server.top, MOST_TOP))), "top", 1, MOST_TOP),
            fields.get("name", "clip"),
        )
        with server.busy:  # the model takes one question at a time
            if clip is not None:
                try:
                    (query,) = server.searcher.answer(videos=[clip], top=top)
                except ClipVipError as error:
                    raise ClipVipError(str(error).replace(str(clip), name)) from error
                query["video"] = name
            elif "like" in fields:
                row = _number(fields["like"], "like", 0, len(server.searcher.features) - 1)
                query = {
                    "text": f"Like {server.searcher.features.row(row)['id']}",
                    "results": server.searcher.near(row, top),
                }
            else:
                (query,) = server.searcher.answer([fields.get("q", "")], top=top)
            server.answered += 1
        query["seconds"] = round(time.perf_counter() - start, 4)
        rows = items(server.media, [query], _address)
        body = json.dumps(
            {"queries": queries_of([query]), "items": rows}, ensure_ascii=False, allow_nan=False
        )
        self._send(200, body.encode(), "application/json", {})

    def _media(self, row: int) -> None:
        try:
            place = self.server.media.place(row)
            with place.open() as (file, start, length, state):
                self._send_part(place, file, start, length, f'"{state}"')
        except ClipVipError as error:
            raise Refused(404, str(error)) from error

    def _send_part(self, place: Place, file, start: int, length: int, tag: str) -> None:
        headers = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, no-cache"}
        if self.headers.get("If-None-Match") == tag:
            self._head(304, headers)
            return
        part, status = None, 200
        if self.headers.get("If-Range", tag) == tag:
            part = wanted_part(self.headers.get("Range", ""), length)
        if part is not None:
            begin, end = part
            status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{length}"
        else:
            begin, end = 0, length
        headers |= {"Content-Type": place.type, "Content-Length": str(end - begin)}
        self._head(status, headers)
        if self.command != "HEAD":
            copy(file, start + begin, end - begin, self.wfile.write)

    # ---- how they get it ----

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        fixed = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in (fixed | headers).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.begun = True
        self.end_headers()

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        about = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        self._head(status, about | headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _say_no(self, refused: Refused) -> None:
        body = json.dumps({"error": shown(str(refused))}, ensure_ascii=False).encode()
        with contextlib.suppress(OSError):
            self._send(refused.status, body, "application/json", refused.headers)
            if self.close_connection and self.command != "GET":
                self._read_on()

    def _read_on(self) -> None:
        """Closed with a body unread, a connection is reset, and the client may never see why it was refused."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(READ_ON_SECONDS)
        until = time.monotonic() + READ_ON_SECONDS
        while time.monotonic() < until and self.connection.recv(2**18):
            pass


def _address(row: int, place: Place, about: dict) -> tuple[str, str]:
    return f"media/{row}{'' if place.is_picture else fragment(about)}", ""


def _same(one: str, two: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), two.encode())


def _number(text: str, name: str, least: int, most: int) -> int:
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII) or not least <= int(text) <= most:
        raise Refused(400, f"expected {name} from {least} to {most}, got {text[:40]!r}; change it")
    return int(text)


def copy_in(body, length: int, file) -> None:
    """A request's body into an unbuffered file, piece by piece. Raises ConnectionError if it ends before."""
    while length:
        piece = body.read(min(length, 2**18))
        if not piece:
            raise ConnectionAbortedError("the clip was not sent to its end")
        length -= len(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[file.write(rest) :]


def wanted_part(text: str, length: int) -> tuple[int, int] | None:
    """The first byte and the one behind the last that a Range header asks for; None for all (RFC 9110, 14.2).

    Raises Refused (416) if none of them is there.
    """
    match = _RANGE.fullmatch(text.strip().lower())
    if match is None or match[0] == "bytes=-":
        return None  # another unit, several parts, or no range at all: the whole is a right answer
    first, last = (part.lstrip("0")[:18] or "0" if part else "" for part in match.groups())
    if not first:
        begin, end = max(0, length - int(last)), length
    else:
        begin, end = int(first), min(int(last) + 1, length) if last else length
        if last and int(last) < begin:
            return None
    if begin >= end:
        raise Refused(
            416, f"expected bytes below {length}, got {text[:60]}", **{"Content-Range": f"bytes */{length}"}
        )
    return begin, end


def serve(server: Server, searcher, found: list[dict], top: int) -> None:
    """Answer until Ctrl-C or SIGTERM, and tell when it begins and ends."""
    say(
        f"{server.url} searches {counted(len(searcher.features), 'row')} of {searcher.features.folder}; Ctrl-C ends it"
    )
    try:
        server.answer_with(searcher, found, top)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        answered = f"answered {counted(server.answered, 'question')}"
        say(f"clipvip: no longer at {server.address.host}:{server.port}; {answered}", sys.stderr)
