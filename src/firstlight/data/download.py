"""Download of one published file from the first mirror that gives it, verified by its MD5 sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from firstlight.errors import InputError

_TIMEOUT = (5.0, 20.0)  # seconds to connect, and without a single byte


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors publish it; `md5` is None where they give none."""

    name: str
    size: int
    md5: str | None


@dataclass(frozen=True)
class Mirror:
    """A server that has the very bytes of `file`."""

    url: str
    file: PublishedFile


class DownloadFailed(Exception):
    """No mirror gave the file; the text says why, mirror by mirror."""


def check_file(path: Path, published: PublishedFile) -> None:
    """Raise InputError, naming the file, unless it has the published size and MD5 sum."""
    from pooch import file_hash

    hint = f"Take {published.name} from its publisher again, or unpack the archive again."
    if not path.is_file():
        raise InputError(f"{path} is missing", hint)
    try:
        size = path.stat().st_size
        if size != published.size:
            state = "cut short" if size < published.size else "altered"
            raise InputError(f"{path} is {state}: {size:,} bytes in place of {published.size:,}", hint)
        if published.md5 is not None and file_hash(str(path), alg="md5") != published.md5:
            raise InputError(f"{path} is altered: its MD5 sum is not the published {published.md5}", hint)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}", "Check its permissions."
        ) from error


def download(mirrors: Sequence[Mirror], folder: Path) -> Path:
    """Return the file of the first mirror that gives it, verified, in `folder`.

    Several processes may ask at once: one downloads, the others wait and use its file.

    Raises DownloadFailed where no mirror gives the file, InputError where it cannot be written.
    """
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "download.lock"):
            return _download(mirrors, folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}",
            "Make room, or set FIRSTLIGHT_CACHE to a folder that can be written.",
        ) from error


def _download(mirrors: Sequence[Mirror], folder: Path) -> Path:
    import pooch
    from requests import RequestException

    # A server that packs the archive once more would have it unpacked on the way, and the sum would not fit.
    downloader = pooch.HTTPDownloader(
        progressbar=True, chunk_size=2**16, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
    )
    reasons = []
    for mirror in mirrors:
        name, md5 = mirror.file.name, f"md5:{mirror.file.md5}"
        files = pooch.create(folder, "", registry={name: md5}, urls={name: mirror.url}, retry_if_failed=1)
        try:
            return Path(files.fetch(name, downloader=downloader))
        except RequestException as error:  # its own text fills five lines
            status = None if error.response is None else error.response.status_code
            reason = type(error).__name__ if status is None else f"HTTP {status}"
        except ValueError:
            reason = "its bytes are not the published ones"
        reasons.append(f"{urlsplit(mirror.url).hostname}: {reason}")
    raise DownloadFailed("; ".join(reasons))
