"""What resnet.py, tracking.py and budget.py measured: the kernels beside torch's, and beside the chip."""

from __future__ import annotations

from benchmarks.measure import Row
from benchmarks.publish.rows import Tables, table


def _newest(rows: list[Row], *keys: str) -> list[Row]:
    """Return the last row of each chip, number of threads and values of `keys`."""
    return list({tuple(row[key] for key in ("hardware", "threads", *keys)): row for row in rows}.values())


def _filled(titles: str, lines: list[str]) -> str:
    """Return a table, or nothing where there are no rows yet."""
    return table(titles, lines) if lines else ""


def _place(row: Row) -> str:
    return f"{row['hardware']}, {row['threads']} thread{'s' if row['threads'] != '1' else ''}"


def resnet(tables: Tables) -> str:
    """Write how fast a step of ResNet-18 for small images is, beside torch's in bf16."""
    lines = [
        f"{row['batch_size']} | {_place(row)} | {row['images_per_second']} "
        f"| {row['baseline_images_per_second']} | **{row['ratio']} ×**"
        for row in _newest(tables["resnet"], "batch_size")
    ]
    return _filled("batch | on | images/s | torch's own, images/s | ratio", lines)


def tracked(tables: Tables) -> str:
    """Write how far the mean losses of each path are from torch's in fp32."""
    lines = [
        f"{row['operations']} | {row['width']} | {row['seeds']} | {_place(row)} | {float(row['mean']):+.2%} "
        f"| {float(row['tolerance']):.0%} | {float(row['furthest']):.2%}"
        for row in _newest(tables["tracking"], "operations", "width")
    ]
    titles = "operations | width | seeds | on | mean of 200 steps | tolerance | furthest mean of 20 steps"
    return _filled(titles, lines)


def budget(tables: Tables) -> str:
    """Write where a step's time goes on each path, beside the least time that the chip allows."""
    lines = []
    for row in _newest(tables["budget"], "kernels", "batch_size"):
        keys = ("stock", "step", "convolutions", "norms", "rest", "limit")
        stock, step, *parts, limit = (float(row[f"{key}_seconds"]) for key in keys)
        times = " | ".join(f"{seconds:.2f}" for seconds in (stock, step, *parts, limit))
        rates = f"{row['registers']} GFLOP/s, {row['memory']} GB/s"
        lines.append(
            f"{row['precision']}, {row['note']} | {row['batch_size']} | {_place(row)} | {rates} | {times} "
            f"| {step / limit:.2f}"
        )
    titles = (
        "path | batch | on | rates | stock, s | step, s | convolutions | norms | rest | limit | step / limit"
    )
    return _filled(titles, lines)
