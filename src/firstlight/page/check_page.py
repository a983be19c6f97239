"""The findings of a folder check as one HTML file, with the pictures side by side."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.data.check import Check
from firstlight.data.findings import Finding
from firstlight.data.folder import listed
from firstlight.data.folder_picture import quiet
from firstlight.data.whole_pictures import small_jpeg
from firstlight.errors import InputError, printable
from firstlight.page.page import templates
from firstlight.record.run_folder import write_atomic

MARK = "Firstlight check"
"""What stands in the title of every such page."""

_SIDE = 160  # pixels of the longer side
_GROUPS = 24
_IN_A_GROUP = 6
_NAMES = 500


@dataclass(frozen=True)
class Shown:
    """A picture as the page shows it. uri: empty where there is no picture to show."""

    name: str
    label: str
    part: str
    uri: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Section:
    """A finding with the pictures of its first groups.

    rest: names of further groups. more: how many follow these.
    is_beside: whether the pictures of a group belong side by side.
    """

    id: str
    finding: Finding
    groups: list[tuple[list[Shown], int]]
    is_beside: bool
    rest: list[str]
    more: int


def write_check_page(result: Check, path: Path) -> None:
    """Write the page of a check; the pictures that it shows are read again, small.

    Raises OSError where it cannot be written.
    """
    text = (
        templates()
        .get_template("check.html")
        .render(
            check=result,
            sections=_sections(result),
            mark=MARK,
            name=printable(Path(result.path).resolve().name),
        )
    )
    write_atomic(path, text)


def _sections(result: Check) -> list[Section]:
    wanted = {name for finding in result.findings for group in finding.groups[:_GROUPS] for name in group}
    try:
        with listed(Path(result.path).expanduser()) as listing, quiet():
            pictures = {each.name: each for each in listing.pictures if each.name in wanted}
            shown: dict[str, Shown] = {}
            return [
                _section(number, finding, pictures, shown) for number, finding in enumerate(result.findings)
            ]
    except InputError:  # what stopped the listing is the finding
        return [_section(number, finding, {}, {}) for number, finding in enumerate(result.findings)]


def _section(number: int, finding: Finding, pictures: Mapping[str, Any], shown: dict[str, Shown]) -> Section:
    groups = []
    is_read = finding.kind not in ("unreadable", "left out")
    for group in finding.groups[:_GROUPS]:
        for name in group[:_IN_A_GROUP]:
            if name not in shown or not is_read:
                shown[name] = _shown(name, pictures.get(name) if is_read else None)
        groups.append(([shown[name] for name in group[:_IN_A_GROUP]], max(0, len(group) - _IN_A_GROUP)))
    rest = [" = ".join(map(printable, group)) for group in finding.groups[_GROUPS:]]
    return Section(
        f"finding-{number}", finding, groups, any(len(group) > 1 for group in finding.groups),
        rest[:_NAMES], max(0, len(rest) - _NAMES),
    )  # fmt: skip


def _shown(name: str, picture: Any) -> Shown:
    if picture is None:
        return Shown(printable(name), "", "", "")
    try:
        data, size = small_jpeg(picture.path, _SIDE)
    except InputError:
        return Shown(printable(name), picture.label, picture.part, "")
    uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return Shown(printable(name), picture.label, picture.part, uri, *size)
