"""Images that stay in a file behave as a tensor of them does, and are read only when they are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CPU, image_set, random_images

from firstlight.data.batches import in_order
from firstlight.data.images import statistics
from firstlight.data.stored import StoredImages
from firstlight.machine.streams import stream


@pytest.fixture
def stored(tmp_path: Path) -> StoredImages:
    np.save(tmp_path / "images.npy", image_set(24).images[:].numpy())
    return StoredImages.open(tmp_path / "images.npy")


def test_rows_are_those_of_the_file(stored: StoredImages) -> None:
    images = image_set(24).images
    assert stored.shape == images.shape and len(stored) == 24 and stored[3].shape == (3, 8, 8)
    for rows in (
        slice(None),
        slice(4, 9),
        slice(0, 24, 5),
        slice(7, 7),
        torch.tensor([3, 4, 5, 0, 23, 23, 1]),
        torch.tensor([], dtype=torch.int64),
    ):
        assert torch.equal(stored[rows], images[rows])
    some = torch.tensor([20, 21, 3, 4, 5, 9])
    assert torch.equal(stored.narrow(0, 2, 22).index_select(0, some)[1:5], images[2:][some][1:5])
    assert torch.equal(torch.cat([*stored.split(7)]), images[:])
    assert torch.equal(stored.to(torch.device("cpu")), images[:])


def test_a_set_of_them_has_the_same_digest_statistics_parts_and_batches(stored: StoredImages) -> None:
    whole = image_set(24)
    kept = replace(whole, images=stored)
    assert kept.digest == whole.digest and statistics(stored) == statistics(whole.images)
    assert statistics(stored, torch.tensor([1, 5])) == statistics(whole.images, torch.tensor([1, 5]))
    parts = [each.split(8, stream(0, "split")) for each in (kept, whole)]
    for one, other in zip(*parts, strict=True):
        assert isinstance(one.images, StoredImages), "reading them would take as much memory as the set"
        assert one.digest == other.digest and list(one.names) == list(other.names)
    for one, other in zip(in_order(kept, 7, CPU), in_order(whole, 7, CPU), strict=True):
        assert torch.equal(one, other)


def test_choosing_rows_reads_nothing(stored: StoredImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredImages, "read", None)
    assert len(replace(image_set(24), images=stored).split(8, stream(0, "split"))[0]) == 16


def test_a_file_that_ends_early_is_an_error_and_not_the_end_of_the_process(
    stored: StoredImages, tmp_path: Path
) -> None:
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(128 + 10 * 192)
    assert torch.equal(stored[:10], image_set(24).images[:10])
    with pytest.raises(OSError, match="ends early"):
        stored[8:12]


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, array in (("wide", np.zeros((2, 3, 4, 4))), ("flat", np.zeros(9, np.uint8))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match="not uint8"):
            StoredImages.open(tmp_path / f"{name}.npy")


def test_it_stays_readable_when_its_file_is_removed(stored: StoredImages, tmp_path: Path) -> None:
    (tmp_path / "images.npy").unlink()
    assert torch.equal(stored[5:7], image_set(24).images[5:7])
    assert not torch.equal(stored[5:7], random_images(24)[5:7])
