"""What the measurements of insight say: the pointing game, and the rankings of label errors."""

from __future__ import annotations

from operator import itemgetter

from benchmarks.insight import suspects as label_errors
from benchmarks.measure import Row
from benchmarks.publish.rows import Tables, mean, table

MAPS = {"gradcam": "Grad-CAM", "layercam": "LayerCAM"}
CLEARLY = 25
"""Points above the centre."""


def pointing(tables: Tables) -> str:
    """Write the pointing game: a line for each size of objects, map and grid; the newest row of each run."""
    newest: dict[tuple[str, ...], dict[tuple[str, str], Row]] = {}
    for row in tables["pointing"]:
        key = row["object_size"], row["method"], row["grid"]
        newest.setdefault(key, {})[row["seed"], row["peak_lr"]] = row
    lines: list[str] = []
    clear: dict[str, list[str]] = {}
    for (size, method, grid), by_run in newest.items():
        runs = list(by_run.values())
        hits = [float(row["pointing"]) for row in runs]
        above = 100 * (mean(runs, "pointing") - mean(runs, "pointing_centre"))
        objects = "of usual size" if size == "100" else f"{size} % as wide"
        spread = f" ({min(hits):.1%} to {max(hits):.1%})" if len(hits) > 1 else ""
        lines.append(
            f"{objects} | {MAPS[method]} | {grid} | {len(runs)} | {mean(runs, 'pointing'):.1%}{spread} "
            f"| {mean(runs, 'pointing_centre'):.1%} | {above:+.1f} points "
            f"| {mean(runs, 'pointing_off_centre'):.1%} | {mean(runs, 'pointing_random'):.1%} "
            f"| {mean(runs, 'pointing_chance'):.1%}"
        )
        grids = clear.setdefault(f"objects {objects}: {MAPS[method]}", [])
        if above >= CLEARLY:
            grids.append(grid)
    where = [f"{key} {'on ' + ', '.join(grids) if grids else 'nowhere'}" for key, grids in clear.items()]
    titles = "objects | map | grid | runs | hits | always the centre | above it | off centre "
    titles += "| random weights | chance"
    return f"{table(titles, lines)}\n\nAt least {CLEARLY} points above the centre: {'; '.join(where)}."


CHOSEN_ON = "0"
"""The seed whose settings chose the model of label errors; the others were looked at afterwards."""
BEFORE = "as it was before errors like the network's own were modelled"
SETS = {"shapes": "shapes", "cifar": "CIFAR-10 features"}
ERRORS = {"random": "at random", "network": "of a weaker network", "none": "none"}


def suspects(tables: Tables) -> str:
    """Write the rankings of label errors, means over the seeds of the newest setting of errors at random.

    And, for every set, kind and share of errors, ours and the best of cleanlab's rankings.
    """
    early = [row for row in tables["suspects"] if not row.get("errors")]
    setting = itemgetter("note", "epochs", "baseline")
    last = early[-1]
    runs = {(row["ranking"], row["seed"]): row for row in early if setting(row) == setting(last)}
    source = f"{last['baseline']}; {last['note']}, {last['epochs']} epochs; firstlight {BEFORE}."
    return f"{confusions(tables)}\n\n{label_errors.table(list(runs.values()))}\n\n{source}"


def confusions(tables: Tables) -> str:
    """Write a line for each set, kind and share of errors, and for seeds that chose the model or did not."""
    cells: dict[tuple[str, str, str, bool], dict[tuple[str, str], Row]] = {}
    for row in tables["suspects"]:
        if row.get("errors"):
            key = row["images"], row["errors"], row["share"], row["seed"] == CHOSEN_ON
            cells.setdefault(key, {})[row["ranking"], row["seed"]] = row
    lines, sizes = [], set()
    for (images, errors, share, chosen), by_ranking in sorted(cells.items()):
        ours = [row for row in by_ranking.values() if row["ranking"] == label_errors.OURS]
        size = int(ours[0]["note"].split()[0])
        sizes.add(f"{SETS[images]}: {ours[0]['note']}")
        wrong = round(float(share) * size)
        counts = ", ".join(
            f"{row['estimated_wrong']} ({row['estimated_low']} to {row['estimated_high']})" for row in ours
        )
        theirs = ", ".join(
            row["estimated_wrong"] for (name, _), row in by_ranking.items() if name == label_errors.COUNTS
        )
        scores = "| | | |"
        if wrong:
            best = [
                max(
                    mean([row for row in by_ranking.values() if row["ranking"] == name], key)
                    for name, _ in by_ranking
                    if name != label_errors.OURS
                )
                for key in ("average_precision", "precision_at_wrong")
            ]
            scores = (
                f"| {mean(ours, 'average_precision'):.3f} | {best[0]:.3f} "
                f"| {mean(ours, 'precision_at_wrong'):.3f} | {best[1]:.3f}"
            )
        lines.append(
            f"{SETS[images]} | {ERRORS[errors]} | {'yes' if chosen else 'no'} | {len(ours)} | {wrong} "
            f"| {counts} | {theirs} {scores}"
        )
    titles = "images | errors | chose the model | n | wrong | estimated, 95 % interval | cleanlab "
    titles += "| average precision | cleanlab's best | precision at the number | cleanlab's best"
    return f"{table(titles, lines)}\n\n{'; '.join(sorted(sizes))}."
