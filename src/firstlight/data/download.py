"""Bringing one known file here from the first of several sources that is alive, honest and not too slow."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from firstlight.errors import InputError

if TYPE_CHECKING:
    from requests import Response

_GZIP = b"\x1f\x8b"
_TIMEOUT = (5.0, 20.0)  # seconds to connect, and without a single byte
_CHUNK = 4096  # small, because the floor is looked at once a chunk
_RESUMES = 8


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors publish it; `md5` is None where they give none."""

    name: str
    size: int
    md5: str | None


@dataclass(frozen=True)
class Mirror:
    """A place that serves the very bytes of `file`."""

    url: str
    file: PublishedFile


@dataclass(frozen=True)
class Floor:
    """The least speed, averaged over a number of seconds, at which a source is kept."""

    bytes_per_second: float = 200_000
    seconds: float = 20


class DownloadFailed(Exception):
    """No source gave the file; the text says why, source by source."""


class _Refused(Exception):
    """The source does not have the file, or sends something else."""


class _TooSlow(Exception):
    def __init__(self, speed: float) -> None:
        super().__init__(f"only {speed / 1000:.0f} kB/s")
        self.speed = speed


def md5_of(path: Path) -> str:
    """Return the file's MD5 sum in hexadecimal."""
    from pooch import file_hash

    return str(file_hash(str(path), alg="md5"))


def check_file(path: Path, published: PublishedFile) -> None:
    """Raise InputError, naming the file, unless it has the published size and MD5 sum."""
    hint = f"Take {published.name} from its publisher again, or unpack the archive again."
    if not path.is_file():
        raise InputError(f"{path} is missing", hint)
    try:
        size = path.stat().st_size
        if size != published.size:
            state = "cut short" if size < published.size else "altered"
            raise InputError(f"{path} is {state}: {size:,} bytes in place of {published.size:,}", hint)
        if published.md5 is not None and md5_of(path) != published.md5:
            raise InputError(f"{path} is altered: its MD5 sum is not the published {published.md5}", hint)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}", "Check its permissions."
        ) from error


class _Part:
    """The unfinished file, which takes a source's bytes and looks at them as they come."""

    def __init__(
        self, file: BinaryIO, source: Mirror, floor: Floor | None, clock: Callable[[], float]
    ) -> None:
        from tqdm import tqdm

        self._file, self._source, self._floor, self._clock = file, source, floor, clock
        self._offset = self._start = file.seek(0, 2)
        self._since, self._arrived = clock(), 0
        self._response: Response | None = None
        host = urlsplit(source.url).hostname
        self.progress = tqdm(
            desc=f"{source.file.name} from {host}",
            total=source.file.size,
            initial=self._offset,
            unit="B",
            unit_scale=True,
            mininterval=1,
            leave=False,
        )

    def begin(self, response: Response, *_: object, **__: object) -> None:
        """Look at the answer before any of its body is kept."""
        self._response = response
        if response.status_code not in (200, 206):
            return  # a redirection, or an error that is raised for the status
        size = self._source.file.size
        if "html" in response.headers.get("Content-Type", ""):
            raise _Refused("a web page in place of the archive")
        if response.status_code == 206:
            stated = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not stated or int(stated[1]) != self._start or stated[2] not in (str(size), "*"):
                raise _Refused("it goes on in another place than asked")
            return
        length = response.headers.get("Content-Length", str(size))
        if length != str(size):
            raise _Refused(f"{length} bytes in place of {size:,}")
        # The source ignores ranges and sends everything again.
        self._file.truncate(0)
        self._offset = self._file.seek(0)
        self.progress.reset()

    def write(self, chunk: bytes) -> None:
        if self._offset == 0 and not chunk.startswith(_GZIP):
            raise _Refused("something else in place of the archive")
        if self._offset + len(chunk) > self._source.file.size:
            raise _Refused("more bytes than the archive has")
        try:
            self._file.write(chunk)
        except OSError as error:
            raise InputError(
                f"{self._file.name} cannot be written: {error.strerror or error}",
                "Make room, or set FIRSTLIGHT_CACHE to a folder that can be written.",
            ) from error
        self._offset += len(chunk)
        self._arrived += len(chunk)
        self.progress.update(len(chunk))
        if self._floor is None:
            return
        passed = self._clock() - self._since
        if passed >= self._floor.seconds:
            speed = self._arrived / passed
            if speed < self._floor.bytes_per_second:
                raise _TooSlow(speed)
            self._since, self._arrived = self._clock(), 0

    def close(self) -> None:
        """End the progress bar, and a connection that was given up half-way."""
        self.progress.close()
        if self._response is not None:
            self._response.close()

    def flush(self) -> None:
        """Do nothing: the downloader asks for it at every chunk, and closing the file is enough."""


def _stream(source: Mirror, part: Path, floor: Floor | None, clock: Callable[[], float]) -> None:
    """Append the source's bytes to `part`, from where it ends."""
    from pooch import HTTPDownloader

    with part.open("r+b" if part.exists() else "w+b") as file:
        sink = _Part(file, source, floor, clock)
        headers = {"Accept-Encoding": "identity", "User-Agent": "firstlight"}
        if start := file.tell():
            headers["Range"] = f"bytes={start}-"
        downloader = HTTPDownloader(
            chunk_size=_CHUNK, headers=headers, hooks={"response": sink.begin}, timeout=_TIMEOUT
        )
        try:
            downloader(source.url, sink, None)
        finally:
            sink.close()


def _fetch(source: Mirror, folder: Path, floor: Floor | None, clock: Callable[[], float]) -> Path:
    """Return the finished, verified file.

    Raises _Refused, _TooSlow or OSError, and leaves what came as a part for the next try.
    """
    size = source.file.size
    part, final = folder / f"{source.file.name}.part", folder / source.file.name
    trusted = False  # whether every byte of the part came from this source
    for _ in range(_RESUMES):
        before = part.stat().st_size if part.exists() else 0
        trusted = trusted or not before
        if before < size:
            try:
                _stream(source, part, floor, clock)
            except OSError:
                # Cut on the way: go on from there, unless nothing came at all.
                if not part.exists() or part.stat().st_size <= before:
                    raise
        after = part.stat().st_size
        if after < size:
            if after <= before:
                break
            continue
        if after == size and md5_of(part) == source.file.md5:
            part.replace(final)
            return final
        part.unlink()
        if trusted:
            raise _Refused("its bytes are not the published ones")
    raise _Refused("it was cut again and again")


def download(
    sources: Sequence[Mirror],
    folder: Path,
    *,
    floor: Floor | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Return a file of `sources` in `folder`, verified, from the first source that gives it fast enough.

    A part that an earlier try left is taken up. Where every source that answers is slow, the fastest is
    taken after all. Several processes may ask at once: one downloads, the others wait for it.

    Raises DownloadFailed where no source gives the file, InputError where it cannot be written.
    """
    from filelock import FileLock  # torch brings it

    lock = FileLock(folder / "download.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}",
            "Set FIRSTLIGHT_CACHE to a folder that can be written.",
        ) from error
    try:
        return _first(sources, folder, floor or Floor(), clock)
    finally:
        lock.release()


def _first(sources: Sequence[Mirror], folder: Path, floor: Floor, clock: Callable[[], float]) -> Path:
    for source in sources:
        here = folder / source.file.name
        if here.is_file() and md5_of(here) == source.file.md5:
            return here  # another process brought it while this one waited
    failures: list[str] = []
    slow: list[tuple[float, Mirror]] = []
    for source in sources:
        host = urlsplit(source.url).hostname
        try:
            return _fetch(source, folder, floor, clock)
        except _TooSlow as error:
            slow.append((error.speed, source))
            failures.append(f"{host}: {error}")
        except (_Refused, OSError) as error:
            failures.append(f"{host}: {_reason(error)}")
    for _, source in sorted(slow, key=lambda pair: -pair[0]):
        try:
            return _fetch(source, folder, None, clock)
        except (_Refused, OSError) as error:
            failures.append(f"{urlsplit(source.url).hostname}: {_reason(error)}")
    raise DownloadFailed("; ".join(failures))


def _reason(error: Exception) -> str:
    """Return a few words: what `requests` says of a dead connection fills five lines."""
    from requests import HTTPError, RequestException, Timeout

    if isinstance(error, HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, Timeout):
        return "no answer"
    return "no connection" if isinstance(error, RequestException) else str(error)
