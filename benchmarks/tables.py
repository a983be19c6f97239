"""The tables in the README, generated from results.csv.

python benchmarks/tables.py          # writes them into README.md
python benchmarks/tables.py --check  # says whether they are what the rows say
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from pathlib import Path

from rows import read_rows

README = Path(__file__).parents[1] / "README.md"
# Student's t at 97.5 %, for n - 1 = 1, 2, … degrees of freedom; beyond, the normal quantile is near enough.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def results(rows: list[dict[str, str]]) -> str:
    """One line per recipe, rates and hardware: mean, sd and 95 % interval over its complete runs."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if row.get("test_accuracy"):
            key = row["recipe"], row["hardware"], row["precision"], row["epochs"], _rates(row)
            groups.setdefault(key, []).append(row)
    lines = [
        "| recipe | rates | epochs | n | accuracy, no TTA | sd | 95 % interval | with TTA | training "
        "| hardware |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (recipe, hardware, precision, epochs, how), runs in groups.items():
        plain = [float(run["test_accuracy"]) for run in runs]
        mirrored = statistics.mean(float(run["test_accuracy_tta"]) for run in runs)
        minutes = statistics.mean(float(run["train_seconds"]) for run in runs) / 60
        sd = statistics.stdev(plain) if len(plain) > 1 else None
        if sd is None:
            low, high = float(runs[0]["test_low_95"]), float(runs[0]["test_high_95"])
            kind = "of one run, over images"
        else:
            quantile = _T[len(plain) - 2] if len(plain) - 2 < len(_T) else 1.96
            reach = quantile * sd / math.sqrt(len(plain))
            low, high = statistics.mean(plain) - reach, statistics.mean(plain) + reach
            kind = "of the mean, over seeds"
        lines.append(
            f"| `{recipe}` | {how} | {epochs} | {len(plain)} | **{statistics.mean(plain):.2%}** "
            f"| {'' if sd is None else f'{sd:.2%}'} | {low:.2%} to {high:.2%} ({kind}) | {mirrored:.2%} "
            f"| {minutes:.0f} min | {hardware}, {precision} |"
        )
    return "\n".join(lines)


def _rates(row: dict[str, str]) -> str:
    """Say whether a run's rates were found or given; the first rows, which do not say, are of found ones."""
    return row.get("rates") or "found"


def _with_found_rates(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    named = [row for row in rows if row.get("recipe") == "cifar10.assignment" and row.get("epochs") == "24"]
    return [row for row in named if _rates(row) == "found"]


def accuracy(rows: list[dict[str, str]]) -> str:
    return " ".join(
        f"**{float(run['test_accuracy']):.2%}** (seed {run['seed']}, without TTA)"
        for run in _with_found_rates(rows)
    )


def rates(rows: list[dict[str, str]]) -> str:
    found = _with_found_rates(rows)
    return " ".join(f"LRMIN {float(run['min_lr']):g}, LRMAX {float(run['peak_lr']):g}" for run in found)


def pipeline(rows: list[dict[str, str]]) -> str:
    """What the input pipeline does, from its newest row."""
    runs = [row for row in rows if row.get("script") == "benchmarks/input_pipeline.py"]
    if not runs:
        return ""
    run = runs[-1]
    return (
        f"The input pipeline delivers {int(run['images_per_second']):,} images a second, "
        f"{float(run['ratio']):.0f} × the course's own ({run['baseline']}: "
        f"{int(run['baseline_images_per_second']):,} a second in the same run), and takes "
        f"{float(run['step_share']):.1%} of a training step ({run['hardware']}, {run['precision']})."
    )


def speed(rows: list[dict[str, str]]) -> str:
    """How fast a step is beside the stock loop's, from the newest row."""
    runs = [row for row in rows if row.get("script") == "benchmarks/reference.py"]
    if not runs:
        return ""
    run = runs[-1]
    number = {key: float(run[key]) for key in run if run[key].replace(".", "", 1).isdigit()}
    return (
        f"**{number['ratio']:.2f} times as fast as PyTorch's stock loop** on the same threads, in turn: "
        f"{number['images_per_second']:,.0f} images a second against "
        f"{number['baseline_images_per_second']:,.0f} ({run['hardware']}, {run['precision']}). "
        f"With R the time that the stock loop needs for 50,000 images ({number['r_seconds']:.0f} s), "
        f"the 24 epochs of the "
        f"assignment take {number['assignment_r']:.1f} R instead of 24. The first step ends "
        f"{number['first_step_seconds']:.1f} s after the start instead of "
        f"{number['baseline_first_step_seconds']:.1f}, and {number['peak_gigabytes']:.2f} GB of memory are "
        f"enough instead of {number['baseline_peak_gigabytes']:.2f}."
    )


PARTS = {"results": results, "accuracy": accuracy, "rates": rates, "pipeline": pipeline, "speed": speed}


def filled(text: str, rows: list[dict[str, str]]) -> str:
    """Return the README with every part between <!-- NAME --> and <!-- /NAME --> generated anew."""
    for name, part in PARTS.items():
        pattern = re.compile(rf"<!-- {name} -->(\n?).*?<!-- /{name} -->", re.DOTALL)
        written = part(rows)
        text = pattern.sub(
            lambda match, name=name, written=written: (
                f"<!-- {name} -->{match[1]}{written}{match[1] if written else ''}<!-- /{name} -->"
            ),
            text,
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the README differs")
    arguments = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = filled(before, read_rows())
    if arguments.check:
        sys.exit(0 if before == after else "README.md differs from results.csv: run benchmarks/tables.py")
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
