"""Mirrors that misbehave: the second one helps out, in time, and nothing fills the disk or the memory."""

import gzip
import itertools
import os
import resource
import signal
import socket
import socketserver
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from urllib.parse import quote, unquote

from common import data
from common.program import clean_exit
from tests.faults.programs import Case, end, kill, start, too_much_memory, wrong_end

FLOOD = 60 * 2**20  # bytes after which the server stops: nobody needs to have waited for so many
BOMB = gzip.compress(bytes(2**22)) * 160  # 670 MB of zeros
AT_ONCE = 12  # programs that ask at the same time; most of them wait


def header(status: str = "200 OK", **fields: object) -> bytes:
    """Return the head of an answer."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode()


def behaviours(body: bytes) -> dict[str, Iterator]:
    """Return what servers send that have to give `body`: parts of an answer; a number is a rest of so many seconds."""
    n, flipped, forever = len(body), bytes([body[0] ^ 1]) + body[1:], itertools.repeat
    sized, chunk = header(Content_Length=n), b"10000\r\n" + b"x" * 65536 + b"\r\n"
    html = b"<!DOCTYPE html><title>Please log in to this network</title>"
    return {
        "good": [sized, body],
        "404": [header("404 Not Found", Content_Length=0)],
        "429": [header("429 Too Many Requests", Content_Length=0, Retry_After=3600)],
        "500": [header("500 Internal Server Error", Content_Length=n), body],
        "503": [header("503 Service Unavailable", Content_Length=0, Retry_After=3600)],
        "204": [header("204 No Content")],
        "206": [header("206 Partial Content", Content_Length=9, Content_Range=f"bytes 0-8/{n}"), body[:9]],
        "redirect loop": [header("302 Found", Location="loop", Content_Length=0)],
        "redirect to a closed port": [header("302 Found", Location="http://127.0.0.1:9/", Content_Length=0)],
        "redirect to a file": [header("302 Found", Location="file:///etc/passwd", Content_Length=0)],
        "redirect to nothing": [header("302 Found", Location="http://[", Content_Length=0)],
        "one bit wrong": [sized, flipped],
        "HTML with 200": [header(Content_Length=len(html), Content_Type="text/html"), html],
        "empty": [header(Content_Length=0)],
        "short body": [sized, body[: n // 2]],
        "short body, length unknown": [header(), body[: n // 2]],
        "one byte too long": [header(Content_Length=n + 1), body, b"x"],
        "too long, and says so": itertools.chain([header(Content_Length=10**12)], forever(b"x" * 65536)),
        "endless": itertools.chain([header(), body], forever(b"x" * 65536)),
        "endless chunks": itertools.chain([header(Transfer_Encoding="chunked")], forever(chunk)),
        "endless header": itertools.chain([b"HTTP/1.1 200 OK\r\n"], forever(b"X-Header: y\r\n" * 5000)),
        "a byte a second": itertools.chain([sized], *((body[i : i + 1], 1) for i in range(3600))),
        "a header's byte a second": itertools.chain(*((sized[i : i + 1], 1) for i in range(len(sized)))),
        "stall at once": [3600],
        "stall before the body": [sized, 3600],
        "stall in the body": [sized, body[: n // 2], 3600],
        "gzip bomb": [header(Content_Encoding="gzip", Content_Length=len(BOMB)), BOMB],
        "gzip that is none": [header(Content_Encoding="gzip", Content_Length=n), body],
        "broken chunks": [header(Transfer_Encoding="chunked"), b"zz\r\n" + body],
        "length that is no number": [header(Content_Length="many"), body[:-1]],
        "two lengths": [header(Content_Length=n).replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"), body[:-1]],
        "garbage for a status": [b"\x00\xff\x1b[31m nonsense\r\n\r\n"],
        "not HTTP": [b"220 ftp.example.org ready\r\n"],
        "closed at once": [],
        "reset": [sized, body[: n // 2], "reset"],
    }  # fmt: skip


def handler(body: bytes, folder: Path) -> type[socketserver.StreamRequestHandler]:
    """Return what answers requests, the first part of whose paths is the name of the behaviour."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            name, sent = unquote(self.rfile.readline().split(b"/")[1].decode()), 0
            while self.rfile.readline().strip():
                pass
            for part in behaviours(body)[name]:
                if part == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif isinstance(part, int):
                    time.sleep(part)
                else:
                    self.connection.sendall(part)
                    sent += len(part)
                if sent > FLOOD:
                    (folder / name).touch()
                    return

        def finish(self):
            self.connection.close()  # without a word, whatever is still in a buffer

    return Handler


class Server(socketserver.ThreadingTCPServer):
    """A server that does not mind when the other side goes away."""

    daemon_threads, request_queue_size = True, 100

    def handle_error(self, *_):
        pass


def cases(full: bool, rng: Random, folder: Path) -> Iterator[Case]:
    """Yield a case for each behaviour of the first mirror, with a good second one and with none."""
    body, limit = data.shakespeare().encode(), 100 if full else 20
    (folder / "floods").mkdir()
    names = list(behaviours(body))
    with Server(("127.0.0.1", 0), handler(body, folder / "floods")) as server:
        address, serving = f"http://127.0.0.1:{server.server_address[1]}/", start(server.serve_forever)
    try:
        for mirrors in ("it, then a good one", "no other"):
            alone = mirrors == "no other"
            asked = rng.sample(names[1:], 8) if alone and not full else names
            for group in (asked[i : i + AT_ONCE] for i in range(0, len(asked), AT_ONCE)):
                urls = {name: [f"{address}{quote(part)}/" for part in (name, "good")] for name in group}
                places = {name: folder / f"{mirrors} {name}" for name in group}
                fetches = {name: partial(fetch, urls[name][: 1 if alone else 2], places[name], full) for name in group}
                for name, process in {name: start(fetch) for name, fetch in fetches.items()}.items():
                    ended = end(process, limit)
                    lost = wrong_end(ended, (1,) if alone and name != "good" else (0,)) or too_much_memory(ended)
                    flood = f"took {FLOOD / 1e6:.0f} MB" if (folder / "floods" / name).exists() else ""
                    (folder / "floods" / name).unlink(missing_ok=True)
                    yield Case(name, f"mirrors: {mirrors}", lost or flood or left(places[name]))
    finally:
        kill([serving.pid])
        end(serving)


def fetch(mirrors: list[str], place: Path, patient: bool) -> None:
    """Fetch Tiny Shakespeare into a folder."""
    os.environ["RAMPUP_DATA"] = str(place)
    data.SHAKESPEARE_MIRRORS = mirrors
    if not patient:
        data.TIMEOUT = 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (FLOOD, FLOOD))  # a flood must not fill the disk
    signal.signal(signal.SIGXFSZ, lambda *_: (print("wrote without end", flush=True), os._exit(99)))
    with clean_exit():
        assert len(data.shakespeare()) == 1_115_394  # whose sha256 it has verified


def left(place: Path) -> str:
    """Return which files a download has left beside the one that was asked for."""
    names = {path.name for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"}
    return ", ".join(sorted(names - {"input.txt"})) and f"{len(names - {'input.txt'})} files were left"
