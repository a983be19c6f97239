"""A file is downloaded from the first server that gives its very bytes, and each that does not is named."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from firstlight.data.download import DownloadFailed, Mirror, PublishedFile, check_file, download
from firstlight.errors import InputError

DATA = b"\x1f\x8b" + bytes(range(256)) * 200
FILE = PublishedFile("set.tar.gz", len(DATA), hashlib.md5(DATA).hexdigest())
BAD: dict[str, tuple[dict[str, Any], str]] = {
    # what the server answers, and the reason that we give
    "missing": ({"body": b"", "status": 404}, "HTTP 404"),
    "web_page": ({"body": b"<html>sign in first</html>"}, "not the published"),
    "other_bytes": ({"body": DATA[:-1] + b"!"}, "not the published"),
    "cut_short": ({"body": DATA[:20_000], "length": len(DATA)}, "ChunkedEncodingError"),
}
CLOSED = Mirror("http://127.0.0.1:9/set", FILE)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.requests.append(name)
        if name in BAD:
            self.answer(**BAD[name][0])
        elif name == "cut_once" and self.server.requests.count(name) == 1:
            self.answer(**BAD["cut_short"][0])
        elif "gzip" in self.headers.get("Accept-Encoding", ""):
            self.answer(gzip.compress(DATA), encoding="gzip")
        else:
            self.answer(DATA)

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
        self.requests: list[str] = []

    def mirrors(self, *names: str) -> list[Mirror]:
        return [Mirror(f"http://127.0.0.1:{self.server_port}/{name}", FILE) for name in names]


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


def test_several_at_once_download_once_from_the_first_mirror(server: Server, tmp_path: Path) -> None:
    mirrors, folder = server.mirrors("good", "other_bytes"), tmp_path / "new" / "cache"
    with ThreadPoolExecutor(4) as pool:
        for path in pool.map(lambda _: download(mirrors, folder), range(4)):
            assert_whole(path, folder)
    assert server.requests == ["good"]


@pytest.mark.parametrize("content", [b"", b"nonsense", DATA[:100], DATA + b"more"])
def test_a_wrong_file_under_the_final_name_is_replaced(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / FILE.name).write_bytes(content)
    assert_whole(download(server.mirrors("good"), tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("mirror", "requests"), [*((bad, [bad, bad, "good"]) for bad in BAD), ("cut_once", ["cut_once"] * 2)]
)
def test_a_mirror_that_sends_something_else_is_tried_again_and_then_left(
    server: Server, tmp_path: Path, mirror: str, requests: list[str]
) -> None:
    assert_whole(download([CLOSED, *server.mirrors(mirror, "good")], tmp_path), tmp_path)
    assert server.requests == requests


def test_when_every_mirror_fails_each_is_named_with_its_reason(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed) as caught:
        download([CLOSED, *server.mirrors(*BAD)], tmp_path)
    reasons = ("ConnectionError", *(reason for _, reason in BAD.values()))
    for part, reason in zip(str(caught.value).split("; "), reasons, strict=True):
        assert part.startswith("127.0.0.1: ") and reason in part
    assert [file.name for file in tmp_path.iterdir()] == ["download.lock"]


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file.*cannot be written"):
        download([CLOSED], tmp_path / "file" / "cache")


def test_check_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(InputError, match="set is missing"):
        check_file(path, FILE)
    wrong = {DATA[:-1]: "cut short", DATA + b"!": "altered", DATA[:-1] + b"!": "altered: its MD5"}
    for content, message in wrong.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            check_file(path, FILE)
    path.write_bytes(DATA)
    check_file(path, FILE)
