"""Check a folder of pictures, and write the page that shows what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from firstlight.data import check as folder_check
from firstlight.data.check import Check
from firstlight.data.names import printable_stem
from firstlight.errors import InputError, printable
from firstlight.page.check_page import MARK, write_check_page
from firstlight.record.run_folder import ROOT

_HEAD = 4096


def check(photos: str | Path, *, out: str | Path | None = None) -> Check:
    """Look at every picture of a folder, a table or an archive, and write a page of the findings.

    out: the page; else runs/check-NAME/check.html, which is left away where it would lie among the pictures
    or cannot be written. An earlier page of a check is replaced.
    Raises InputError where `photos` is no folder, table or archive, and where `out` is another file, lies
    among the pictures or cannot be written.
    """
    root = Path(photos).expanduser()
    page = (
        Path(out).expanduser() if out is not None else ROOT / f"check-{printable_stem(root)}" / "check.html"
    )
    is_among = root.is_dir() and page.resolve().is_relative_to(root.resolve())
    if out is not None:
        _check_free(page, is_among)
    result = folder_check.check(photos)
    if is_among:
        return result
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_check_page(result, page)
    except OSError as error:
        if out is None:
            return result
        raise InputError(
            f"cannot write {printable(page)}: {printable(error.strerror or error)}", "Choose another --out."
        ) from None
    return replace(result, page=str(page))


def _check_free(page: Path, is_among: bool) -> None:
    if is_among:
        raise InputError(
            f"{printable(page)} would lie among the pictures", "Choose --out outside the folder of pictures."
        )
    if page.is_dir():
        raise InputError(f"{printable(page)} is a folder", "Give a file, such as --out check.html.")
    if page.exists() and MARK.encode() not in _head(page):
        raise InputError(
            f"{printable(page)} exists already and is no page of a check", "Choose another --out."
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
