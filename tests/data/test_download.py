from __future__ import annotations

import gzip
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from firstlight.data.download import DownloadFailed, Mirror, PublishedFile, check_file, download
from firstlight.errors import InputError

DATA = b"\x1f\x8b" + bytes(range(256)) * 200
FILE = PublishedFile("set.tar.gz", len(DATA), hashlib.md5(DATA).hexdigest())
Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.behaviours[self.path](self)

    def answer(self, body: bytes, *, status: int = 200, length: int = -1, encoding: str = "identity") -> None:
        self.send_response(status)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours: dict[str, Behaviour] = {}
        self.requests: list[str] = []

    def mirror(self, behaviour: Behaviour) -> Mirror:
        path = f"/{behaviour.__name__}"
        self.behaviours[path] = behaviour
        return Mirror(f"http://127.0.0.1:{self.server_port}{path}", FILE)


def good(handler: Handler) -> None:
    packed = "gzip" in handler.headers.get("Accept-Encoding", "")
    handler.answer(gzip.compress(DATA) if packed else DATA, encoding="gzip" if packed else "identity")


def web_page(handler: Handler) -> None:
    handler.answer(b"<html>sign in first</html>")


def other_bytes(handler: Handler) -> None:
    handler.answer(DATA[:-1] + b"!")


def cut_short(handler: Handler) -> None:
    handler.answer(DATA[:20_000], length=len(DATA))


def missing(handler: Handler) -> None:
    handler.answer(b"", status=404)


def cut_once(handler: Handler) -> None:
    (cut_short if handler.server.requests.count(handler.path) == 1 else good)(handler)


def closed_mirror() -> Mirror:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return Mirror(f"http://127.0.0.1:{unused.getsockname()[1]}/set", FILE)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # before a second try
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def assert_whole(path: Path, folder: Path) -> None:
    assert path == folder / FILE.name and path.read_bytes() == DATA
    assert {file.name for file in folder.iterdir()} <= {FILE.name, "download.lock"}


def test_the_first_mirror_is_enough(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    assert_whole(download([server.mirror(good), server.mirror(other_bytes)], folder), folder)
    assert_whole(download([server.mirror(good)], folder), folder)
    assert server.requests == ["/good"], "a file that is here is not asked for"


@pytest.mark.parametrize("content", [b"", b"nonsense", DATA[:100], DATA + b"more"])
def test_a_wrong_file_under_the_final_name_is_replaced(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / FILE.name).write_bytes(content)
    assert_whole(download([server.mirror(good)], tmp_path), tmp_path)


@pytest.mark.parametrize("bad", [web_page, other_bytes, cut_short, missing])
def test_a_mirror_that_sends_something_else_is_left(server: Server, tmp_path: Path, bad: Behaviour) -> None:
    assert_whole(download([closed_mirror(), server.mirror(bad), server.mirror(good)], tmp_path), tmp_path)
    assert server.requests == [f"/{bad.__name__}"] * 2 + ["/good"]


def test_a_connection_that_breaks_once_is_tried_again(server: Server, tmp_path: Path) -> None:
    assert_whole(download([server.mirror(cut_once), server.mirror(good)], tmp_path), tmp_path)
    assert server.requests == ["/cut_once"] * 2


def test_when_every_mirror_fails_each_is_named_with_its_reason(server: Server, tmp_path: Path) -> None:
    mirrors = [closed_mirror(), *map(server.mirror, (missing, web_page, cut_short))]
    with pytest.raises(DownloadFailed) as caught:
        download(mirrors, tmp_path)
    reasons = ("ConnectionError", "HTTP 404", "not the published", "ChunkedEncodingError")
    for part, reason in zip(str(caught.value).split("; "), reasons, strict=True):
        assert part.startswith("127.0.0.1: ") and reason in part
    assert [file.name for file in tmp_path.iterdir()] == ["download.lock"]


def test_several_at_once_download_once(server: Server, tmp_path: Path) -> None:
    mirror, paths = server.mirror(good), list[Path]()
    threads = [threading.Thread(target=lambda: paths.append(download([mirror], tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / FILE.name] * 4
    assert server.requests == ["/good"]


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file.*cannot be written"):
        download([closed_mirror()], tmp_path / "file" / "cache")


def test_check_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(InputError, match="set is missing"):
        check_file(path, FILE)
    for content, message in (
        (DATA[:-1], "cut short"),
        (DATA + b"!", "altered"),
        (DATA[:-1] + b"!", "altered: its MD5"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            check_file(path, FILE)
    path.write_bytes(DATA)
    check_file(path, FILE)
