"""`results.csv`: one row for every run whose numbers are published."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.csv")


def read_rows(path: Path = RESULTS) -> list[dict[str, str]]:
    """Return all rows, oldest first; every value is text, empty where a row has none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items()} for row in csv.DictReader(file)]


def stock_seconds(rows: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Return R by hardware: the seconds that the stock loop takes for 50,000 images, of the newest row."""
    return {row["hardware"]: float(row["r_seconds"]) for row in rows if row.get("r_seconds")}


def add_row(values: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Append a row; a key that no earlier row has becomes a new column at the end."""
    rows = [*read_rows(path), {key: "" if value is None else str(value) for key, value in values.items()}]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    aside = path.with_suffix(".tmp")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    aside.replace(path)
