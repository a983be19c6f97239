"""All that stands between <!-- NAME --> and <!-- /NAME --> in README.md and docs/, written from the rows.

python -m benchmarks.publish.tables             # writes it where it stands
python -m benchmarks.publish.tables --check     # fails where a page differs from the rows
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import BENCHMARKS, Row
from benchmarks.publish.insight_tables import pointing, suspects
from benchmarks.publish.kernels import budget, resnet, tracked
from benchmarks.publish.machines import gpu, large_sets, older_chips, raced
from benchmarks.publish.own_images import decoding, own_images
from benchmarks.publish.regret import methods, regret, shares
from benchmarks.publish.rows import Group, Tables, groups, mean, read_tables, short, table, yardsticks
from benchmarks.recipes.choose import AS_IT_STANDS
from firstlight.errors import InputError
from firstlight.run import Run

ROOT = BENCHMARKS.parent


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def best(tables: Tables) -> str:
    """Write the three numbers of the first screen: accuracy, time, speed beside the stock loop."""
    plus = max(_by_chip("cifar10.assignment_plus", tables), key=lambda group: group.accuracy(tta=False).mean)
    fast = min(_by_chip("cifar10.fast", tables), key=lambda group: group.seconds(tta=True))
    loops = yardsticks(tables).items()
    ratios = sorted((float(loop["ratio"]), short(chip)) for chip, loop in loops)
    ends = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio, _ in (ratios[0], ratios[-1])))
    chips = ", ".join(chip for _, chip in ratios)
    minutes, seconds = plus.seconds(tta=False) / 60, fast.seconds(tta=True)
    lines = [
        f"{_accuracy(plus, tta=False)} without test-time augmentation, {minutes:.0f} min: `{plus.recipe}`, "
        f"2 cores of an {short(plus.hardware)}",
        f"{_accuracy(fast, tta=True)} with test-time augmentation, **{seconds:.0f} s**: `{fast.recipe}`, "
        f"2 cores of an {short(fast.hardware)}",
        f"**{ends} times** as fast as the same training in plain PyTorch ({chips})",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _accuracy(group: Group, *, tta: bool) -> str:
    spread, interval = group.accuracy(tta=tta), group.interval(tta=tta)
    reach = f", ± {50 * (interval[1] - interval[0]):.2f} at 95 %" if interval else ""
    return f"**{100 * spread.mean:.2f} %** (n = {len(group.runs)}{reach})"


def results(tables: Tables) -> str:
    """Write a line per recipe, rates and hardware: mean, sd and 95 % interval over its complete runs."""
    lines = []
    for group in groups(tables):
        plain, augmented = group.accuracy(tta=False), group.accuracy(tta=True)
        low, high = group.interval(tta=False) or (plain.mean, plain.mean)
        kind = "of one run, over images" if plain.sd is None else "of the mean, over seeds"
        seconds = group.seconds(tta=False)
        time = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.1f} s"
        if group.newest["threads"] == "1":
            time += ", one thread of a busy machine"
        lines.append(
            f"`{group.recipe}` | {group.rates} | {group.newest['epochs']} | {len(group.runs)} "
            f"| **{plain.mean:.2%}** | {'' if plain.sd is None else f'{plain.sd:.2%}'} "
            f"| {low:.2%} to {high:.2%} ({kind}) | {augmented.mean:.2%} | {time} "
            f"| {group.hardware}, {group.newest['precision']}"
        )
    titles = "recipe | rates | epochs | n | accuracy, no TTA | sd | 95 % interval | with TTA "
    titles += "| training | hardware"
    return table(titles, lines)


def _assignment(tables: Tables) -> Row:
    """Return the course's run: 24 epochs, its learning rates found."""
    by_kind = {(group.recipe, group.newest["epochs"], group.rates): group for group in groups(tables)}
    return by_kind["cifar10.assignment", "24", "found"].newest


def accuracy(tables: Tables) -> str:
    run = _assignment(tables)
    return f"**{float(run['test_accuracy']):.2%}** (seed {run['seed']}, without TTA)"


def rates(tables: Tables) -> str:
    run = _assignment(tables)
    return f"LRMIN {float(run['min_lr']):g}, LRMAX {float(run['peak_lr']):g}"


def trained(tables: Tables) -> str:
    return f"{float(_assignment(tables)['train_accuracy']):.1%}"


def analysis(tables: Tables) -> str:
    """Write what the course's run gets wrong, from its evidence."""
    run = Run.open(BENCHMARKS / "runs" / _assignment(tables)["evidence"])
    evaluation, names = run.evaluation, run.data.classes
    curve = {epoch.epoch: epoch.test_accuracy for epoch in run.history}
    last = len(run.history)
    either = evaluation.confusion + evaluation.confusion.T
    pairs = sorted(itertools.combinations(range(len(names)), 2), key=lambda pair: -int(either[pair]))[:3]
    confused = [f"{names[i]} and {names[j]} {int(either[i, j])}" for i, j in pairs]
    recall = sorted((score.recall or 0.0, score.name) for score in evaluation.per_class)
    right = evaluation.predictions == evaluation.labels
    confidence = evaluation.probabilities.amax(1).double()
    return "\n".join(
        [
            f"- **The last epochs are worth most.** The test curve, scored afterwards, stands at "
            f"{curve[last - 5]:.1%} after {last - 5} epochs and at\n  {evaluation.accuracy:.2%} after "
            f"{last}, while the rate falls to LRMIN.",
            f"- **What it confuses.** {len(evaluation.mistakes)} of {len(right):,} test images are wrong.\n  "
            f"Mistaken for each other: {', '.join(confused)} times.\n  "
            f"Recall is lowest for {recall[0][1]} ({recall[0][0]:.1%}) and highest for {recall[-1][1]} "
            f"({recall[-1][0]:.1%}).",
            f"- **How sure it is.** The mean confidence is {float(confidence[right].mean()):.0%} where it is "
            f"right and {float(confidence[~right].mean()):.0%} where it is wrong.",
        ]
    )


def pipeline(tables: Tables) -> str:
    run = tables["input_pipeline"][-1]
    return (
        f"The input pipeline delivers {int(run['images_per_second']):,} images a second, "
        f"{float(run['ratio']):.0f} × the course's own ({run['baseline']}: "
        f"{int(run['baseline_images_per_second']):,} a second in the same run), and takes "
        f"{float(run['step_share']):.1%} of a training step ({run['hardware']}, {run['precision']})."
    )


def speed(tables: Tables) -> str:
    """Write how fast a step is beside the stock loop's, a paragraph for each chip."""
    paragraphs = []
    for run in yardsticks(tables).values():
        images, stock_images = (f"{float(run[f'{loop}images_per_second']):,.0f}" for loop in LOOPS)
        first, stock_first = (f"{float(run[f'{loop}first_step_seconds']):.1f}" for loop in LOOPS)
        peak, stock_peak = (f"{float(run[f'{loop}peak_gigabytes']):.2f}" for loop in LOOPS)
        paragraphs.append(
            f"**{run['ratio']} times as fast as PyTorch's stock loop** on the same threads, in turn: "
            f"{images} images a second against {stock_images} ({run['hardware']}, {run['precision']}). "
            f"The 24 epochs of the assignment take {float(run['assignment_r']):.1f} R instead of 24, "
            f"where R is {float(run['r_seconds']):.0f} s. The first step ends {first} s after the start "
            f"instead of {stock_first}, and the peak of memory is {peak} GB instead of {stock_peak}."
        )
    return "\n\n".join(paragraphs)


LOOPS = ("", "baseline_")
"""Whose columns: Firstlight's, the stock loop's."""


def fast(tables: Tables) -> str:
    """Write how good and how fast `cifar10.fast` is, test-time augmentation included in both."""
    return _paragraphs("cifar10.fast", tables, tta=True)


def plus(tables: Tables) -> str:
    """Write how good and how fast `cifar10.assignment_plus` is, by its last epoch alone."""
    return _paragraphs("cifar10.assignment_plus", tables, tta=False)


def _by_chip(recipe: str, tables: Tables) -> list[Group]:
    """Return for each CPU the runs of a recipe as it was last trained there."""
    trained = (group for group in groups(tables) if group.recipe == recipe)
    return list({each.hardware: each for each in trained if each.newest["device"] == "cpu"}.values())


def _paragraphs(recipe: str, tables: Tables, *, tta: bool) -> str:
    paragraphs = []
    for group in _by_chip(recipe, tables):
        spread, other = group.accuracy(tta=tta), group.accuracy(tta=not tta)
        detail = ""
        if spread.sd is not None and spread.interval is not None:
            detail = f" (n = {len(group.runs)}, sd {spread.sd:.2%}, 95 % interval of the mean "
            detail += "{:.2%} to {:.2%})".format(*spread.interval)
        words = ("with", "without") if tta else ("without", "with")
        clock = "from the first step to the last forward pass of that augmentation" if tta else "of training"
        seconds, row = group.seconds(tta=tta), yardsticks(tables).get(group.hardware)
        r = float(row["r_seconds"]) if row else None
        paragraphs.append(
            f"`{recipe}`: **{spread.mean:.2%} {words[0]} test-time augmentation**{detail}, "
            f"{other.mean:.2%} {words[1]}, {seconds:,.0f} s {clock} "
            f"({group.hardware}, {group.newest['precision']})"
            + (f": **{seconds / r:.2f} R**, where R is {r:.0f} s." if r else ".")
        )
    return "\n\n".join(paragraphs)


def ablations(tables: Tables) -> str:
    """Write what `cifar10.fast` loses without each of its parts, means over runs.

    A run is compared with those of the whole recipe from the same seed, and left out where there is none; its
    time with theirs on the same chip.
    """
    whole = [run for run in tables["ablations"] if run["change"] == AS_IT_STANDS]
    runs = [run for run in tables["ablations"] if run["seed"] in {other["seed"] for other in whole}]
    lines = []
    for change in dict.fromkeys(run["change"] for run in runs):
        changed = [run for run in runs if run["change"] == change]
        pairs = [(run, other) for run in changed for other in whole if run["seed"] == other["seed"]]
        accuracy, loss = (
            (mean([run for run, _ in pairs], key), mean([other for _, other in pairs], key))
            for key in ("accuracy_tta", "calibrated_loss")
        )
        there = [pair for pair in pairs if pair[0]["hardware"] == pair[1]["hardware"]]
        times = [float(run["train_seconds"]) / float(other["train_seconds"]) for run, other in there]
        time = f"× {statistics.mean(times):.2f}" if times else ""
        lines.append(
            f"{change} | {len(changed)} | {accuracy[0]:.2%}, {100 * (accuracy[0] - accuracy[1]):+.2f} "
            f"| {loss[0]:.3f}, {loss[0] - loss[1]:+.3f} | {time}"
        )
    chips = Counter(f"{run['hardware']}, {run['precision']}" for run in runs)
    counts = "; ".join(f"{chip}: {count}" for chip, count in chips.items())
    titles = "change | n | accuracy with TTA, points | calibrated, difference | time"
    return f"{table(titles, lines)}\n\nRuns by chip: {counts}."


PARTS: dict[str, Callable[[Tables], str]] = {
    part.__name__: part
    for part in (
        *(best, results, accuracy, rates, trained, analysis, pipeline, speed, fast, plus),
        *(ablations, pointing, suspects, regret, shares, methods, gpu, raced, older_chips, own_images),
        *(large_sets, resnet, tracked, budget, decoding),
    )
}


def filled(text: str, tables: Tables) -> str:
    """Return a page with every part between <!-- NAME --> and <!-- /NAME --> written anew."""

    def part(match: re.Match[str]) -> str:
        name, newline = match[1], match[2]
        if name not in PARTS:
            raise InputError(f"<!-- {name} --> names no part", "Known: " + ", ".join(PARTS) + ".")
        return f"<!-- {name} -->{newline}{PARTS[name](tables)}{newline}<!-- /{name} -->"

    return re.sub(r"<!-- (\w+) -->(\n?).*?<!-- /\1 -->", part, text, flags=re.DOTALL)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--check", action="store_true", help="change nothing; fail where a page differs")
    arguments = options.parse_args()
    tables = read_tables()
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before, tables)
        if before == after:
            continue
        if arguments.check:
            sys.exit(f"{page.name} differs from the rows: run `python -m benchmarks.publish.tables`")
        page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
