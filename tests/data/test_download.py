from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from firstlight.data.download import DownloadFailed, Floor, Mirror, PublishedFile, check_file, download
from firstlight.errors import InputError

DATA = b"\x1f\x8b" + bytes(range(256)) * 200
FILE = PublishedFile("set.tar.gz", len(DATA), hashlib.md5(DATA).hexdigest())
Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        try:
            self.server.behaviours[self.path](self)
        except ConnectionError:
            return  # the client gave this source up, as it should

    def answer(self, body: bytes, *, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, str | None]] = []

    def source(self, path: str, behaviour: Behaviour) -> Mirror:
        self.behaviours[path] = behaviour
        return Mirror(f"http://127.0.0.1:{self.server_port}{path}", FILE)


def good(handler: Handler) -> None:
    asked = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if not asked:
        return handler.answer(DATA)
    start = int(asked[1])
    span = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
    return handler.answer(DATA[start:], status=206, Content_Range=span)


def without_ranges(handler: Handler) -> None:
    handler.answer(DATA)


def web_page(handler: Handler) -> None:
    handler.answer(b"<html>sign in first</html>", Content_Type="text/html; charset=utf-8")


def disguised_page(handler: Handler) -> None:
    handler.answer(b"<html>".ljust(len(DATA)), Content_Type="application/x-gzip")


def other_bytes(handler: Handler) -> None:
    handler.answer(DATA[:-1] + b"!")


def other_length(handler: Handler) -> None:
    handler.answer(DATA + b"!")


def missing(handler: Handler) -> None:
    handler.answer(b"", status=404)


def wrong_range(handler: Handler) -> None:
    if handler.headers.get("Range"):
        return handler.answer(DATA[5:], status=206, Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}")
    return handler.answer(DATA)


class Cut:
    """A source that ends each answer after so many bytes."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, handler: Handler) -> None:
        asked = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        rest = DATA[start:]
        span = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        status, headers = (206, {"Content_Range": span}) if asked else (200, {})
        handler.answer(rest[: self.after], status=status, length=len(rest), **headers)


class Clock:
    """Seconds that pass only when a slow source lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, seconds: float) -> Behaviour:
        def answer(handler: Handler) -> None:
            self.now += seconds
            good(handler)

        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _dead() -> Mirror:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return Mirror(f"http://127.0.0.1:{unused.getsockname()[1]}/set", FILE)


def _assert_whole(path: Path, folder: Path) -> None:
    assert path == folder / FILE.name
    assert path.read_bytes() == DATA
    assert not list(folder.glob("*.part"))


def test_the_first_source_is_enough(server: Server, tmp_path: Path) -> None:
    sources = [server.source("/a", good), server.source("/b", good)]
    _assert_whole(download(sources, tmp_path / "new" / "cache"), tmp_path / "new" / "cache")
    assert server.asked == [("/a", None)]


def test_what_is_already_here_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_bytes(DATA)
    _assert_whole(download([server.source("/a", good)], tmp_path), tmp_path)
    assert server.asked == []


def test_a_damaged_file_under_the_final_name_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_bytes(DATA[:100])
    _assert_whole(download([server.source("/a", good)], tmp_path), tmp_path)


def test_a_cut_is_resumed_where_it_happened(server: Server, tmp_path: Path) -> None:
    _assert_whole(download([server.source("/a", Cut(20_000))], tmp_path), tmp_path)
    starts = [int(asked[6:-1]) if asked else 0 for _, asked in server.asked]
    assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) >= 3


def test_a_part_from_an_earlier_try_is_taken_up(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{FILE.name}.part").write_bytes(DATA[:30_000])
    _assert_whole(download([server.source("/a", good)], tmp_path), tmp_path)
    assert server.asked == [("/a", "bytes=30000-")]


@pytest.mark.parametrize(
    "part",
    [b"", b"nonsense", DATA[:-5] + b"wrong", DATA, DATA + b"more"],
    ids=["empty", "other", "altered", "whole", "long"],
)
@pytest.mark.parametrize("behaviour", [good, without_ranges])
def test_no_part_blocks_a_retry(server: Server, tmp_path: Path, part: bytes, behaviour: Behaviour) -> None:
    (tmp_path / f"{FILE.name}.part").write_bytes(part)
    _assert_whole(download([server.source("/a", behaviour)], tmp_path), tmp_path)


@pytest.mark.parametrize("bad", [web_page, disguised_page, other_bytes, other_length, missing])
def test_a_source_that_sends_something_else_is_left(server: Server, tmp_path: Path, bad: Behaviour) -> None:
    _assert_whole(download([server.source("/bad", bad), server.source("/b", good)], tmp_path), tmp_path)
    assert [path for path, _ in server.asked] == ["/bad", "/b"]


@pytest.mark.parametrize("bad", [web_page, missing, wrong_range])
def test_a_bad_source_leaves_the_part_to_the_next(server: Server, tmp_path: Path, bad: Behaviour) -> None:
    (tmp_path / f"{FILE.name}.part").write_bytes(DATA[:30_000])
    _assert_whole(download([server.source("/bad", bad), server.source("/b", good)], tmp_path), tmp_path)
    assert server.asked[-1] == ("/b", "bytes=30000-")


def test_a_dead_source_is_left(server: Server, tmp_path: Path) -> None:
    _assert_whole(download([_dead(), server.source("/b", good)], tmp_path), tmp_path)


def test_a_slow_source_is_left_and_its_bytes_are_kept(server: Server, tmp_path: Path) -> None:
    clock = Clock()
    sources = [server.source("/slow", clock.slow(100)), server.source("/fast", good)]
    _assert_whole(download(sources, tmp_path, floor=Floor(1000, 20), clock=clock), tmp_path)
    assert [path for path, _ in server.asked] == ["/slow", "/fast"]
    assert server.asked[1][1] is not None


def test_where_all_are_slow_the_fastest_is_taken(server: Server, tmp_path: Path) -> None:
    clock = Clock()
    sources = [server.source("/slow", clock.slow(900)), server.source("/less", clock.slow(100)), _dead()]
    _assert_whole(download(sources, tmp_path, floor=Floor(1000, 20), clock=clock), tmp_path)
    assert [path for path, _ in server.asked] == ["/slow", "/less", "/less"]


def test_a_slow_start_inside_the_window_is_forgiven(server: Server, tmp_path: Path) -> None:
    clock = Clock()
    sources = [server.source("/a", clock.slow(19)), server.source("/b", good)]
    _assert_whole(download(sources, tmp_path, floor=Floor(1000, 20), clock=clock), tmp_path)
    assert [path for path, _ in server.asked] == ["/a"]


def test_when_every_source_fails_each_is_named_with_its_reason(server: Server, tmp_path: Path) -> None:
    sources = [
        _dead(),
        server.source("/a", missing),
        server.source("/b", web_page),
        server.source("/c", other_bytes),
    ]
    with pytest.raises(DownloadFailed) as caught:
        download(sources, tmp_path)
    for reason in ("no connection", "HTTP 404", "web page", "not the published"):
        assert reason in str(caught.value)
    assert not (tmp_path / FILE.name).exists()


def test_several_at_once_download_once(server: Server, tmp_path: Path) -> None:
    source = server.source("/a", good)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(download([source], tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / FILE.name] * 4
    assert len(server.asked) == 1


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file.*cannot be written"):
        download([_dead()], tmp_path / "file" / "cache")


def test_check_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(InputError, match="set is missing"):
        check_file(path, FILE)
    path.write_bytes(DATA[:-1])
    with pytest.raises(InputError, match="cut short"):
        check_file(path, FILE)
    path.write_bytes(DATA + b"!")
    with pytest.raises(InputError, match="altered"):
        check_file(path, FILE)
    path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(InputError, match="altered: its MD5"):
        check_file(path, FILE)
    path.write_bytes(DATA)
    check_file(path, FILE)
