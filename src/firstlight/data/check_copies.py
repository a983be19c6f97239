"""Copies among pictures: equal files, equal pixels, nearly equal pixels, and where they do harm."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from firstlight.data.findings import Finding
from firstlight.data.folder_files import Picture
from firstlight.data.folder_picture import quiet
from firstlight.data.folder_pixels import Pixels
from firstlight.data.image_files import open_upright
from firstlight.data.near_duplicates import Pair, groups_of, near_pairs
from firstlight.data.picture_facts import PictureFacts, untwisted
from firstlight.errors import InputError

# Between thumbnails of equal pixels, of which one was decoded at a part of its size.
_LEVELS = 2.0

_Groups = list[list[int]]


def copies(
    pictures: Sequence[Picture], facts: Sequence[PictureFacts], pixels: Pixels, good: Sequence[int]
) -> Iterator[Finding]:
    """Find copies among the pictures whose indices are `good`."""
    by_bytes: dict[str, list[int]] = defaultdict(list)
    for index in good:
        by_bytes[pixels.digests[index]].append(index)
    firsts = [group[0] for group in by_bytes.values()]
    same_bytes = [group for group in by_bytes.values() if len(group) > 1]
    pairs, laid = _pairs(facts, pixels, firsts)
    straight = [(pair.first, pair.second) for pair in pairs if not pair.is_mirrored]
    mirrored = [(pair.first, pair.second) for pair in pairs if pair.is_mirrored]
    same_pixels = _of_same_pixels(pictures, facts, pixels, firsts, straight)

    def label(index: int) -> str:
        return pictures[index].label

    exact = [pair for group in (*same_bytes, *same_pixels) for pair in pairwise(group)]
    # A mirror image in another class is no error: b and d, or an arrow to the left and one to the right.
    within = [(one, other) for one, other in mirrored if label(one) == label(other)]
    labels = [
        group for group in groups_of(len(pictures), [*exact, *straight]) if len({*map(label, group)}) > 1
    ]
    whole = groups_of(len(pictures), [*exact, *straight, *within])
    sides = [group for group in whole if len({pictures[index].part == "test" for index in group}) > 1]
    equal = {index: number for number, group in enumerate(groups_of(len(pictures), exact)) for index in group}
    different = [len({equal.get(index, -1 - index) for index in group}) for group in whole]
    near = [group for group, count in zip(whole, different, strict=True) if count == 2]
    bursts = [group for group, count in zip(whole, different, strict=True) if count > 2]
    across = [[one, other] for one, other in mirrored if label(one) != label(other)]
    keep = "Keep one of them."
    side = "Keep the best, or keep them on one side of a split: training without test folders does."
    for kind, found, meaning, advice, is_wrong in (
        ("two labels", labels, "the same picture in several classes", "Keep the right one.", True),
        ("train and test", sides, "the same picture on both sides", "Remove one of them.", True),
        ("exact duplicate", same_bytes, "the same bytes", keep, True),
        ("exact duplicate", same_pixels, "the same pixels in different files", keep, True),
        (
            "turned copy",
            laid,
            "the same picture, upright and as stored",
            "Remove what lies on its side.",
            True,
        ),
        ("near duplicate", near, "nearly the same pixels", side, False),
        ("burst", bursts, "three or more that are nearly the same", side, False),
        ("mirrored", across, "mirror images in different classes", "See whether this is meant.", False),
    ):
        if found:
            names = tuple(tuple(pictures[index].name for index in group) for group in found)
            yield Finding(kind, names, meaning, advice, is_wrong)


def _pairs(
    facts: Sequence[PictureFacts], pixels: Pixels, firsts: Sequence[int]
) -> tuple[list[Pair], _Groups]:
    """Return the near pairs, and pairs of which one is as the other would be without its turn."""
    turned = [index for index in firsts if facts[index].turn > 1]
    stored = [_stored(pixels, index, facts[index].turn) for index in turned]
    pairs, sideways = [], []
    indices = [*firsts, *turned]
    for pair in near_pairs(
        np.stack([*pixels.thumbnails[firsts], *stored]) if firsts else pixels.thumbnails[:0]
    ):
        one, other = indices[pair.first], indices[pair.second]
        if pair.second < len(firsts):
            pairs.append(Pair(one, other, pair.is_mirrored))
        elif pair.first < len(firsts) and one != other and not pair.is_mirrored:
            sideways.append((one, other))
    upright = {(pair.first, pair.second) for pair in pairs}
    laid = {(min(pair), max(pair)) for pair in sideways}
    return pairs, [list(pair) for pair in sorted(laid - upright)]


def _stored(pixels: Pixels, index: int, turn: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    upright = Image.fromarray(pixels.thumbnails[index].transpose(1, 2, 0))
    return np.asarray(untwisted(upright, turn)).transpose(2, 0, 1)


def _of_same_pixels(
    pictures: Sequence[Picture],
    facts: Sequence[PictureFacts],
    pixels: Pixels,
    firsts: Sequence[int],
    straight: Sequence[tuple[int, int]],
) -> _Groups:
    """Return groups of pictures of equal pixels, upright; only what could be equal is read again."""
    thumbnails: dict[bytes, list[int]] = defaultdict(list)
    for index in firsts:
        thumbnails[repr(facts[index].size).encode() + pixels.thumbnails[index].tobytes()].append(index)
    wanted = {index for group in thumbnails.values() if len(group) > 1 for index in group}
    for pair in straight:
        one, other = pixels.thumbnails[[*pair]].astype(np.float32)
        if facts[pair[0]].size == facts[pair[1]].size and np.abs(one - other).mean() < _LEVELS:
            wanted |= {*pair}
    groups: dict[str, list[int]] = defaultdict(list)
    with quiet():
        for index in sorted(wanted):
            try:
                picture = open_upright(pictures[index].path).convert("RGB")
            except InputError:  # it changed a moment ago
                continue
            digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
            groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]
