"""`shapes`: the same bytes everywhere, objects that can be seen, and parts that never overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import digest, global_random_states

from firstlight.data import shapes
from firstlight.data.shape_fields import KINDS
from firstlight.data.shapes import Shapes, make_shapes
from firstlight.errors import InputError


def test_the_bytes_are_pinned() -> None:
    # A change of this value changes every published number on `shapes`.
    pinned = "72d56e3351adc709554f1fc899772fdd67b2401b5c3d3442d7eba0408b45b447"
    assert digest(make_shapes(100, seed=0)) == pinned


def test_an_image_depends_on_the_seed_and_its_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = global_random_states()
    whole = make_shapes(130, seed=3)
    assert all(torch.equal(a, b[:40]) for a, b in zip(make_shapes(40, seed=3), whole, strict=True))
    assert all(torch.equal(a, b[70:]) for a, b in zip(make_shapes(60, seed=3, first=70), whole, strict=True))
    monkeypatch.setattr(shapes, "_CHUNK", 7)
    assert digest(make_shapes(130, seed=3)) == digest(whole)
    assert digest(make_shapes(130, seed=4)) != digest(whole)
    assert global_random_states() == before


def test_every_ten_hold_every_kind_once_in_changing_order() -> None:
    _, labels, _ = make_shapes(200)
    tens = labels.view(20, 10)
    assert torch.equal(tens.sort(1).values, torch.arange(10).expand(20, 10))
    assert len({tuple(row) for row in tens.tolist()}) > 15


def test_the_object_is_there_and_stands_out_from_its_ground() -> None:
    images, labels, masks = make_shapes(500)
    assert images.shape == (500, 3, 32, 32) and masks.shape == (500, 32, 32) and masks.dtype == torch.bool
    seen = masks.flatten(1).sum(1)
    assert seen.min() >= 30 and seen.max() <= 32 * 32 // 2
    inside = masks[:, None].double()
    within, around = ((images * part).sum((2, 3)) / part.sum((2, 3)) for part in (inside, 1 - inside))
    apart = (within - around).abs().amax(1)
    assert (apart > 15).double().mean() > 0.85, "most objects differ in mean colour from what is around them"
    areas = torch.stack([seen[labels == kind].double().mean() for kind in range(10)])
    assert KINDS[int(areas.argmax())] in ("circle", "square", "hexagon", "heart")
    assert KINDS[int(areas.argmin())] in ("crescent", "ring", "star", "triangle", "cross", "flower")


def test_smaller_objects_lie_anywhere_in_the_image_and_their_masks_go_with_them() -> None:
    usual, _, large = make_shapes(500)
    images, labels, masks = make_shapes(500, object_size=50)
    seen = masks.flatten(1).sum(1)
    assert seen.min() >= 8
    assert float(seen.double().mean()) == pytest.approx(float(large.sum()) / 500 / 4, rel=0.1)
    middle = masks[:, 15:17, 15:17].double().mean()
    assert middle < 0.2 < 0.6 < large[:, 15:17, 15:17].double().mean()
    quarters = masks.unflatten(1, (2, 16)).unflatten(3, (2, 16)).sum((0, 2, 4)).double()
    assert (quarters / quarters.sum() - 0.25).abs().max() < 0.05
    # An object is whole: as rarely at the border as large ones are, although it goes nearer to it.
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert float((masks & border).flatten(1).any(1).double().mean()) < 0.1
    # The ground is the same, so what differs is where either object, its shadow or what crosses it lies.
    assert torch.equal(labels, make_shapes(500)[1])
    changed = (images != usual).any(1)
    assert (masks & ~changed & ~large).sum() < 0.05 * masks.sum(), "the mask lies where something was drawn"


def test_the_source_keeps_its_parts_apart() -> None:
    train, test = Shapes(train=300, test=100).load()
    assert len(train) == 300 and len(test) == 100 and train.classes == KINDS == test.classes
    assert train.facts == test.facts and train.masks is not None
    assert replace(train.facts, mean=(), std=()) == Shapes().facts()
    assert train.names[7] == "train/00007" and test.names[0] == "test/00000"
    own = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in own for image in test.images)
    again, _ = Shapes(train=300, test=10).load()
    assert again.digest == train.digest, "another number of test images changes no training image"
    small, _ = Shapes(train=300, test=10, object_size=60).load()
    assert torch.equal(small.images, make_shapes(300, object_size=60)[0])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        *((Shapes, {"object_size": size}, "of their size") for size in (0, 39, 101, -50)),
        *((Shapes, settings, "images") for settings in ({"train": 0}, {"test": 0}, {"train": -5})),
        (make_shapes, {"count": 0}, "at least 1"),
        (make_shapes, {"count": 1, "first": -1}, "no image number -1"),
        (make_shapes, {"count": 1, "object_size": 39}, "of their size"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    make: Callable[..., object], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(**settings)
