"""The folder check: what is wrong with a person's pictures, before anything is trained on them."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firstlight.data.check_copies import copies
from firstlight.data.check_pictures import cut_away, odd_pictures, unreadable
from firstlight.data.findings import Finding, each
from firstlight.data.folder import is_folder, listed
from firstlight.data.folder_files import Listing, classes_of
from firstlight.data.folder_pixels import read_pixels
from firstlight.data.names import several
from firstlight.data.near_duplicates import SIDE
from firstlight.data.picture_facts import facts_of
from firstlight.errors import InputError, printable

_TINY = 10  # images of a class
_IMBALANCE = 10  # times as many images in the largest class as in the smallest
_EMPTY = "a folder without pictures"


@dataclass(frozen=True)
class Check:
    """What a folder holds, and what was found in it, the most serious first.

    cut: share of the average readable picture that fit=crop would cut away.
    page: path of the page that shows the findings, None where none was written.
    """

    path: str
    counts: dict[str, int]
    findings: tuple[Finding, ...]
    cut: float = 0.0
    page: str | None = None

    @property
    def is_wrong(self) -> bool:
        return any(finding.is_wrong for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        return asdict(self)


def check(path: str | Path) -> Check:
    """Look at every picture of a folder, a table or an archive; nothing is written beside them.

    What stops training altogether, such as a folder without classes, is the only finding then.
    Raises InputError where `path` is no folder, table or archive.
    """
    if not os.fspath(path):
        raise InputError("no folder of pictures was given", "Give it: firstlight check FOLDER.")
    root = Path(path).expanduser()
    if not root.exists():
        raise InputError(f"there is no folder or file {printable(root)}")
    try:
        with listed(root) as listing:
            return _checked(root, listing)
    except InputError as error:
        if not is_folder(root):
            raise
        message = error.message.removeprefix(f"{printable(root)}: ").removeprefix(f"{printable(root)} ")
        return Check(os.fspath(root), {}, (Finding("no training set", (), message, error.hint),))


def _checked(root: Path, listing: Listing) -> Check:
    pictures = listing.pictures
    with tempfile.TemporaryDirectory() as folder:
        pixels = read_pixels(pictures, SIDE, "stretch", Path(folder))
        facts = facts_of(pictures)
        counts = Counter(picture.label for picture in pictures)
        good = [index for index, reason in enumerate(pixels.reasons) if not reason]
        findings = [
            *unreadable(pictures, facts, pixels.reasons),
            *copies(pictures, facts, pixels, good),
            *_classes(listing, counts, Counter(pictures[index].label for index in good)),
            *odd_pictures(pictures, facts, pixels, good),
            *_left_out(listing),
        ]
    sizes = [cut_away(facts[index]) for index in good if min(facts[index].size)]
    findings.sort(key=lambda finding: not finding.is_wrong)
    numbers = {label: counts[label] for label in classes_of(pictures)}
    return Check(os.fspath(root), numbers, tuple(findings), sum(sizes) / len(sizes) if sizes else 0.0)


def _classes(listing: Listing, counts: Mapping[str, int], readable: Mapping[str, int]) -> Iterator[Finding]:
    """Find what is wrong with classes. counts: of files; readable: of pictures."""
    if empty := [skipped.name for skipped in listing.skipped if skipped.reason == _EMPTY]:
        advice = "Add pictures, or remove the folder."
        yield Finding("empty class", each(empty), "a class folder without pictures", advice)
    if broken := [label for label in counts if not readable.get(label)]:
        advice = "Mend the files or remove the class."
        yield Finding("unreadable class", each(broken), "no picture can be read", advice)
    twins: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        twins["".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    if pairs := tuple(tuple(sorted(labels)) for labels in twins.values() if len(labels) > 1):
        yield Finding("twin classes", pairs, "names that look the same", "Put them into one folder.")
    if any(picture.part for picture in listing.pictures):
        tested = {picture.label for picture in listing.pictures if picture.part == "test"}
        if missing := [label for label in counts if label not in tested]:
            yield Finding("not in test", each(missing), "no test image", "Add test images of them.")
    if tiny := [label for label, count in counts.items() if count < _TINY]:
        yield Finding("tiny class", each(tiny), f"fewer than {_TINY} images", "Add pictures.", False)
    if max(counts.values()) >= _IMBALANCE * min(counts.values()):
        ends = (max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__))
        meaning = f"{counts[ends[0]]:,} images against {counts[ends[1]]:,}"
        yield Finding("imbalance", (ends,), meaning, "Add pictures of the rare class.", False)


def _left_out(listing: Listing) -> Iterator[Finding]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for skipped in listing.skipped:
        if skipped.reason != _EMPTY:
            reasons[skipped.reason].append(skipped.name)
    for reason, names in reasons.items():
        yield Finding("left out", each(names), reason, "Nothing, if this is meant.", False)
    for note in listing.notes:
        yield Finding("note", (), note, "Nothing, if this is meant.", False)


def lines(result: Check) -> Iterator[str]:
    """Give the table of findings and the advice, line by line."""
    cut = f"; fit=crop cuts away {result.cut:.0%} of the average picture" if result.cut >= 0.01 else ""
    total = f"{sum(result.counts.values()):,} files in {len(result.counts)} classes{cut}"
    yield f"{printable(result.path)}: {total if result.counts else 'nothing to train on'}"
    for finding in result.findings:
        names = [" = ".join(map(printable, group[:3])) for group in finding.groups]
        shown = f": {several(names, 3)}" if names else ""
        number = f"{len(names):,}" if names else ""
        yield f"{'!' if finding.is_wrong else ' '} {finding.kind:16}{number:>6}  {finding.meaning}{shown}"
    for kind, advice in dict.fromkeys(
        (found.kind, found.advice) for found in result.findings if found.is_wrong
    ):
        yield f"{kind}: {advice}"
    if not result.findings:
        yield "nothing found"
    if result.page is not None:
        yield f"page: {printable(result.page)}"
