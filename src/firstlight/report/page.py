"""A run folder as one HTML file that can be mailed: no script, and no request to any network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from firstlight.record import contents
from firstlight.record.folder import RunFolder
from firstlight.report.checklist import Line
from firstlight.report.progress import duration

LISTED_MISTAKES = 24
"""As many as the figure of misclassified images shows."""


def write_page(
    folder: RunFolder,
    pictures: Mapping[str, bytes],
    missing: Mapping[str, str],
    summary: Mapping[str, Any],
    environment: Mapping[str, Any],
    recipe: Mapping[str, Any],
    lines: Sequence[Line],
) -> Path:
    """Write report.html into the run folder and return its path.

    pictures: PNG files by name. missing: for each picture that could not be drawn, why.
    summary, environment, recipe: as the folder's files hold them; whatever they lack is named on the page.
    """
    assets = resources.files("firstlight.report") / "assets"
    css = (assets / "page.css").read_text(encoding="utf-8")
    templates = Environment(
        loader=DictLoader({"page.html": (assets / "page.html").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(percent=percent, duration=_duration, count=_count, rate=_rate, setting=setting)
    page = templates.get_template("page.html").render(
        run=folder.path.resolve().name,
        css=Markup(css),
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        pictures={name: _embedded(png) for name, png in pictures.items()},
        missing=missing,
        summary=summary,
        interval=_interval(summary.get("test_interval_95")),
        environment={key: value for key, value in environment.items() if key not in ("schema", "data")},
        data=_mapping(environment.get("data")),
        recipe={key: _found(key, value, summary) for key, value in recipe.items()},
        finding=_mapping(folder.read_json(contents.FINDING)) if folder.has(contents.FINDING) else {},
        mistakes=_mistakes(folder),
        lines=lines,
    )
    folder.write(contents.REPORT, page)
    return folder.path / contents.REPORT


def _found(key: str, value: Any, summary: Mapping[str, Any]) -> Any:
    """Return a setting of the recipe; a rate that it leaves open is the one that was found."""
    found = _number(summary.get(key)) if value is None and key in ("peak_lr", "min_lr") else None
    return value if found is None else f"found: {found:g}"


def _embedded(png: bytes) -> dict[str, Any]:
    """Return what an <img> needs: the file as a data URI, and width and height, which stand in its header."""
    width, height = (int.from_bytes(png[place : place + 4], "big") for place in (16, 20))
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"uri": uri, "width": width, "height": height}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _interval(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)


def _mistakes(folder: RunFolder) -> list[dict[str, str]]:
    """Return the first rows of the table of mistakes, none where it is missing or another table."""
    if not folder.has(contents.MISTAKES):
        return []
    rows = csv.DictReader(io.StringIO(folder.read_text(contents.MISTAKES)))
    if not {"index", "name", "true", "predicted", "confidence"} <= set(rows.fieldnames or ()):
        return []
    return [
        {key: value for key, value in row.items() if isinstance(key, str) and isinstance(value, str)}
        for row in itertools.islice(rows, LISTED_MISTAKES)
    ]


def _number(value: Any) -> float | None:
    """Return a finite number; None for whatever else a file may hold in its place."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def percent(value: Any) -> str:
    number = _number(value)
    return "not measured" if number is None else f"{number:.2%}"


def _duration(seconds: Any) -> str:
    number = _number(seconds)
    return "not measured" if number is None else duration(number)


def _count(value: Any) -> str:
    number = _number(value)
    return "unknown" if number is None else f"{number:,.0f}"


def _rate(value: Any) -> str:
    number = _number(value)
    return "open" if number is None else f"{number:g}"


def setting(value: Any) -> str:
    """Write one value of a recipe or an environment as a person would: parts as Name(field=value, …)."""
    if isinstance(value, Mapping):
        fields = ", ".join(f"{key}={setting(item)}" for key, item in value.items() if key != "type")
        return f"{value['type']}({fields})" if "type" in value else fields
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
