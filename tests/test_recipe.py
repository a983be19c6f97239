"""Recipes: values that can be changed, kept as JSON and read again, and that refuse what cannot be."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CPU, image_set
from torch import nn

from firstlight.data.augment import Crop, Cutout, FlipLR
from firstlight.errors import InputError
from firstlight.jobs.job import Job, scored_epochs
from firstlight.models.own import OwnNetwork
from firstlight.recipe import Recipe
from firstlight.recipes import RECIPES, description, named, resolve
from firstlight.recipes.settings import documented, with_text, words
from firstlight.record.recipe_file import Unknown, recipe_from_json
from firstlight.training.optimizers import Adam, AdamW, Muon
from firstlight.training.range_test import RangeTest
from firstlight.training.schedule import OneCycle


def test_the_assignment_is_what_the_course_asks_for() -> None:
    recipe = named("cifar10.assignment")
    assert recipe.augment == (Crop(32, pad=4), FlipLR(), Cutout(8))
    assert (recipe.batch_size, recipe.epochs, recipe.schedule) == (512, 24, OneCycle(peak_epoch=5))
    assert recipe.average_decay == 0 and not recipe.best_on_validation


def test_the_demo_is_the_assignment_but_for_its_data_and_width() -> None:
    demo, assignment = named("shapes.demo"), named("cifar10.assignment")
    differing = {
        field.name
        for field in dataclasses.fields(Recipe)
        if getattr(demo, field.name) != getattr(assignment, field.name)
    }
    assert differing == {"name", "data", "model"}
    assert dataclasses.replace(demo.model, width=assignment.model.width) == assignment.model


@pytest.mark.parametrize("name", RECIPES)
def test_json_gives_the_same_recipe_back(name: str) -> None:
    recipe = named(name).replace(peak_lr=0.3, weight_decay=1e-3)
    assert recipe_from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_settings_reach_the_recipe_and_its_parts_from_text_and_from_python() -> None:
    text = {
        "peak_lr": "0.3",
        "batch_size": "64",
        "width": "8",
        "best_on_validation": "yes",
        "validation": "50",
    }
    recipe = with_text(named("shapes.demo"), {**text, "beta1": "0.8", "optimizer": "adamw"})
    assert (recipe.schedule.peak_lr, recipe.batch_size, recipe.model.width) == (0.3, 64, 8)
    assert recipe.optimizer == AdamW(beta1=0.8) and recipe.best_on_validation
    assert with_text(recipe, {"peak_lr": "find"}).schedule.peak_lr is None
    recipe = recipe.replace(**{"cutout.size": 4, "weight_decay": 0.1, "peak_lr": None})
    assert recipe.augment[2] == Cutout(4) and recipe.optimizer.weight_decay == 0.1
    assert recipe.augment[0] == Crop(32, pad=4), "only the part that was named may change"
    assert recipe.schedule.peak_lr is None


def test_the_settings_of_earlier_versions_go_on_working() -> None:
    plain = {"peak_lr": "0.3", "min_lr": "0.01", "peak_epoch": "4", "schedule": "cosine", "l1": "1e-6"}
    recipe = with_text(named("shapes.demo"), {**plain, "label_smoothing": "0.1", "clip_norm": "1"})
    assert recipe.schedule == OneCycle(4, 0.3, 0.01, "cosine")
    assert vars(recipe.objective) == {"label_smoothing": 0.1, "l1": 1e-6, "clip_norm": 1, "sharpness": 0}
    muon = with_text(named("cifar10.fast"), {"bias_rate": "100", "linear_rate": "8"}).optimizer
    assert (muon.bias_lr_factor, muon.linear_lr_factor) == (100, 8)


def test_every_setting_has_a_key_a_value_and_a_line_on_what_it_is() -> None:
    for name in RECIPES:
        recipe = named(name)
        keys = [line.split()[0] for line in description(recipe) if line.strip()]
        for setting in recipe.settings():
            assert documented(setting.owner)[setting.name], f"{setting.owner.__name__}.{setting.name}"
            assert recipe.setting(setting.key) == setting
            assert setting.key in keys


def test_a_recipe_of_the_first_version_is_read(tmp_path: Path) -> None:
    flat = {
        **{"name": "old", "data": {"type": "Shapes"}, "model": {"type": "CustomResNetSpec", "width": 4}},
        **{"augment": [{"type": "FlipLR"}], "optimizer": {"type": "Muon", "bias_rate": 3.0}},
        **{"peak_epoch": 2.0, "peak_lr": 0.2, "min_lr": None, "schedule": "cosine", "epochs": 3},
        **{"label_smoothing": 0.1, "sharpness": 0.2},
    }
    recipe = recipe_from_json(flat)
    assert recipe.schedule == OneCycle(2.0, 0.2, None, "cosine") and recipe.optimizer == Muon(
        bias_lr_factor=3
    )
    assert (recipe.objective.label_smoothing, recipe.objective.sharpness) == (0.1, 0.2)
    assert recipe_from_json(recipe.to_json()) == recipe
    assert recipe.finder == RangeTest(), "the only finder that there was"


def test_test_time_augmentation_shows_no_view_that_training_would_not() -> None:
    recipe = named("cifar10.fast")
    assert (len(recipe.views), len(named("cifar10.assignment").views)) == (6, 2)
    never_mirrored = dataclasses.replace(recipe, augment=recipe.augment[:1])
    assert len(never_mirrored.views) == 3 and not never_mirrored.views.mirror
    assert len(dataclasses.replace(never_mirrored, tta_shift=0).views) == 1
    with pytest.raises(InputError, match="further than training does"):
        recipe.replace(tta_shift=3)


def test_settings_that_hold_only_together_may_be_given_together() -> None:
    recipe = named("shapes.demo").replace(epochs=3, peak_epoch=1)
    assert (recipe.epochs, recipe.schedule.peak_epoch) == (3, 1)


def test_epochs_shrink_the_schedule_in_proportion_but_an_explicit_peak_stays() -> None:
    assert resolve("shapes.demo", epochs=12).schedule.peak_epoch == 2.5
    assert resolve("shapes.demo", epochs=12, peak_epoch=4).schedule.peak_epoch == 4
    assert resolve("shapes.demo", epochs=1).schedule.peak_epoch == pytest.approx(5 / 24)


def test_the_sides_of_the_first_epochs_stretch_with_the_epochs() -> None:
    recipe = resolve("cifar10.assignment", epochs=8, text={"sides": "16,24,24"})
    assert recipe.sides == (16, 24, 24)
    assert recipe.over(16).sides == (16, 16, 24, 24, 24, 24)
    assert recipe.over(4).sides == (16, 24)
    assert recipe.over(1).sides == ()
    assert resolve("cifar10.assignment", sides=(24,) * 5, epochs=24).over(7).sides == (24,)
    assert with_text(recipe, {"sides": ""}).sides == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sides": (24, 0)}, "sides must be positive, not (24, 0)"),
        ({"sides": (24, "big")}, "sides takes a whole number, not 'big'"),
        ({"sides": 24}, "sides takes a list of numbers, not 24"),
        ({"peak_Ir": 0.1}, "Did you mean 'peak_lr'"),
        ({"wieght_decay": 0.1}, "Did you mean 'weight_decay'"),
        ({"size": 4}, "crop.size, cutout.size"),
        ({"peak_lr": "high"}, "peak_lr takes a number, not 'high'"),
        ({"peak_lr": math.nan}, "peak_lr takes a number"),
        ({"peak_lr": -1}, "peak_lr must be a positive number"),
        ({"peak_lr": 0.1, "min_lr": 0.2}, "min_lr 0.2 is above peak_lr 0.1"),
        ({"batch_size": "64"}, "batch_size takes a whole number, not '64'"),
        ({"batch_size": 5.5}, "batch_size takes a whole number"),
        ({"batch_size": True}, "batch_size takes a whole number"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"peak_epoch": 25}, "outside the 24 epochs"),
        ({"schedule": "triangle"}, "schedule cannot be 'triangle'"),
        ({"curve": "triangle"}, "unknown schedule 'triangle'"),
        ({"nesterov": "perhaps"}, "true or false"),
        ({"optimizer": "lion"}, "optimizer cannot be 'lion'"),
        ({"optimizer": None}, "optimizer cannot be None"),
        ({"augment": "crop"}, "augment cannot be"),
        ({"best_on_validation": True}, "needs validation images"),
        ({"name": "mine"}, "name cannot be set"),
        ({"seed": -1}, "seed must not be negative"),
        ({"width": 0}, "width"),
        ({"logit_scale": 0}, "logit_scale must be above 0"),
        ({"momentum": 1}, "momentum must be in [0, 1), not 1"),
        ({"weight_decay": -1}, "weight_decay must not be negative"),
        ({"optimizer": Adam(), "beta2": 1.5}, "beta2 must be in [0, 1)"),
        ({"optimizer": AdamW(), "beta1": -1}, "beta1 must be in [0, 1)"),
        ({"optimizer": Muon(), "other_momentum": 2}, "other_momentum must be in [0, 1)"),
        ({"optimizer": Muon(), "bias_rate": 0}, "bias_lr_factor must be a positive number"),
    ],
)
def test_what_cannot_be_is_refused_with_a_word_on_what_can(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        named("cifar10.assignment").replace(**settings)
    assert said in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"cifar10\.assignment"):
        named("cifar.asignment")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"sides": "24,big"}, "sides takes a whole number, not 'big'"),
        ({"peak_lr": "high"}, "peak_lr takes a number, not 'high'"),
        ({"batch_size": "5.5"}, "batch_size takes a whole number"),
        ({"nesterov": "perhaps"}, "true or false"),
        ({"optimizer": "adan"}, "Did you mean 'adam'"),
        ({"schedule": "triangle"}, "schedule cannot be 'triangle'"),
        ({"model": "nowhere:Net"}, "there is no network nowhere:Net"),
    ],
)
def test_text_that_cannot_be_is_refused(text: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        with_text(named("cifar10.assignment"), text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", {"type": "CustomResNetSpec", "depth": 3}, "no field 'depth'"),
        ("model", {"type": ["SGD"]}, "names no part"),
        ("model", "CustomResNetSpec", "names no part"),
        ("augment", {"type": "Crop"}, "list of parts"),
        ("epochs", "many", "whole number"),
        ("depth", 3, "no field 'depth'"),
    ],
)
def test_a_damaged_file_says_which_field(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_from_json({**named("shapes.demo").to_json(), key: value})


def test_a_part_that_is_not_built_in_does_nothing_and_is_written_as_it_was_read() -> None:
    values = {**named("shapes.demo").to_json(), "model": {"type": "subprocess.Popen", "args": "true"}}
    values["optimizer"] = {"type": "Shapes", "train": 3}  # a source is no optimizer
    recipe = recipe_from_json(values)
    assert isinstance(recipe.model, Unknown) and recipe.to_json() == values
    for use in (
        lambda: recipe.model(10),
        lambda: recipe.optimizer([], 0.1),
        lambda: recipe.model.anything(1),
    ):
        with pytest.raises(InputError, match="is no part of Firstlight"):
            use()


class OwnNet(nn.Module):
    """A network that knows nothing of Firstlight."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, classes)


def test_a_users_own_network_is_saved_by_name_and_built_only_where_it_is_given() -> None:
    recipe = dataclasses.replace(named("shapes.demo"), model=OwnNet)
    assert isinstance(recipe.model, OwnNetwork) and recipe.model(7).linear.out_features == 7
    again = recipe_from_json(recipe.to_json())
    assert isinstance(again.model, Unknown) and again.to_json() == recipe.to_json()
    assert recipe_from_json(recipe.to_json(), parts=[OwnNet]).model(5).linear.out_features == 5
    instance = OwnNet(4)
    copied = dataclasses.replace(recipe, model=instance).model(4)
    assert copied is not instance and torch.equal(copied.linear.weight, instance.linear.weight)
    with pytest.raises(InputError, match=r"built no nn\.Module"):
        dataclasses.replace(recipe, model=lambda: 3).model(4)


def test_json_without_a_part_says_which() -> None:
    values = named("shapes.demo").to_json()
    del values["model"]
    with pytest.raises(InputError, match="lacks model"):
        recipe_from_json(values)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 24, "seed": 7},
        {"peak_lr": 0.4, "weight_decay": 0.001, "cutout.size": 6, "padding": "zero", "width": 32},
        {"sides": (16, 24)},
        {"batch_size": 128, "label_smoothing": 0.1, "validation": 1000, "best_on_validation": True},
        {"optimizer": AdamW(beta1=0.8), "curve": "cosine"},
    ],
)
@pytest.mark.parametrize("epochs", [24, 10])
def test_the_words_of_a_command_make_the_recipe_again(settings: dict[str, Any], epochs: int) -> None:
    usual = named("cifar10.assignment")
    settings = {key: value for key, value in settings.items() if key != "epochs"}
    wanted = usual.over(epochs).replace(**settings)
    flat = words(wanted, usual)
    flags = list(zip(flat[::2], flat[1::2], strict=True))
    given = {flag: value for flag, value in flags if flag != "--set"}
    pairs = dict(value.split("=", 1) for flag, value in flags if flag == "--set")
    again = resolve(usual, epochs=int(given.get("--epochs", 24)), seed=int(given["--seed"]), text=pairs)
    assert again == wanted


@pytest.mark.parametrize("epochs", [1, 3, 12, 13, 24, 25, 100])
def test_the_test_curve_has_at_most_twelve_points_and_ends_at_the_end(epochs: int) -> None:
    points = list(scored_epochs(epochs))
    assert points[-1] == epochs and points[0] >= 1 and len(points) <= 12
    assert len({later - earlier for earlier, later in itertools.pairwise(points)}) <= 1
    assert epochs > 12 or points == list(range(1, epochs + 1))


def test_small_images_are_refused_by_a_network_that_cannot_take_them_and_shorten_the_estimate() -> None:
    images = image_set(24, size=32)
    small = {"batch_size": 8, "widths": (16, 16, 16), "stem": 8, "sides": (16, 16)}
    fast = resolve("cifar10.fast", epochs=4, **small)
    job = Job.with_images(images, images, fast, CPU)
    assert job.estimate(1.0)["training"] == 3 * (2 / 4 + 2)
    assert job.estimate(1.0, done=5)["training"] == 1 / 4 + 6
    views = 4 + 6  # a point of the curve for each epoch, and test-time augmentation
    assert job.estimate(1.0)["evaluation"] == pytest.approx(views * 3 / 3)
    with pytest.raises(InputError, match="cannot take images of 24×24"):
        Job.with_images(
            images, images, resolve("cifar10.assignment", width=4, batch_size=8, sides=(24,)), CPU
        )
