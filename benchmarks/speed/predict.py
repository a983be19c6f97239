"""Prediction at scale against a plain loop over a DataLoader, and the latency of one picture.

    python -m benchmarks.speed.predict files RUN [--count 10000] [--workers 2] [--side 0] [--record]
    python -m benchmarks.speed.predict latency RUN [--count 300] [--kernels] [--record]

files: PNG pictures of the network's own size, or JPEG photos of `--side` pixels, classified end to end by
`firstlight predict RUN FOLDER --csv` in a process of its own, and by a plain loop in another: a Dataset that
opens, converts and resizes with Pillow, a DataLoader with workers, batches of 250, the same network in fp32
and a row of a CSV for each file. Both ways are timed with and without the start of their process, in turn.

latency: one picture, already decoded: the exported network in onnxruntime, and `Run.predict`'s network,
warm; also with the file. Each way has processes of its own, in turn. `predict` takes the compiled fp32
kernels where they are built: --kernels builds them before, and FIRSTLIGHT_KERNELS=plain leaves them out.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import in_own_process, parser, record, seconds_in_turn

BATCH = 250
WAYS = ("onnxruntime", "predict_tensor", "unfolded", "predict_file")


def make_files(folder: Path, shape: tuple[int, int, int], count: int, side: int) -> None:
    """Write `count` pictures of smooth blots: PNG at the network's size, or JPEG of `side` pixels."""
    from PIL import Image

    from firstlight.serve.export import drawn_images

    drawn = drawn_images((3, *shape[1:]), min(count, 500))
    for number in range(count):
        picture = Image.fromarray(drawn[number % len(drawn)].permute(1, 2, 0).numpy())
        if side:
            picture = picture.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05d}.{'jpg' if side else 'png'}")


def by_firstlight(run: str, folder: str, out: str) -> float:
    import firstlight

    opened, start = firstlight.open_run(run), time.perf_counter()
    firstlight.predict_files(opened, folder, csv=out, quiet=True)
    return time.perf_counter() - start


class Files:
    """A Dataset as a tutorial writes it."""

    def __init__(self, paths: list[Path], shape: tuple[int, int, int], mean: Any, std: Any) -> None:
        self.paths, self.shape, self.mean, self.std = paths, shape, mean, std

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        picture = Image.open(self.paths[index]).convert("RGB")
        picture = ImageOps.fit(picture, self.shape[:0:-1], Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std


def by_loader(run: str, folder: str, out: str, workers: int) -> float:
    import torch
    from torch.utils.data import DataLoader

    import firstlight

    opened, start = firstlight.open_run(run), time.perf_counter()
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (opened.data.mean, opened.data.std))
    paths = sorted(Path(folder).iterdir())
    dataset: Any = Files(paths, opened.data.shape, mean, std)
    names = iter(paths)
    with open(out, "w", newline="") as file, torch.no_grad():
        writer = csv.writer(file)
        for images in DataLoader(dataset, batch_size=BATCH, num_workers=workers):
            for row in opened.model(images).softmax(1).tolist():
                writer.writerow([next(names), opened.data.classes[row.index(max(row))], *row])
    return time.perf_counter() - start


def labels(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row[1] for row in csv.reader(file) if row[0] != "file"]


def files(arguments: Any) -> dict[str, Any]:
    from firstlight.run import open_run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        make_files(folder, open_run(arguments.run).data.shape, arguments.count, arguments.side)
        inside: dict[str, list[float]] = {"firstlight": [], "loader": []}
        ours, plain = Path(name) / "ours.csv", Path(name) / "plain.csv"

        def firstlight_way() -> None:
            ours.unlink(missing_ok=True)
            words = (arguments.run, str(folder), str(ours))
            inside["firstlight"].append(in_own_process(by_firstlight, *words))

        def loader_way() -> None:
            words = (arguments.run, str(folder), str(plain), arguments.workers)
            inside["loader"].append(in_own_process(by_loader, *words))

        ways = {"firstlight": firstlight_way, "loader": loader_way}
        whole = seconds_in_turn(ways, arguments.rounds, warm_up=1)
        same = sum(a == b for a, b in zip(labels(ours), labels(plain), strict=True))
    figures: dict[str, Any] = {"files": arguments.count, "side": arguments.side, "same_class": same}
    for way in ways:
        figures[f"{way}_seconds"] = statistics.median(inside[way][1:])
        figures[f"{way}_process_seconds"] = statistics.median(whole[way])
    figures["times_faster"] = figures["loader_seconds"] / figures["firstlight_seconds"]
    return figures


def seconds_of(way: str, run: str, folder: str, count: int) -> list[float]:
    """Return the seconds that one picture took, `count` times, after a warm-up."""
    import firstlight

    # First of all, as in the shell: it says how threads wait, before torch is loaded.
    opened, picture = firstlight.open_run(run), Path(folder) / "one.png"
    import numpy as np
    import onnxruntime
    import torch
    from PIL import Image

    from firstlight.insight.prediction import probabilities
    from firstlight.models.network import for_inference

    array = np.array(Image.open(picture)).transpose(2, 0, 1)[None].copy()
    pixels, network = torch.from_numpy(array), for_inference(opened.model)

    def session() -> Callable[[], object]:
        found = onnxruntime.InferenceSession(f"{folder}/net.onnx", providers=["CPUExecutionProvider"])
        return lambda: found.run(None, {"images": array})

    calls: dict[str, Callable[[], Callable[[], object]]] = {
        "onnxruntime": session,
        "predict_tensor": lambda: lambda: probabilities(network, pixels, opened.data),
        "unfolded": lambda: lambda: probabilities(opened.model, pixels, opened.data),
        "predict_file": lambda: lambda: opened.predict(picture),
    }
    return seconds_in_turn({way: calls[way]()}, count, warm_up=20)[way]


def latency(arguments: Any) -> dict[str, Any]:
    import torch
    from PIL import Image

    from firstlight.machine.kernels.library import is_built, load
    from firstlight.run import open_run
    from firstlight.serve.export import drawn_images

    run = open_run(arguments.run)
    if arguments.kernels:
        load(torch.float32)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        run.export(Path(folder) / "net.onnx", drawn_images(run.data.shape))
        pixels = drawn_images(run.data.shape, 1)[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(Path(folder) / "one.png")
        # A process each: the threads of onnxruntime go on spinning after their work is done.
        for _ in range(arguments.rounds):
            for way, all_seconds in seconds.items():
                words = (way, arguments.run, folder, arguments.count)
                all_seconds += in_own_process(seconds_of, *words)
    medians = {f"{way}_median_ms": 1000 * statistics.median(each) for way, each in seconds.items()}
    ratio = medians["predict_tensor_median_ms"] / medians["onnxruntime_median_ms"]
    kernels = "compiled" if is_built(torch.float32) else "oneDNN"
    figures = {"images": arguments.count, "kernels": kernels, **medians}
    return {**figures, "predict_over_onnxruntime": ratio}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("what", choices=("files", "latency"))
    options.add_argument("run")
    options.add_argument("--count", type=int)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument(
        "--side", type=int, default=0, help="of JPEG photos; 0 are PNG of the network's size"
    )
    options.add_argument("--kernels", action="store_true", help="compile the fp32 kernels before `latency`")
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    arguments.count = arguments.count or (10_000 if arguments.what == "files" else 300)
    figures = files(arguments) if arguments.what == "files" else latency(arguments)
    from firstlight.machine.machine import choose

    record(__file__, choose("cpu", "fp32"), keep=arguments.record, what=arguments.what, **figures)


if __name__ == "__main__":
    main()
