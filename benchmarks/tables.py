"""The tables in the README and in docs/, generated from results.csv and from the evidence of runs.

python benchmarks/tables.py          # writes them where they stand
python benchmarks/tables.py --check  # says whether they are what the rows say
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

from choose import AS_IT_STANDS
from rows import read_rows, stock_seconds

from firstlight.insight.intervals import Spread
from firstlight.run import Run

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "runs"
CHOICES = ROOT / "benchmarks" / "choices.csv"
PAGES = ("README.md", "docs/page.md", "docs/fast.md")


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
        plain = Spread(tuple(float(run["test_accuracy"]) for run in runs))
        mirrored = statistics.mean(float(run["test_accuracy_tta"]) for run in runs)
        # The first run of a process on a GPU also pays for what the others find ready.
        timed = [run for run in runs if run.get("start") != "cold"] or runs
        seconds = statistics.mean(float(run["train_seconds"]) for run in timed)
        if plain.interval is None:
            low, high = float(runs[0]["test_low_95"]), float(runs[0]["test_high_95"])
            kind = "of one run, over images"
        else:
            low, high = plain.interval
            kind = "of the mean, over seeds"
        lines.append(
            f"| `{recipe}` | {how} | {epochs} | {len(runs)} | **{plain.mean:.2%}** "
            f"| {'' if plain.sd is None else f'{plain.sd:.2%}'} | {low:.2%} to {high:.2%} ({kind}) "
            f"| {mirrored:.2%} | {_duration(seconds)} | {hardware}, {precision} |"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.1f} s"


def _rates(row: dict[str, str]) -> str:
    """Say whether a run's rates were found or given; the first rows, which do not say, are of found ones."""
    return row.get("rates") or "found"


def _with_found_rates(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    named = [row for row in rows if row.get("recipe") == "cifar10.assignment" and row.get("epochs") == "24"]
    return [row for row in named if _rates(row) == "found" and row.get("evidence")]


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
    """How fast a step is beside the stock loop's: a paragraph for each chip, from its newest row."""
    newest = {row["hardware"]: row for row in rows if row.get("script") == "benchmarks/reference.py"}
    return "\n\n".join(map(_speed, newest.values()))


def _speed(run: dict[str, str]) -> str:
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


def fast(rows: list[dict[str, str]]) -> str:
    """How good and how fast `cifar10.fast` is, test-time augmentation included in both."""
    return _by_chip("cifar10.fast", rows, tta=True)


def plus(rows: list[dict[str, str]]) -> str:
    """How good and how fast `cifar10.assignment_plus` is, by its last epoch alone."""
    return _by_chip("cifar10.assignment_plus", rows, tta=False)


def _by_chip(recipe: str, rows: list[dict[str, str]], *, tta: bool) -> str:
    """A paragraph for each CPU, from the runs of the recipe as it was last trained there."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if row.get("recipe") == recipe and row.get("device") == "cpu":
            groups.setdefault(tuple(row[key] for key in ("epochs", "hardware", "precision")), []).append(row)
    newest = {runs[-1]["hardware"]: runs for runs in groups.values()}
    return "\n\n".join(
        f"`{recipe}`: {_accuracy(runs, tta=tta)}, {_clock(runs, rows, tta=tta)}." for runs in newest.values()
    )


def _accuracy(runs: list[dict[str, str]], *, tta: bool) -> str:
    plain, several = (
        Spread(tuple(float(run[key]) for run in runs)) for key in ("test_accuracy", "test_accuracy_tta")
    )
    chosen = several if tta else plain
    scatter = ""
    if chosen.sd is not None and chosen.interval is not None:
        scatter = f" (n = {len(runs)}, sd {chosen.sd:.2%}, 95 % interval of the mean "
        scatter += "{:.2%} to {:.2%})".format(*chosen.interval)
    if tta:
        return f"**{chosen.mean:.2%} with test-time augmentation**{scatter}, {plain.mean:.2%} without"
    return f"**{chosen.mean:.2%} without test-time augmentation**{scatter}, {several.mean:.2%} with"


def _clock(runs: list[dict[str, str]], rows: list[dict[str, str]], *, tta: bool) -> str:
    """Mean seconds of training with its checkpoints; also in R where that was measured on this CPU."""
    keys = ("train_seconds", "checkpoint_seconds", *(("tta_seconds",) if tta else ()))
    seconds = statistics.mean(sum(float(run[key] or 0) for key in keys) for run in runs)
    hardware = runs[-1]["hardware"]
    what = "from the first step to the last forward pass of that augmentation" if tta else "of training"
    text = f"{seconds:,.0f} s {what} ({hardware}, {runs[-1]['precision']})"
    r = stock_seconds(rows).get(hardware)
    if r is None:
        return text
    return (
        f"{text}: **{seconds / r:.2f} R**, with R the time that the stock loop needs for 50,000 images of "
        f"the assignment ({r:.0f} s)"
    )


def ablations(rows: list[dict[str, str]]) -> str:
    """What `cifar10.fast` loses without each of its parts, from choices.csv; means over its runs.

    A run is compared with those of the whole recipe from the same seed, and left out where there is none; its
    time with theirs on the same chip.
    """
    runs = [row for row in read_rows(CHOICES) if row["note"] == "ablation"]
    whole = [run for run in runs if run["change"] == AS_IT_STANDS]
    runs = [run for run in runs if run["seed"] in {other["seed"] for other in whole}]
    lines = [
        "| change | n | accuracy with TTA, points | calibrated, difference | time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for change in dict.fromkeys(run["change"] for run in runs):
        tried = [run for run in runs if run["change"] == change]
        same_seed = [(run, beside) for run in tried for beside in whole if run["seed"] == beside["seed"]]
        same_chip = [pair for pair in same_seed if pair[0]["hardware"] == pair[1]["hardware"]]
        accuracy, loss = (_beside(same_seed, key) for key in ("accuracy_tta", "calibrated_loss"))
        times = [float(run["train_seconds"]) / float(beside["train_seconds"]) for run, beside in same_chip]
        lines.append(
            f"| {change} | {len(tried)} | {accuracy[0]:.2%}, {100 * accuracy[1]:+.2f} "
            f"| {loss[0]:.3f}, {loss[1]:+.3f} | {f'× {statistics.mean(times):.2f}' if times else ''} |"
        )
    chips = Counter(f"{run['hardware']}, {run['precision']}" for run in runs)
    counted = "; ".join(f"{chip}: {count}" for chip, count in chips.items())
    return "\n".join([*lines, "", f"Runs by chip: {counted}."]) if runs else ""


def _beside(pairs: list[tuple[dict[str, str], dict[str, str]]], key: str) -> tuple[float, float]:
    """The mean of a figure over runs, and of how far it is from that of the runs beside them."""
    figures = [(float(run[key]), float(beside[key])) for run, beside in pairs]
    mean, other = (statistics.mean(each) for each in zip(*figures, strict=True))
    return mean, mean - other


def pointing(rows: list[dict[str, str]]) -> str:
    """The pointing game: a line for each size of objects, map and grid; the newest row of each run."""
    newest: dict[tuple[str, ...], dict[tuple[str, str], dict[str, str]]] = {}
    for row in rows:
        if row.get("script") == "benchmarks/pointing.py":
            key = row["object_size"], row["method"], row["grid"]
            newest.setdefault(key, {})[row["seed"], row["peak_lr"]] = row
    lines = [
        "| objects | map | grid | runs | hits | always the centre | above it | off centre | random weights "
        "| chance |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = {"gradcam": "Grad-CAM", "layercam": "LayerCAM"}
    clear: dict[str, list[str]] = {}
    for (size, method, grid), runs in newest.items():
        each = list(runs.values())
        hits = [float(row["pointing"]) for row in each]
        mean = {key: statistics.mean(float(row[key]) for row in each) for key in _POINTING}
        above = 100 * (mean["pointing"] - mean["pointing_centre"])
        objects = "of usual size" if size == "100" else f"{size} % as wide"
        spread = f" ({min(hits):.1%} to {max(hits):.1%})" if len(hits) > 1 else ""
        lines.append(
            f"| {objects} | {names[method]} | {grid} | {len(each)} | {mean['pointing']:.1%}{spread} "
            f"| {mean['pointing_centre']:.1%} | {above:+.1f} points | {mean['pointing_off_centre']:.1%} "
            f"| {mean['pointing_random']:.1%} | {mean['pointing_chance']:.1%} |"
        )
        on = clear.setdefault(f"objects {objects}: {names[method]}", [])
        if above >= _CLEARLY:
            on.append(grid)
    held = "; ".join(
        f"{what} {'on ' + ', '.join(grids) if grids else 'nowhere'}" for what, grids in clear.items()
    )
    return "\n".join([*lines, "", f"At least {_CLEARLY} points above the centre: {held}."]) if clear else ""


_POINTING = ("pointing", "pointing_centre", "pointing_off_centre", "pointing_random", "pointing_chance")
_CLEARLY = 25


def suspects(rows: list[dict[str, str]]) -> str:
    """Rankings of doubtful labels, means over the seeds of the newest setting."""
    runs = [row for row in rows if row.get("script") == "benchmarks/suspects.py"]
    if not runs:
        return ""
    setting = [runs[-1][key] for key in _SETTING]
    runs = [row for row in runs if [row[key] for key in _SETTING] == setting]
    lines = [
        "| ranking | n | precision at the number flipped | average precision | wrong labels, estimated |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["ranking"] for row in runs):
        each = list({row["seed"]: row for row in runs if row["ranking"] == name}.values())
        precision, average = (statistics.mean(float(row[key]) for row in each) for key in _RANKING)
        estimates = [float(row["estimated_wrong"]) for row in each if row["estimated_wrong"]]
        lines.append(
            f"| {name} | {len(each)} | {precision:.3f} | {average:.3f} "
            f"| {f'{statistics.mean(estimates):.0f}' if estimates else ''} |"
        )
    return "\n".join(
        [*lines, "", f"{runs[-1]['baseline']}; {runs[-1]['note']}, {runs[-1]['epochs']} epochs."]
    )


_RANKING = ("precision_at_wrong", "average_precision")
_SETTING = ("note", "epochs", "baseline")


def trained(rows: list[dict[str, str]]) -> str:
    return f"{float(_with_found_rates(rows)[0]['train_accuracy']):.1%}"


def analysis(rows: list[dict[str, str]]) -> str:
    """What the run with found rates gets wrong, from its evidence."""
    row = _with_found_rates(rows)[0]
    run = Run.open(RUNS / row["evidence"])
    evaluation, names = run.evaluation, run.data.classes
    curve = {epoch.epoch: epoch.test_accuracy for epoch in run.history}
    last = len(run.history)
    either = evaluation.confusion + evaluation.confusion.T
    pairs = sorted(itertools.combinations(range(len(names)), 2), key=lambda pair: -int(either[pair]))[:3]
    (one, other), *more = pairs
    taken = f"{names[one].capitalize()} and {names[other]} are taken for each other "
    taken += f"{int(either[one, other])} times"
    taken += "".join(f", {names[i]} and {names[j]} {int(either[i, j])}" for i, j in more)
    found = sorted((score.recall or 0.0, score.name) for score in evaluation.per_class)
    right = evaluation.predictions == evaluation.labels
    sure = evaluation.probabilities.amax(1).double()
    return "\n".join(
        [
            f"- **The last epochs are worth most.** The test curve, scored afterwards, stands at "
            f"{curve[last - 5]:.1%} after {last - 5} epochs and at\n  {evaluation.accuracy:.2%} after "
            f"{last}, while the rate falls to LRMIN.",
            f"- **What it confuses.** {len(evaluation.mistakes)} of {len(right):,} test images are wrong.\n  "
            f"{taken}.\n  Found least: {found[0][1]} ({found[0][0]:.1%}); most: {found[-1][1]} "
            f"({found[-1][0]:.1%}).",
            f"- **How sure it is.** The mean confidence is {float(sure[right].mean()):.0%} where it is right "
            f"and {float(sure[~right].mean()):.0%} where it is wrong.",
        ]
    )


PARTS = {
    "results": results,
    "accuracy": accuracy,
    "rates": rates,
    "pipeline": pipeline,
    "speed": speed,
    "fast": fast,
    "plus": plus,
    "ablations": ablations,
    "pointing": pointing,
    "suspects": suspects,
    "trained": trained,
    "analysis": analysis,
}


def filled(text: str, rows: list[dict[str, str]]) -> str:
    """Return a page with every part between <!-- NAME --> and <!-- /NAME --> generated anew."""
    for name, part in PARTS.items():
        if f"<!-- {name} -->" not in text:
            continue
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
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page differs")
    arguments = parser.parse_args()
    for page in (ROOT / name for name in PAGES):
        before = page.read_text(encoding="utf-8")
        after = filled(before, read_rows())
        if before != after and arguments.check:
            sys.exit(f"{page.name} differs from results.csv: run benchmarks/tables.py")
        page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
