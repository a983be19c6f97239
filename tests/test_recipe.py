"""Recipes: values that can be changed, kept as JSON and read again, and that refuse what cannot be."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from tiny import CPU, image_set

from firstlight.data.augment import Crop, Cutout, FlipLR
from firstlight.errors import InputError
from firstlight.jobs.job import Job, scored_epochs
from firstlight.jobs.train import resolve
from firstlight.recipe import Recipe
from firstlight.recipes import RECIPES, named
from firstlight.recipes.assignment import free_choices
from firstlight.training.optimizers import Adam, AdamW, Muon


def test_the_assignment_is_what_the_course_asks_for() -> None:
    recipe = named("cifar10.assignment")
    assert recipe.augment == (Crop(32, pad=4), FlipLR(), Cutout(8))
    assert (recipe.batch_size, recipe.epochs, recipe.peak_epoch) == (512, 24, 5)
    assert recipe.peak_lr is None and recipe.min_lr is None
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
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_settings_reach_the_recipe_and_its_parts_from_text_and_from_python() -> None:
    recipe = named("shapes.demo").replace(
        peak_lr="0.3", batch_size="64", width="8", optimizer="adamw", best_on_validation="yes", validation=50
    )
    assert (recipe.peak_lr, recipe.batch_size, recipe.model.width) == (0.3, 64, 8)
    assert recipe.optimizer == AdamW() and recipe.best_on_validation
    recipe = recipe.replace(**{"cutout.size": 4, "weight_decay": 0.1, "peak_lr": "find"})
    assert recipe.augment[2] == Cutout(4) and recipe.optimizer.weight_decay == 0.1 and recipe.peak_lr is None
    assert recipe.augment[0] == Crop(32, pad=4), "only the part that was named may change"


def test_settings_that_hold_only_together_may_be_given_together() -> None:
    recipe = named("shapes.demo").replace(epochs=3, peak_epoch=1)
    assert (recipe.epochs, recipe.peak_epoch) == (3, 1)


def test_epochs_shrink_the_schedule_in_proportion_but_an_explicit_peak_stays() -> None:
    assert resolve("shapes.demo", epochs="12").peak_epoch == 2.5
    assert resolve("shapes.demo", epochs=12, peak_epoch=4).peak_epoch == 4
    assert resolve("shapes.demo", epochs=1).peak_epoch == pytest.approx(5 / 24)


def test_the_sides_of_the_first_epochs_stretch_with_the_epochs() -> None:
    recipe = resolve("cifar10.assignment", epochs=8, sides="16,24,24")
    assert recipe.sides == (16, 24, 24)
    assert recipe.over(16).sides == (16, 16, 24, 24, 24, 24)
    assert recipe.over(4).sides == (16, 24)
    assert recipe.over(1).sides == ()
    assert resolve("cifar10.assignment", sides=(24,) * 5, epochs=24).over(7).sides == (24,)
    assert recipe.replace(sides="").sides == ()
    assert free_choices(recipe)["size of the images"] == "epochs: 1 at 16×16, 2 at 24×24, then whole"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sides": "24,big"}, "sides takes a whole number, not 'big'"),
        ({"sides": "24,0"}, "sides must be positive, not 24,0"),
        ({"sides": 24}, "sides takes a list of numbers, not 24"),
        ({"peak_Ir": 0.1}, "Did you mean 'peak_lr'"),
        ({"wieght_decay": 0.1}, "Did you mean 'weight_decay'"),
        ({"size": 4}, "crop.size, cutout.size"),
        ({"peak_lr": "high"}, "peak_lr takes a number, not 'high'"),
        ({"peak_lr": "nan"}, "peak_lr takes a number"),
        ({"peak_lr": -1}, "peak_lr must be a positive number"),
        ({"peak_lr": 0.1, "min_lr": 0.2}, "min_lr 0.2 is above peak_lr 0.1"),
        ({"batch_size": "5.5"}, "batch_size takes a whole number"),
        ({"batch_size": 5.5}, "batch_size takes a whole number"),
        ({"batch_size": True}, "batch_size takes a whole number"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"peak_epoch": 25}, "outside the 24 epochs"),
        ({"schedule": "triangle"}, "unknown schedule 'triangle'"),
        ({"nesterov": "perhaps"}, "true or false"),
        ({"optimizer": "lion"}, "optimizer cannot be 'lion'"),
        ({"augment": "crop"}, "list of parts"),
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
        ({"optimizer": Muon(), "bias_rate": 0}, "bias_rate must be a positive number"),
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
    ("key", "value", "said"),
    [
        ("model", {"type": "subprocess.Popen", "args": "true"}, "no built-in part"),
        ("model", {"type": "CustomResNetSpec", "depth": 3}, "no field 'depth'"),
        ("model", {"type": "SGD"}, "model cannot be"),
        ("epochs", "many", "whole number"),
        ("depth", 3, "no field 'depth'"),
    ],
)
def test_json_names_built_in_parts_only(key: str, value: object, said: str) -> None:
    values = {**named("shapes.demo").to_json(), key: value}
    with pytest.raises(InputError, match=said):
        Recipe.from_json(values)


def test_json_without_a_part_says_which() -> None:
    values = named("shapes.demo").to_json()
    del values["model"]
    with pytest.raises(InputError, match="lacks model"):
        Recipe.from_json(values)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 24, "seed": 7},
        {"peak_lr": 0.4, "weight_decay": 0.001, "cutout.size": 6, "padding": "zero", "width": 32},
        {"sides": (16, 24)},
        {"batch_size": 128, "label_smoothing": 0.1, "validation": 1000, "best_on_validation": True},
    ],
)
@pytest.mark.parametrize("epochs", [24, 10])
def test_the_words_of_a_command_make_the_recipe_again(settings: dict[str, Any], epochs: int) -> None:
    usual = named("cifar10.assignment")
    settings = {key: value for key, value in settings.items() if key != "epochs"}
    wanted = usual.over(epochs).replace(**settings)
    words = wanted.settings_from(usual)
    flags = list(zip(words[::2], words[1::2], strict=True))
    given = {flag: value for flag, value in flags if flag != "--set"}
    pairs = dict(value.split("=", 1) for flag, value in flags if flag == "--set")
    again = usual.over(given.get("--epochs", usual.epochs)).replace(seed=given["--seed"], **pairs)
    assert again == wanted


@pytest.mark.parametrize("epochs", [1, 3, 12, 13, 24, 25, 100])
def test_the_test_curve_has_at_most_twelve_points_and_ends_at_the_end(epochs: int) -> None:
    points = list(scored_epochs(epochs))
    assert points[-1] == epochs and points[0] >= 1 and len(points) <= 12
    assert len({later - earlier for earlier, later in itertools.pairwise(points)}) <= 1
    assert epochs > 12 or points == list(range(1, epochs + 1))


def test_small_images_are_refused_by_a_network_that_cannot_take_them_and_shorten_the_estimate() -> None:
    images = image_set(24, size=32)
    small = {"batch_size": 8, "widths": (16, 16, 16), "stem": 8, "sides": "16,16"}
    fast = resolve("cifar10.fast", epochs=4, **small)
    job = Job.on(images, images, fast, CPU)
    assert job.estimate(1.0)["training"] == 3 * (2 / 4 + 2)
    assert job.estimate(1.0, done=5)["training"] == 1 / 4 + 6
    views = 4 + 6  # a point of the curve for each epoch, and test-time augmentation
    assert job.estimate(1.0)["evaluation"] == pytest.approx(views * 3 / 3)
    with pytest.raises(InputError, match="cannot take images of 24×24"):
        Job.on(images, images, resolve("cifar10.assignment", width=4, batch_size=8, sides="24"), CPU)
