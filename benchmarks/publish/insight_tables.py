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


def suspects(tables: Tables) -> str:
    """Write the rankings of label errors, means over the seeds of the newest setting."""
    rows, setting = tables["suspects"], itemgetter("note", "epochs", "baseline")
    last = rows[-1]
    runs = {(row["ranking"], row["seed"]): row for row in rows if setting(row) == setting(last)}
    source = f"{last['baseline']}; {last['note']}, {last['epochs']} epochs."
    return f"{label_errors.table(list(runs.values()))}\n\n{source}"
