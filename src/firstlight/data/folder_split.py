"""The split of a set that nothing divides: stratified, and drawn from the pictures' names."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from firstlight.data.folder_files import Picture
from firstlight.data.names import composed, natural_key


def held_out(pictures: Sequence[Picture], digests: Mapping[str, str], share: float, seed: int) -> set[str]:
    """Return the names of the test images: about `share` of each class, and one at least of two or more.

    digests: of each picture's bytes, by name. Pictures of the same bytes come to one side, also from several
    classes; so a class whose pictures are all the same has no test image. Each draw depends on the seed and
    one name, so another order changes nothing, and another picture little.
    """
    groups: dict[str, list[Picture]] = defaultdict(list)
    for picture in sorted(pictures, key=lambda picture: composed(picture.name)):
        groups[digests[picture.name]].append(picture)
    order = sorted(groups.values(), key=lambda group: _draw(seed, group[0].name))
    groups_of: dict[str, list[list[Picture]]] = defaultdict(list)
    for group in order:
        for label in {picture.label for picture in group}:
            groups_of[label].append(group)
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
        for group in groups_of[label]:
            if group[0].name not in test and taken[label] + _count(group, label) <= wanted[label]:
                take(group)
        # Each group is larger than the share.
        for group in sorted(groups_of[label], key=lambda group: _count(group, label)):
            if not taken[label]:
                take(group)
    return test


def _count(group: Sequence[Picture], label: str) -> int:
    return sum(picture.label == label for picture in group)


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {composed(name)}".encode()).digest()
