"""A run folder as one HTML file that can be mailed: it opens from disk and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.suspects import Suspects, suspects
from firstlight.machine.clock import duration
from firstlight.page import payload, sentences
from firstlight.recipes.assignment import checklist
from firstlight.record import record

if TYPE_CHECKING:
    from firstlight.record.record import Record as Run

_LEVELS = 4
_FEWEST_SUSPECTS, _MOST_SUSPECTS = 24, 60
_T = TypeVar("_T")


def _need(value: Any, what: str) -> Any:
    if value is None:
        raise InputError(f"this run keeps no {what}")
    return value


def _film(run: Any) -> Any:
    return payload.film(
        _need(run.samples, "augmented images"),
        run.recipe.augment,
        run.data.mean,
        run.data.std,
        run.data.classes,
    )


def _heat(run: Any, pictured: int) -> Any:
    from firstlight.data.augment import normalise
    from firstlight.insight.gradcam import gradcam_pair

    images, indices = run.kept_images
    worst = run.evaluation.mistakes
    count = min(pictured, len(worst), 2000)
    if not torch.equal(indices[:count], worst[:count]):
        raise InputError("the kept pictures are not those of the mistakes")
    return payload.heat(
        *gradcam_pair(
            run.model,
            normalise(images[:count], run.data.mean, run.data.std),
            run.evaluation.predictions[worst[:count]],
            run.evaluation.labels[worst[:count]],
        )
    )


@dataclass(frozen=True)
class Page:
    """A written page; a notebook shows it inline."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        within = html.escape(self.read(), quote=True)
        return f'<iframe srcdoc="{within}" width="100%" height="900" title="Firstlight report"></iframe>'


def write_page(run: Run) -> Page:
    """Write report.html from what a run's folder holds; whatever it lacks is named on the page."""
    gaps: dict[str, str] = {}
    folder, summary = run.folder, run.summary.to_json()
    recipe = run.recipe
    environment = _or_none(gaps, "environment", lambda: run.environment) or {}
    evaluation = _or_none(gaps, "predictions", lambda: _need(run.evaluation, "predictions"))
    history = _or_none(gaps, "history", lambda: run.history) or ()
    finding = _or_none(gaps, "finding", lambda: run.finding)
    pictures = (
        _or_none(gaps, "pictures", lambda: _need(run.kept_images, "test images")) if evaluation else None
    )
    script: dict[str, Any] = {"columns": payload.COLUMNS, "classes": [], "side": [1, 1]}
    values: dict[str, Any] = {"sheet": None, "confusion": None, "kept": "", "heat": None, "doubtful_shown": 0}
    if evaluation is not None:
        script["classes"] = list(evaluation.classes)
        script["side"] = list(run.data.shape[1:])
        tiles = None
        if pictures is not None:
            values["sheet"], tiles = payload.sheet_within(*pictures)
            pictured = len(tiles)
            values["heat"] = script["heat"] = _or_none(gaps, "heat", lambda: _heat(run, pictured))
        names = _or_none(gaps, "names", lambda: run.names) or {}
        script["items"] = payload.items(evaluation, names, tiles)
        doubted = suspects(evaluation.labels, evaluation.probabilities)
        script["suspects"] = _doubtful(evaluation, doubted, script["items"])
        calibration = evaluation.calibration()
        script["calibration"] = [vars(each) for each in calibration.bins]
        values |= {
            "confusion": _cells(evaluation),
            "kept": _kept(evaluation, script["items"]),
            "pairs": evaluation.top_pairs(6),
            "scores": evaluation.per_class,
            "calibration_error": calibration.error,
            "doubtful": doubted.count,
            "doubtful_shown": len(script["suspects"]),
            "sentences": sentences.sentences(evaluation, run.history, recipe),
        }
    if len(history):
        script["curves"] = payload.curves(run.history, run.schedule)
    if finding is not None:
        script["finder"] = payload.finder(finding)
    page = (
        _templates()
        .get_template("page.html")
        .render(
            {"pairs": (), "scores": (), "calibration_error": None, "sentences": ()} | values,
            run=folder.path.resolve().name,
            **_assets(),
            gaps=gaps,
            classes=script["classes"],
            summary=summary,
            interval=_interval(summary.get("test_interval_95")),
            environment={
                key: value for key, value in environment.items() if key not in ("schema", "data", "command")
            },
            data=_mapping(environment.get("data")),
            recipe={key: _found(key, value, summary) for key, value in recipe.to_json().items()},
            command=environment.get("command"),
            finding=finding.to_json() if finding is not None else {},
            history=history,
            film=_or_none(gaps, "film", lambda: _film(run)),
            training_suspects=_or_none(gaps, "suspects", lambda: _training_suspects(run)),
            lines=_or_none(gaps, "checklist", lambda: checklist(run.recipe, run.data, run.history, run.rates))
            or [],
            json=Markup(_as_script(script)),
        )
    )
    folder.write(record.REPORT, page)
    return Page(folder.path / record.REPORT)


def _or_none(gaps: dict[str, str], name: str, give: Callable[[], _T]) -> _T | None:
    """Return what there is; what is not there leaves its reason in `gaps`."""
    try:
        return give()
    except InputError as error:
        gaps[name] = error.message
        return None


def _assets() -> dict[str, Any]:
    """Return style and script, each with the hash by which the page's policy lets it through."""
    assets = resources.files("firstlight.page") / "assets"
    texts: dict[str, Any] = {}
    for name in ("css", "js"):
        text = (assets / f"page.{name}").read_text(encoding="utf-8")
        texts[name] = Markup(text)
        texts[f"{name}_hash"] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return texts


def _templates() -> Environment:
    source = resources.files("firstlight.page") / "assets" / "page.html"
    templates = Environment(
        loader=DictLoader({"page.html": source.read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        percent=percent, duration=_duration, count=_count, rate=_rate, setting=setting, plain=_plain
    )
    return templates


def _as_script(values: Mapping[str, Any]) -> str:
    """Write JSON that no browser reads as the end of a script or as markup."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _cells(evaluation: Evaluation) -> list[list[dict[str, int]]]:
    """Return the confusion matrix, each mistake with a level of 0 to 4 by the square root of its share."""
    table = evaluation.confusion
    wrong = table.clone().fill_diagonal_(0)
    most = max(int(wrong.max()), 1)
    levels = ((wrong / most).sqrt() * _LEVELS).ceil().int()
    return [
        [{"count": count, "level": level} for count, level in zip(*row, strict=True)]
        for row in zip(table.tolist(), levels.tolist(), strict=True)
    ]


def _kept(evaluation: Evaluation, items: Mapping[str, list[Any]]) -> str:
    """Say which images the page has and which it leaves out."""
    wrong = len(evaluation.mistakes)
    listed = min(wrong, payload.MOST_LISTED)
    pictured = sum(tile >= 0 for tile in items["tile"][:listed])
    right = len(items["tile"]) - listed
    said = (
        f"All {wrong:,} mistakes are here"
        if listed == wrong
        else f"The {listed:,} worst of {wrong:,} mistakes are here"
    )
    if pictured < listed:
        said += f", the {pictured:,} of the highest loss with a picture" if pictured else ", without pictures"
    return said + f", and {right:,} of {evaluation.right:,} right answers to compare them with."


def _doubtful(evaluation: Evaluation, found: Suspects, items: Mapping[str, list[Any]]) -> list[int]:
    """Return the places among the items of the test images whose label is most doubtful, these first.

    The estimate of how many labels are wrong is cautious, so a few more of the ranking are shown: those
    where the network says another class than the label.
    """
    place = {index: at for at, index in enumerate(items["index"])}
    otherwise = evaluation.predictions != evaluation.labels
    chosen = found.order[otherwise[found.order]][: _shown(found.count)].tolist()
    return [place[index] for index in chosen if index in place]


def _shown(estimated: int) -> int:
    return min(max(estimated, _FEWEST_SUSPECTS), _MOST_SUSPECTS)


def _found(key: str, value: Any, summary: Mapping[str, Any]) -> Any:
    """Return a setting of the recipe; a rate that it leaves open is the one that was found."""
    found = _number(summary.get(key)) if value is None and key in ("peak_lr", "min_lr") else None
    return value if found is None else f"found: {found:g}"


def _training_suspects(run: Run) -> dict[str, Any] | None:
    """Return the doubtful training labels with their pictures, None where they were not looked for."""
    found, classes = run.suspects, run.data.classes
    if found is None:
        return None
    rows = [
        {
            "index": index,
            "name": name,
            "label": classes[int(found.labels[index])],
            "suggested": classes[suggested],
            "uri": payload.sheet(image[None], 1),
        }
        for index, name, suggested, image in zip(
            found.indices.tolist(), found.names, found.suggested.tolist(), found.images, strict=True
        )
    ]
    return {"count": found.count, "rows": rows[: _shown(found.count)]}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _interval(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)


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


def _plain(value: Any) -> str:
    """Write a number for a script to compare; nothing where there is none."""
    number = _number(value)
    return "" if number is None else f"{number:.6f}"
