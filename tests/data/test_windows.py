"""The order of sets that exceed memory: every image once, in windows that are read ahead."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, global_random_states, image_set

from firstlight.data.augment import Crop, FlipLR
from firstlight.data.batches import Batches, plan_epoch
from firstlight.data.images import ImageSet
from firstlight.data.stored import StoredImages
from firstlight.data.windows import Blocks, WindowReader, blocks_for, window_order
from firstlight.errors import InputError
from firstlight.machine.machine import Machine
from firstlight.machine.ranks import Ranks

AUGMENTATIONS = (Crop(8, pad=2), FlipLR(alternate=True))
BLOCKS = Blocks(3, 12)


@pytest.fixture
def stored(tmp_path: Path) -> ImageSet:
    images = image_set(50)
    np.save(tmp_path / "images.npy", images.images[:].numpy())
    return replace(images, images=StoredImages.open(tmp_path / "images.npy"))


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 2 KB of images be held, so that 50 images of 192 bytes exceed it."""
    monkeypatch.setenv("FIRSTLIGHT_MEMORY", "4K")


@pytest.mark.parametrize("count", [1, 2, 3, 11, 12, 13, 50])
def test_windows_hold_every_image_once_in_whole_blocks(count: int) -> None:
    windows = window_order(count, BLOCKS, 0, 0)
    assert sorted(torch.cat(windows).tolist()) == list(range(count))
    assert len(windows) == -(-count // 12)
    for window in windows:
        for block in {row // 3 for row in window.tolist()}:
            assert {3 * block, min(3 * block + 2, count - 1)} <= {*window.tolist()}


def test_the_order_depends_on_seed_and_epoch_alone_and_shuffles_blocks_and_images() -> None:
    before = global_random_states()
    orders = {
        numbers: torch.cat(window_order(600, Blocks(3, 60), *numbers))
        for numbers in ((0, 0), (0, 1), (1, 0), (0, 0))
    }
    assert global_random_states() == before
    assert torch.equal(orders[0, 0], torch.cat(window_order(600, Blocks(3, 60), 0, 0)))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 3
    first = orders[0, 0][:60]
    assert len({row // 60 for row in first.tolist()}) > 5, "a window takes its blocks from the whole set"
    assert int((first.diff() == 1).sum()) < 10, "and shuffles their images"
    assert window_order(9, BLOCKS, 0, 0)[0].tolist() == [2, 7, 8, 1, 3, 0, 5, 4, 6]


def test_only_a_set_that_exceeds_memory_is_read_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_set(50).images
    assert blocks_for(images, CPU) == Blocks(1, 1)
    monkeypatch.setenv("FIRSTLIGHT_MEMORY", str(2 * 50 * 192))
    assert blocks_for(images, CPU) is None
    monkeypatch.delenv("FIRSTLIGHT_MEMORY")
    batches = Batches(image_set(50), 8, seed=0, machine=CPU)
    assert batches.blocks is None and batches.order_words() is None
    assert batches.plan(2).order.tolist() == plan_epoch(image_set(50), (), 0, 2).order.tolist()


def test_the_sizes_of_blocks_follow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = StoredImages(None, (3, 32, 32), torch.arange(1_000_000))  # type: ignore[arg-type]
    monkeypatch.setenv("FIRSTLIGHT_MEMORY", "512M")
    blocks = blocks_for(images, CPU)
    assert blocks == Blocks(170, 10880) and blocks.window * 3072 <= 32 * 2**20
    assert "2.86 GB" in blocks.words(images) and "windows of 10,880 images (31.9 MB)" in blocks.words(images)


@pytest.mark.parametrize("first", [0, 1, 4, 5])
@pytest.mark.parametrize("together", [1, 3])
def test_stored_batches_are_those_of_the_plan_from_any_batch_on(
    stored: ImageSet, first: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(stored, 9, AUGMENTATIONS, seed=0, machine=CPU)
    monkeypatch.setattr(batches, "_together", together)
    held = Batches(image_set(50), 9, AUGMENTATIONS, seed=0, machine=CPU)
    monkeypatch.setattr(held, "_pixels", image_set(50).images[:])
    batches.blocks = held.blocks = BLOCKS
    before = global_random_states()
    for epoch in (0, 1):
        pairs = list(zip(batches.epoch(epoch, first), held.epoch(epoch, first), strict=True))
        assert len(pairs) == 5 - first
        for (images, labels), (expected, same_labels) in pairs:
            assert torch.equal(images, expected) and torch.equal(labels, same_labels)
    assert global_random_states() == before


def test_a_run_begun_with_more_memory_keeps_its_order(stored: ImageSet) -> None:
    batches = Batches(stored, 9, AUGMENTATIONS, seed=0, machine=CPU)
    batches.blocks = None
    plan = plan_epoch(stored, AUGMENTATIONS, 0, 1)
    for number, (_, labels) in enumerate(batches.epoch(1)):
        assert torch.equal(labels, stored.labels[plan.order[9 * number : 9 * number + 9]])


def test_ranks_share_the_batches_of_one_process(stored: ImageSet) -> None:
    def labels_of(machine: Machine) -> list[torch.Tensor]:
        batches = Batches(stored, 12, AUGMENTATIONS, seed=0, machine=machine)
        return [torch.cat((labels[:, None], images.flatten(1)), 1) for images, labels in batches.epoch(1)]

    shares = [labels_of(replace(CPU, ranks=Ranks(rank, 3))) for rank in range(3)]
    for batch, parts in zip(labels_of(CPU), zip(*shares, strict=True), strict=True):
        assert torch.equal(batch, torch.stack(parts, 1).flatten(0, 1))


def test_two_windows_at_most_are_in_memory_and_each_is_read_once(stored: ImageSet) -> None:
    windows = window_order(50, BLOCKS, 0, 0)
    read: list[int] = []

    class Counted(StoredImages):
        def read(self, index: Any, images: Any = None) -> Any:
            assert bool((np.diff(index) > 0).all()), "as the file has them"
            read.append(len(index))
            return super().read(index, images)

    images = Counted.__new__(Counted)
    vars(images).update(vars(stored.images))
    lengths = [len(window) for window in windows]
    with WindowReader(images, torch.cat(windows), lengths, CPU.device) as reader:
        assert torch.equal(reader(0, 5), image_set(50).images[windows[0][:5]])
        assert len(read) <= 2
        reader(5, lengths[0])
        assert len(read) <= 2
        assert torch.equal(reader(10, 27, 4), image_set(50).images[torch.cat(windows)[10:27:4]])
        reader(27, 50)
    assert read == lengths


@pytest.mark.parametrize("is_stored", [True, False])
def test_windows_that_are_passed_over_do_not_disturb_the_next(stored: ImageSet, is_stored: bool) -> None:
    images = stored.images if is_stored else image_set(50).images
    windows = window_order(50, Blocks(1, 2), 0, 0)
    order, lengths = torch.cat(windows), [len(window) for window in windows]
    with WindowReader(images, order, lengths, CPU.device) as reader:
        for begin, end, step in ((5, 6, 1), (6, 40, 7), (41, 50, 3)):
            assert torch.equal(reader(begin, end, step), image_set(50).images[order[begin:end:step]])


def grown(path: Path, images: np.ndarray[Any, Any], look: str, window: int, epochs: int) -> int:
    """Return by how much a number in /proc/self/status grows, at most, while images are read in windows."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to see the memory and the threads of a process")
    code = """if True:
        import sys, torch
        from firstlight.data.stored import StoredImages
        from firstlight.data.windows import Blocks, WindowReader, window_order
        from pathlib import Path

        def look():
            return int(Path("/proc/self/status").read_text().split(sys.argv[2])[1].split()[0])

        torch.set_num_threads(2)
        torch.ones(10**6).add(1)
        images, seen = StoredImages.open(Path(sys.argv[1])), [look()]
        for epoch in range(int(sys.argv[4])):
            windows = window_order(len(images), Blocks(100, int(sys.argv[3])), 0, epoch)
            lengths = [*map(len, windows)]
            with WindowReader(images, torch.cat(windows), lengths, torch.device("cpu")) as reader:
                for begin in range(0, len(images), 100):
                    reader(begin, begin + 100)
                    seen.append(look())
        print(max(seen) - seen[0])"""
    np.save(path / "images.npy", images)
    command = [sys.executable, "-c", code, str(path / "images.npy"), look, str(window), str(epochs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("FIRSTLIGHT_MEMORY")
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def test_reading_takes_little_memory_whatever_the_size_of_the_set(tmp_path: Path) -> None:
    images = np.zeros((60_000, 3, 32, 32), np.uint8)
    assert 0 < grown(tmp_path, images, "VmRSS:", 2000, 2) * 1024 < images.nbytes / 3


def test_reading_takes_one_thread_and_none_of_openmp(tmp_path: Path) -> None:
    assert grown(tmp_path, np.zeros((200_000, 1, 8, 8), np.uint8), "Threads:", 100_000, 1) == 1


def test_a_disk_that_fails_is_an_error_of_the_batch(stored: ImageSet, tmp_path: Path) -> None:
    batches = Batches(stored, 9, AUGMENTATIONS, seed=0, machine=CPU)
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(128)
    with pytest.raises(OSError, match="ends early"):
        list(batches.epoch(0))


@pytest.mark.parametrize("text", ["much", "-1", "0", "1.5G", "٣G", "9" * 30])
def test_a_memory_that_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_MEMORY", text)
    with pytest.raises(InputError, match="FIRSTLIGHT_MEMORY is no size"):
        blocks_for(image_set(50).images, CPU)
