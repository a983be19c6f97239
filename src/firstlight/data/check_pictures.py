"""What a picture is by itself: unreadable, misnamed, blank, grey, small, long, or of a rare mode."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from firstlight.data.findings import Finding, each
from firstlight.data.folder_files import Picture
from firstlight.data.folder_pixels import Pixels
from firstlight.data.image_files import window
from firstlight.data.picture_facts import PictureFacts, has_wrong_suffix

_RARE = 0.2  # share of a class; above it, being grey or of one colour belongs to the class
_GREY = 3  # levels between the channels of a grey picture that was saved as JPEG
_SMALL = 4  # times smaller than the median of the shorter sides
_LONG = 3  # times as long as broad
_MUCH_CUT = 0.35  # of a picture; a photo of 3:2 loses a third

_MEND = "Mend or replace these files, or remove them."


def unreadable(
    pictures: Sequence[Picture], facts: Sequence[PictureFacts], reasons: Sequence[str]
) -> Iterator[Finding]:
    """Find files that the reader refuses, by reason, and say what to do for each kind of file."""
    bad: dict[tuple[str, str], list[str]] = defaultdict(list)
    for picture, fact, reason in zip(pictures, facts, reasons, strict=True):
        if reason:
            is_foreign = fact.kind is not None and not fact.kind.plugin
            # A hundred sizes are one reason.
            reason = re.sub(r"^\d+×\d+, \d+ (megapixels: the limit is)", r"too many \1", reason)
            bad[reason, fact.kind.hint if fact.kind and is_foreign else _MEND].append(picture.name)
    for (reason, advice), names in bad.items():
        yield Finding("unreadable", each(names), reason, advice)


def odd_pictures(
    pictures: Sequence[Picture], facts: Sequence[PictureFacts], pixels: Pixels, good: Sequence[int]
) -> Iterator[Finding]:
    """Find what is unusual about readable pictures; all of these are notes."""
    named: dict[str, list[str]] = defaultdict(list)
    for index in good:
        kind = facts[index].kind
        if kind is not None and has_wrong_suffix(pictures[index].name, kind):
            named[kind.name].append(pictures[index].name)
    for name, names in named.items():
        meaning = f"{name} by its first bytes, under another suffix"
        yield Finding("wrong suffix", each(names), meaning, "Rename, or leave it: it is read rightly.", False)
    thumbnails = pixels.thumbnails
    plain = [index for index in good if np.ptp(thumbnails[index], (1, 2)).max() == 0]
    colours = [index for index in good if index not in {*plain}]
    grey = [index for index in colours if _is_grey(thumbnails[index])]
    sides = {index: facts[index].size for index in good if min(facts[index].size)}
    middle = statistics.median(map(min, sides.values())) if sides else 0
    lengths = {index: max(size) / min(size) for index, size in sides.items()}
    usual = statistics.median(lengths.values()) if lengths else 1
    turned = [index for index in good if facts[index].turn > 1]
    for word, indices, meaning, advice in (
        ("blank", _rare(plain, pictures, good), "one colour all over, on white where it is transparent",
         "See whether this is meant."),
        ("grey", _rare(grey, pictures, colours), "greyscale among colour",
         "See whether the network may use colour as a hint."),
        ("odd size", [index for index, size in sides.items() if min(size) * _SMALL < middle],
         f"less than a quarter of the median shorter side, {middle:g} pixels", "Replace by larger ones."),
        ("odd shape", [index for index, length in lengths.items() if length > max(_LONG, 2 * usual)],
         f"more than {_LONG} times as long as broad", "Cut out what matters."),
        ("cut by crop", [index for index in sides if cut_away(facts[index]) > _MUCH_CUT],
         "fit=crop cuts away more than a third of each", "--set fit=pad keeps the whole picture."),
        ("16-bit", [index for index in good if facts[index].is_16_bit],
         "16-bit values, brought to 8 bits", "Nothing, if the picture is not too dark."),
        ("transparent", [index for index in good if facts[index].may_be_transparent],
         "an opacity channel or a transparent colour, laid on white", "Nothing, if white is a good ground."),
        ("CMYK", [index for index in good if facts[index].is_cmyk],
         "in inks, brought to RGB without a colour profile", "Save as RGB where the colours matter."),
        ("EXIF turn", turned, "turned upright by EXIF", "Nothing: they are read upright."),
    ):  # fmt: skip
        if indices:
            yield Finding(word, each(pictures[index].name for index in indices), meaning, advice, False)


def cut_away(facts: PictureFacts) -> float:
    """Return the share of a picture that its central square leaves out."""
    part = window(facts.size, (1, 1), "crop")
    return 1 - part.width * part.height


def _is_grey(thumbnail: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bool:
    return int(np.ptp(thumbnail.astype(np.int16), 0).max()) <= _GREY


def _rare(found: Sequence[int], pictures: Sequence[Picture], among: Sequence[int]) -> list[int]:
    """Return those indices whose class is otherwise not so."""
    counts = Counter(pictures[index].label for index in found)
    totals = Counter(pictures[index].label for index in among)
    return [
        index for index in found if counts[pictures[index].label] <= _RARE * totals[pictures[index].label]
    ]
