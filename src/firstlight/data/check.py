"""The folder check: what is wrong with a person's pictures, before anything is trained on them."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.data.folder import listed
from firstlight.data.folder_files import Listing, Picture, classes_of
from firstlight.data.folder_pixels import Pixels, read_pixels
from firstlight.data.names import several
from firstlight.data.near_duplicates import SIDE, near_groups
from firstlight.errors import InputError, printable

_TINY = 10  # images of a class
_IMBALANCE = 10  # times as many images in the largest class as in the smallest


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    groups: the files it is about, those that belong together in one group. is_wrong: or merely a note.
    """

    kind: str
    groups: tuple[tuple[str, ...], ...]
    meaning: str
    advice: str
    is_wrong: bool = True


@dataclass(frozen=True)
class Check:
    """What a folder holds, and what was found in it, the most serious first."""

    path: str
    counts: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def is_wrong(self) -> bool:
        return any(finding.is_wrong for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        return asdict(self)


def check(path: str | Path) -> Check:
    """Look at every picture of a folder, a table or an archive; nothing is written beside them.

    Raises InputError where `path` is none of these or holds no classes.
    """
    if not os.fspath(path):
        raise InputError("no folder of pictures was given", "Give it: firstlight check FOLDER.")
    root = Path(path).expanduser()
    if not root.exists():
        raise InputError(f"there is no folder or file {printable(root)}")
    with listed(root) as listing, tempfile.TemporaryDirectory() as folder:
        pixels = read_pixels(listing.pictures, SIDE, "stretch", Path(folder))
        counts = Counter(picture.label for picture in listing.pictures)
        numbers = {label: counts[label] for label in classes_of(listing.pictures)}
        findings = tuple(_findings(listing, pixels, dict(counts)))
    order = sorted(findings, key=lambda finding: not finding.is_wrong)
    return Check(os.fspath(root), numbers or dict(counts), tuple(order))


def _findings(listing: Listing, pixels: Pixels, counts: dict[str, int]) -> Iterator[Finding]:
    pictures = listing.pictures
    good = [index for index, reason in enumerate(pixels.reasons) if not reason]
    bad: dict[str, list[str]] = defaultdict(list)
    for picture, reason in zip(pictures, pixels.reasons, strict=True):
        if reason:
            bad[reason].append(picture.name)
    for reason, names in bad.items():
        yield Finding("unreadable", _each(names), reason, "Mend, convert or remove these files.")
    yield from _same(pictures, pixels, good)
    plain = [pictures[index].name for index in good if np.ptp(pixels.rows[index], (1, 2)).max() == 0]
    if plain:
        yield Finding(
            "blank",
            _each(plain),
            "one colour all over, on white where it is transparent",
            "See whether this is meant.",
            False,
        )
    twins: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        twins["".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    if pairs := tuple(tuple(sorted(labels)) for labels in twins.values() if len(labels) > 1):
        yield Finding("twin classes", pairs, "names that look the same", "Put them into one folder.")
    if any(picture.part for picture in pictures):
        tested = {picture.label for picture in pictures if picture.part == "test"}
        if missing := [label for label in counts if label not in tested]:
            yield Finding("not in test", _each(missing), "no test image", "Add test images of them.")
    if tiny := [label for label, count in counts.items() if count < _TINY]:
        yield Finding("tiny class", _each(tiny), f"fewer than {_TINY} images", "Add pictures.", False)
    if max(counts.values()) >= _IMBALANCE * min(counts.values()):
        ends = (max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__))
        meaning = f"{counts[ends[0]]:,} images against {counts[ends[1]]:,}"
        yield Finding("imbalance", (ends,), meaning, "Add pictures of the rare class.", False)
    reasons: dict[str, list[str]] = defaultdict(list)
    for skipped in listing.skipped:
        reasons[skipped.reason].append(skipped.name)
    for reason, names in reasons.items():
        yield Finding("left out", _each(names), reason, "Nothing, if this is meant.", False)
    for note in listing.notes:
        yield Finding("note", (), note, "Nothing, if this is meant.", False)


def _same(pictures: Sequence[Picture], pixels: Pixels, good: Sequence[int]) -> Iterator[Finding]:
    equal: dict[str, list[int]] = defaultdict(list)
    for index in good:
        equal[pixels.digests[index]].append(index)
    exact = [group for group in equal.values() if len(group) > 1]
    firsts = [group[0] for group in equal.values()]
    near = [[firsts[at] for at in group] for group in near_groups(pixels.rows[firsts])]
    whole = [[index for first in group for index in equal[pixels.digests[first]]] for group in near]
    joined = {index for group in whole for index in group}
    groups = whole + [group for group in exact if group[0] not in joined]
    labels = [group for group in groups if len({pictures[index].label for index in group}) > 1]
    sides = [group for group in groups if len({pictures[index].part == "test" for index in group}) > 1]
    for kind, found, meaning, advice, is_wrong in (
        ("two labels", labels, "the same picture in several classes", "Keep the right one.", True),
        ("train and test", sides, "the same picture on both sides", "Remove one of them.", True),
        ("exact duplicate", exact, "the same bytes", "Keep one of them.", True),
        ("near duplicate", near, "nearly the same pixels", "Keep one, or keep them on one side.", False),
    ):
        if found:
            names = tuple(tuple(pictures[index].name for index in group) for group in found)
            yield Finding(kind, names, meaning, advice, is_wrong)


def _each(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((name,) for name in names)


def lines(result: Check) -> Iterator[str]:
    """Give the table of findings and the advice, line by line."""
    yield f"{printable(result.path)}: {sum(result.counts.values()):,} files in {len(result.counts)} classes"
    for finding in result.findings:
        names = [" = ".join(map(printable, group[:3])) for group in finding.groups]
        shown = f": {several(names, 3)}" if names else ""
        number = f"{len(names):,}" if names else ""
        yield f"{'!' if finding.is_wrong else ' '} {finding.kind:16}{number:>6}  {finding.meaning}{shown}"
    for finding in result.findings:
        if finding.is_wrong:
            yield f"{finding.kind}: {finding.advice}"
    if not result.findings:
        yield "nothing found"
