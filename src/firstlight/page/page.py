"""A run as one HTML file that can be mailed: it opens from disk and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from firstlight.data.images import DataFacts
from firstlight.errors import InputError, printable
from firstlight.figures.augmentations import Step
from firstlight.machine.clock import duration
from firstlight.machine.machine import PRECISIONS
from firstlight.page import payload
from firstlight.page.payload import Answers
from firstlight.page.sentences import sentences
from firstlight.recipe import Recipe
from firstlight.recipes import command
from firstlight.recipes.assignment import Line, checklist
from firstlight.record.head import HeadFacts, read_head
from firstlight.record.packaged import PackagedFolder
from firstlight.record.recipe_file import has_unknown_parts
from firstlight.record.record import REPORT, Record
from firstlight.record.summary import Summary
from firstlight.record.suspects import TrainingSuspects
from firstlight.record.values import attempted
from firstlight.record.whole import read_whole
from firstlight.training.head import advice
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding

_T = TypeVar("_T")

NEEDS_DATA = "--data-dir DIR, a folder that holds the data, adds what it gets wrong"
"""Where a network of the package is shown without its test images."""


@dataclass(frozen=True)
class Page:
    """A written page; a notebook shows it inline. note: what a person should know of it, if anything."""

    path: Path
    note: str = ""

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        document = html.escape(self.read(), quote=True)
        return f'<iframe srcdoc="{document}" width="100%" height="900" title="Firstlight report"></iframe>'


@dataclass(frozen=True)
class PageData:
    """What a page shows of a run. What its folder lacks is None or empty; `gaps` says why, by section."""

    name: str
    recipe: Recipe
    summary: Summary
    environment: Mapping[str, Any]
    data: DataFacts | None
    history: History
    schedule: Callable[[int], float] | None
    finding: LRFinding | None
    answers: Answers | None
    heat: dict[str, Any] | None
    whole: Mapping[int, bytes]
    training_suspects: TrainingSuspects | None
    head: HeadFacts | None
    film: list[Step]
    checklist: list[Line]
    card: Mapping[str, Any] | None
    gaps: Mapping[str, str]

    @classmethod
    def of(cls, record: Record) -> PageData:
        gaps: dict[str, str] = {}

        def section(name: str, read: Callable[[], _T], otherwise: _T) -> _T:
            try:
                return read()
            except InputError as error:
                gaps[name] = error.message.replace(f"{record.path}/", "")
                return otherwise

        def lines() -> list[Line]:
            return attempted(
                lambda: checklist(record.recipe, record.data, record.history, record.rates),
                "the recipe's network does not fit its images",
            )

        def whole() -> Mapping[int, bytes]:
            return read_whole(record.folder, len(answers.evaluation.labels)) if answers else {}

        images = section("images", lambda: record.kept_images, None)
        names = section("names", lambda: record.names, dict[int, str]())
        answers = section("predictions", lambda: payload.answers(record.evaluation, names, images), None)
        card = record.folder.card if isinstance(record.folder, PackagedFolder) else None
        if card is not None and answers is None:
            gaps["predictions"] = f"the test images were not at hand ({NEEDS_DATA})"
        return cls(
            name=printable(record.path.resolve().name),
            recipe=record.recipe,
            summary=record.summary,
            environment=section("environment", lambda: record.environment, {}),
            data=section("environment", lambda: record.data, None),
            history=section("history", lambda: record.history, History()),
            schedule=section("history", lambda: record.schedule, None),
            finding=section("finding", lambda: record.finding, None),
            answers=answers,
            heat=section("heat", lambda: payload.heat(record, answers), None),
            whole=section("whole", whole, {}),
            training_suspects=section("suspects", lambda: record.suspects, None),
            head=section("head", lambda: read_head(record.folder), None),
            film=section("film", lambda: payload.film(record), []),
            checklist=section("assignment", lines, []),
            card=card,
            gaps=gaps,
        )

    def sentences(self) -> list[str]:
        """Return what is confused, whether the confidence can be trusted, and what to try next."""
        if not self.answers:
            return []
        suspects = self.training_suspects
        errors = 0 if suspects is None else suspects.count
        return sentences(self.answers.evaluation, self.history, self.recipe, self.head, errors)

    def settings(self) -> dict[str, Any]:
        """Return the recipe by field; a rate that it leaves open is the one that was found."""
        return {key: self._with_rates(key, value) for key, value in self.recipe.to_json().items()}

    def _with_rates(self, key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._with_rates(name, item) for name, item in value.items()}
        is_open = value is None and key in ("peak_lr", "min_lr")
        rate = getattr(self.summary, key) if is_open else None
        return value if rate is None else f"{rate:g} (found)"

    def facts(self) -> dict[str, Any]:
        """Return environment and data, without what the page shows elsewhere."""
        data = self.environment.get("data")
        facts = {**self.environment, **(data if isinstance(data, dict) else {})}
        return {key: value for key, value in facts.items() if key not in ("schema", "data", "command")}

    def command(self) -> str | None:
        """Return the command that repeats the run: built from the checked recipe, never read from a file.

        None where a part of the recipe is not built in, since no command could name it.
        """
        precision = self.environment.get("precision")
        if precision not in PRECISIONS or has_unknown_parts(self.recipe):
            return None
        try:
            words = command(self.recipe, str(precision))
        except InputError:
            return None
        return words if words is not None and words.isprintable() else None

    def script_data(self) -> dict[str, Any]:
        """Return what the scripts read."""
        answers, data = self.answers, self.data
        return {
            "columns": payload.COLUMNS,
            "size": data and data.shape[1:],
            "classes": data and data.classes,
            "items": answers and answers.items,
            "suspects": answers and answers.suspects,
            "whole": payload.whole(self.whole, answers) if answers and self.whole else None,
            "calibration": answers and [vars(each) for each in answers.evaluation.calibration().bins],
            "heat": self.heat,
            "colours": payload.heat_colours(),
            "curves": payload.curves(self.history, self.schedule) if len(self.history) else None,
            "finder": self.finding and payload.finder(self.finding),
        }


def write_page(record: Record) -> Page:
    """Write report.html from a run's record; what its folder lacks is named on the page."""
    text = templates().get_template("page.html").render(page=PageData.of(record))
    record.folder.write(REPORT, text)
    return Page(record.path / REPORT)


def _asset(name: str) -> Markup:
    return Markup((resources.files("firstlight.page") / "assets" / name).read_text(encoding="utf-8"))


def _hash(text: str) -> Markup:
    """Return the hash by which the page's policy lets a style or a script through."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")


def templates() -> Environment:
    """Return the templates of the pages, with their filters."""
    environment = Environment(
        loader=PackageLoader("firstlight.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals.update(asset=_asset, zip=zip, shown_suspects=payload.shown_suspects)
    environment.globals.update(curve_points=payload.curve_points, advice=advice)
    environment.filters.update(
        percent=_known("{:.2%}".format, "not measured"),
        duration=_known(duration, "not measured"),
        count=_known("{:,.0f}".format, "unknown"),
        rate=_known("{:g}".format, "open"),
        setting=setting,
        hash=_hash,
        quoted=shlex.quote,
        picture=lambda image: payload.sheet(image[None], 1),
    )
    return environment


def _known(write: Callable[[float], str], otherwise: str) -> Callable[[float | None], str]:
    """Return a filter that writes a number, and `otherwise` where there is none."""
    return lambda value: otherwise if value is None or not math.isfinite(value) else write(value)


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
