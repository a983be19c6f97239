"""What gpu.py and older_chips.py measured on other machines than those with AVX-512 BF16; large_sets.py."""

from __future__ import annotations

import statistics

from benchmarks.measure import Row
from benchmarks.publish.rows import Tables, mean, table
from firstlight.insight.intervals import Spread


def gpu(tables: Tables) -> str:
    """Write how good and how fast `cifar10.fast` is on each GPU, airbench beside it in the same run."""
    rows = [row for row in tables["gpu"] if row["baseline_test_accuracy_tta"]]
    paragraphs = []
    for hardware in dict.fromkeys(row["hardware"] for row in rows):
        runs = [row for row in rows if row["hardware"] == hardware]
        warm = [row for row in runs if row["start"] == "warm"]
        ours, theirs = (
            statistics.median(float(row[f"{who}clock_seconds"]) for row in warm) for who in ("", "baseline_")
        )
        other = Spread(tuple(float(row["baseline_test_accuracy_tta"]) for row in runs))
        paragraphs.append(
            f"`cifar10.fast` on one {hardware}, {runs[0]['precision']}, n = {len(runs)}: {_interval(runs)} "
            f"with test-time augmentation, {mean(runs, 'test_accuracy'):.2%} without, in {ours:.2f} s once "
            f"the process is warm ({float(runs[0]['cold_seconds']):.0f} s from its start). In turn with it, "
            f"{runs[0]['baseline']}: {other.mean:.2%} in {theirs:.2f} s. Firstlight is {theirs / ours:.2f} "
            f"times as fast."
        )
    return "\n\n".join(paragraphs)


def _interval(runs: list[Row]) -> str:
    spread = Spread(tuple(float(row["test_accuracy_tta"]) for row in runs))
    if spread.interval is None:
        return f"{spread.mean:.2%}"
    return "{:.2%} (95 % interval {:.2%} to {:.2%})".format(spread.mean, *spread.interval)


def raced(tables: Tables) -> str:
    """Write what the assignment reaches with the rates that a race finds, and with those that were given."""
    rows = [row for row in tables["gpu"] if row["recipe"] == "cifar10.assignment"]
    found = [row for row in rows if row["settings"] == "finder=race"]
    given = [row for row in rows if row["rates"] == "given"]
    seeds = sorted({row["seed"] for row in found} & {row["seed"] for row in given})
    found, given = ([row for row in side if row["seed"] in seeds] for side in (found, given))
    rates = ", ".join(f"{float(row['peak_lr']):g}" for row in found)
    gain = 100 * (mean(found, "test_accuracy") - mean(given, "test_accuracy"))
    return (
        f"`cifar10.assignment` whole, seeds {' and '.join(seeds)}, on one {found[0]['hardware']}: a race "
        f"answers LRMAX {rates} after {mean(found, 'finder_share'):.0%} of the run's steps, and the run ends "
        f"at {mean(found, 'test_accuracy'):.2%} without test-time augmentation "
        f"({mean(found, 'test_accuracy_tta'):.2%} with it). With the rates given as "
        f"`{given[0]['settings']}` it ends at {mean(given, 'test_accuracy'):.2%} "
        f"({mean(given, 'test_accuracy_tta'):.2%}): a difference of {gain:+.2f} points."
    )


def older_chips(tables: Tables) -> str:
    """Write how fast the assignment's step is in fp32 under limits of the instructions, beside torch's."""
    newest = {(row["isa"], row["hardware"], row["threads"]): row for row in tables["older_chips"]}
    lines = [
        f"{row['isa']} | {row['hardware']}, {row['threads']} threads | {row['images_per_second']} "
        f"| {row['baseline_images_per_second']} | **{row['ratio']} ×**"
        for row in newest.values()
    ]
    return table("limited to | on | images/s | torch's own, images/s | ratio", lines)


def large_sets(tables: Tables) -> str:
    """Write how fast small and large sets are read and trained on, and what memory that takes."""
    newest = {row["images"]: row for row in tables["large_sets"]}
    lines = [
        f"{int(row['images']):,} ({int(row['set_mb']):,} MB) | {row['order']} "
        f"| {int(row['read_per_second']):,} ({float(row['read_ratio']):.2f}) "
        f"| {int(row['train_per_second']):,} ({float(row['train_ratio']):.2f}) "
        f"| {float(row['read_processor_ratio']):.2f}, {float(row['train_processor_ratio']):.2f} "
        f"| {int(row['anonymous_mb']):,} MB, {int(row['resident_mb']):,} MB"
        for row in newest.values()
    ]
    titles = "images (the set) | order | read and augmented a second | trained a second "
    titles += "| the same by processor time, to the first row | memory: anonymous, resident"
    last = [*newest.values()][-1]
    where = f"{last['hardware']}, {last['precision']}, {last['threads']} threads, {last['rounds']} rounds, "
    where += f"FIRSTLIGHT_MEMORY={last['memory']}"
    return f"{table(titles, lines)}\n\n{where}. In brackets: to the first row."
