"""How fast are photos decoded and kept? Against a DataLoader with workers and Pillow's full decode.

    python -m benchmarks.speed.decoding [--count 10000] [--side 160] [--workers 2] [--rounds 1] [--record]

JPEG files of 500×375 in ten class folders. Ours: `Folder` reads them into an empty cache, memory-mapped and
checked by hash, with duplicates found on the way. Theirs: a Dataset as a tutorial writes it opens, converts,
crops and resizes with Pillow, and the batches of a DataLoader are put into one array. Each runs in a process
of its own, in turn; the clock starts behind the imports. Then a second start of ours reads the cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import in_own_process, parser, record

SIZE = 500, 375


def write_photos(root: Path, count: int) -> None:
    """Write so many different photos of smooth blots with noise, which make files of about 40 kB."""
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    for number in range(count):
        blots = Image.fromarray(draws.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        photo = np.asarray(blots.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
        photo += draws.integers(-12, 13, photo.shape, dtype=np.int16)
        path = root / str(number % 10) / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def looked_at(images: Any) -> bool:
    """Touch every pixel, as the first epoch does; eight at once, which takes next to no time."""
    import torch

    return int(images.view(torch.int64).sum()) != 0


def by_firstlight(root: str, side: int) -> float:
    from firstlight.data.folder import Folder

    start = time.perf_counter()
    train, test = Folder(root, side=side).load()
    assert looked_at(train.images) and looked_at(test.images)
    return time.perf_counter() - start


class Photos:
    """A Dataset as a tutorial writes it."""

    def __init__(self, paths: list[Path], side: int) -> None:
        self.paths, self.side = paths, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        photo = Image.open(self.paths[index]).convert("RGB")
        photo = ImageOps.fit(photo, (self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(photo)).permute(2, 0, 1), int(self.paths[index].parent.name)


def by_loader(root: str, side: int, workers: int) -> float:
    import torch
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    dataset: Any = Photos(sorted(Path(root).rglob("*.jpg")), side)
    images = torch.empty(len(dataset), 3, side, side, dtype=torch.uint8)
    done = 0
    for batch, _ in DataLoader(dataset, batch_size=250, num_workers=workers):
        images[done : done + len(batch)] = batch
        done += len(batch)
    assert looked_at(images)
    return time.perf_counter() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--side", type=int, default=160)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--rounds", type=int, default=1)
    chosen = options.parse_args()
    from firstlight.machine.machine import choose

    seconds: dict[str, list[float]] = {"ours": [], "loader": [], "second start": []}
    with tempfile.TemporaryDirectory() as work:
        photos = Path(work) / "photos"
        write_photos(photos, chosen.count)
        for number in range(chosen.rounds):
            cache = str(Path(work) / f"cache{number}")
            ours = (by_firstlight, str(photos), chosen.side)
            seconds["ours"].append(in_own_process(*ours, FIRSTLIGHT_CACHE=cache))
            loader = in_own_process(by_loader, str(photos), chosen.side, chosen.workers)
            seconds["loader"].append(loader)
            seconds["second start"].append(in_own_process(*ours, FIRSTLIGHT_CACHE=cache))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    record(
        __file__,
        choose("cpu", "fp32"),
        keep=chosen.record,
        count=chosen.count,
        side=chosen.side,
        workers=chosen.workers,
        rounds=chosen.rounds,
        ours_s=round(median["ours"], 2),
        loader_s=round(median["loader"], 2),
        ratio=round(median["loader"] / median["ours"], 2),
        second_start_s=round(median["second start"], 2),
    )


if __name__ == "__main__":
    main()
