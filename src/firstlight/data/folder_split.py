"""The split of a set that nothing divides: stratified, and drawn from the pictures' names."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from firstlight.data.folder_files import Picture
from firstlight.data.names import composed, natural_key
from firstlight.data.near_duplicates import Bytes, groups_of, near_pairs

MOST_COMPARED = 100_000
"""Pictures among which near copies are looked for: the time grows with the square, to about a minute."""


def look_alikes(pictures: Sequence[Picture], digests: Sequence[str], thumbnails: Bytes) -> dict[str, str]:
    """Return a key by name of picture, the same for those that show the same: copies, near copies and bursts.

    digests: of each picture's bytes. thumbnails: uint8, N×3×32×32. A mirror image counts within its class
    only: b and d are different letters.
    """
    order = sorted(range(len(pictures)), key=lambda index: composed(pictures[index].name))
    firsts: dict[str, int] = {}
    for index in order:
        firsts.setdefault(digests[index], index)
    indices = list(firsts.values())
    joined = [
        (pair.first, pair.second)
        for pair in near_pairs(thumbnails[indices])
        if not pair.is_mirrored or pictures[indices[pair.first]].label == pictures[indices[pair.second]].label
    ]
    keys = {digest: digest for digest in firsts}
    for group in groups_of(len(indices), joined):
        keys.update((digests[indices[at]], digests[indices[group[0]]]) for at in group)
    return {picture.name: keys[digest] for picture, digest in zip(pictures, digests, strict=True)}


def held_out(
    pictures: Sequence[Picture],
    digests: Mapping[str, str],
    share: float,
    seed: int,
    alike: Mapping[str, str] | None = None,
) -> set[str]:
    """Return the names of the test images: about `share` of each class, and one at least of two or more.

    digests: of each picture's bytes, by name. alike: keys of `look_alikes`. Pictures of one key come to one
    side, also from several classes. A class whose pictures are all alike is divided by bytes instead; one
    whose pictures are all the same has no test image. Each draw depends on the seed and
    one name, so another order changes nothing, and another picture little.
    """
    groups = _by_class(pictures, alike or digests, seed)
    left = Counter(picture.label for picture in pictures)
    wanted = {label: max(1, round(count * share)) for label, count in left.items()}
    taken: Counter[str] = Counter()
    test: set[str] = set()

    def take(group: list[Picture]) -> None:
        counts = Counter(picture.label for picture in group)
        if all(left[label] > count for label, count in counts.items()):  # training keeps one of each class
            left.subtract(counts)
            taken.update(counts)
            test.update(picture.name for picture in group)

    # Rare classes first: they have the least choice.
    for label in sorted(wanted, key=lambda label: (left[label], natural_key(label))):
        for group in groups[label]:
            if group[0].name not in test and taken[label] + _count(group, label) <= wanted[label]:
                take(group)
        # Each group is larger than the share.
        for group in sorted(groups[label], key=lambda group: _count(group, label)):
            if not taken[label]:
                take(group)
    if alike:
        same_bytes = _by_class(pictures, digests, seed)
        for label in wanted:
            for group in same_bytes[label]:
                if not taken[label]:
                    take(group)
    return test


def _by_class(
    pictures: Sequence[Picture], keys: Mapping[str, str], seed: int
) -> dict[str, list[list[Picture]]]:
    """Return the groups of one key, by each class in them, in the order of their draws."""
    groups: dict[str, list[Picture]] = defaultdict(list)
    for picture in sorted(pictures, key=lambda picture: composed(picture.name)):
        groups[keys[picture.name]].append(picture)
    by_class: dict[str, list[list[Picture]]] = defaultdict(list)
    for group in sorted(groups.values(), key=lambda group: _draw(seed, group[0].name)):
        for label in {picture.label for picture in group}:
            by_class[label].append(group)
    return by_class


def _count(group: Sequence[Picture], label: str) -> int:
    return sum(picture.label == label for picture in group)


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {composed(name)}".encode()).digest()
