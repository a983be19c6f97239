"""The range test finds the rates that a curve shows, refuses one that shows none, and changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import CPU, TinyNet, digest, global_random_states, image_set
from torch import Tensor, nn

from firstlight.data.augment import FlipLR
from firstlight.data.batches import Batches
from firstlight.errors import InputError
from firstlight.machine.streams import seeded, stream
from firstlight.training import range_test
from firstlight.training.lr_finder import LRFinding
from firstlight.training.optimizers import SGD
from firstlight.training.range_test import RangeTest, bracket, smooth

Curve = Callable[[float], float]
Find = Callable[[Curve], LRFinding]


def batches() -> Batches:
    return Batches(image_set(64), 16, (FlipLR(),), seed=0, machine=CPU)


def curve(*points: tuple[float, float]) -> Curve:
    """Return a loss that runs straight, over the rate's logarithm, from point to point (rate, loss)."""
    rates, losses = zip(*points, strict=True)
    return lambda rate: float(np.interp(math.log(rate), np.log(rates), losses))


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Find:
    """Return a range test whose losses are given by a curve instead of a network."""

    def run(loss_at: Curve) -> LRFinding:
        def step(state: object, images: Tensor, labels: Tensor, lr: float, *_: object) -> Tensor:
            return torch.tensor(loss_at(lr), dtype=torch.float64)

        monkeypatch.setattr(range_test, "train_step", step)
        return RangeTest()(TinyNet(), batches(), SGD(), CPU)

    return run


# The fall, 2.3 to 1.3, is a tenth done at 0.0016 and half lost again at 0.55.
BOWL = ((1e-3, 2.3), (0.1, 1.3), (0.3, 1.3), (1.0, 2.3))


def test_the_rates_of_a_clean_curve(find: Find) -> None:
    finding = find(curve(*BOWL))
    assert finding.peak_lr == pytest.approx(0.5, rel=0.15)
    assert finding.min_lr == pytest.approx(0.0016, rel=0.3)
    assert "2.30 to 1.3" in finding.peak_because
    for rate in (finding.peak_lr, finding.min_lr):
        assert rate == float(f"{rate:.2g}") and f"{rate:g}" in str(finding)
    # Half of the fall is lost at 0.55; ten steps more, half a decade, settle the smoothing.
    assert 1.5 < finding.rates[-1] < 2.5


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_them_little(seed: int, find: Find) -> None:
    clean, noise = curve(*BOWL), iter(torch.randn(200, generator=stream(seed, "noise")).tolist())
    finding = find(lambda rate: clean(rate) + 0.05 * next(noise))
    assert 0.3 < finding.peak_lr < 0.9 and 5e-4 < finding.min_lr < 6e-3


@pytest.mark.parametrize("end", [1e12, math.nan, math.inf])
def test_an_explosion_does_not_drown_the_rates_before_it(end: float, find: Find) -> None:
    bowl = curve(*BOWL)
    finding = find(lambda rate: bowl(rate) if rate < 0.3 else end)
    assert 0.15 < finding.peak_lr < 0.3
    assert all(math.isfinite(loss) for loss in (*finding.losses, *finding.smoothed))


def test_a_second_fall_beyond_the_first_rise_is_not_looked_at(find: Find) -> None:
    # With batch norm the loss can fall again, and deeper, at rates that no run bears.
    finding = find(curve((1e-3, 2.3), (0.1, 2.1), (0.3, 2.1), (0.6, 2.3), (1.0, 2.3), (5.0, 1.8), (9.0, 2.3)))
    assert finding.peak_lr == pytest.approx(0.43, rel=0.15) and finding.min_lr < 0.01


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (((1e-4, 2.3), (10.0, 2.3)), "no rate at which the loss falls"),
        (((1e-4, 2.3), (10.0, 4.0)), "no rate at which the loss falls"),
        (((1e-4, 2.3), (1e-3, 2.3), (10.0, 1.0)), "fall up to its highest rate"),
        (((1e-4, math.nan), (10.0, math.nan)), "no rate at which the loss falls"),
    ],
)
def test_a_curve_that_shows_nothing_is_refused(
    points: tuple[tuple[float, float], ...], says: str, find: Find
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        find(curve(*points))
    assert "peak_lr" in caught.value.hint and "min_lr" in caught.value.hint


def test_bracket_of_plain_numbers() -> None:
    assert bracket([2.0, 1.9, 1.5, 1.0, 1.4, 1.6, 2.0]) == (1, 4)
    assert bracket([2.0, 1.0, 3.0]) == (1, 1)
    assert bracket([2.0, 1.0, 1.6, 0.5, 2.0]) == (1, 1), "the first loss counts, not the largest"
    for nothing in ([], [1.0], [2.0, 1.99, 2.0], [2.0, 1.5, 1.0, 1.2]):
        assert bracket(nothing) is None


def test_losses_that_jump_decide_where_their_mean_goes_on_falling() -> None:
    steady = [2.33 - 0.002 * step for step in range(60)]
    jumping = [*steady, 2.33, 2.41, 2.29, 2.10, 2.03, 2.22, 2.39, 2.3, 2.2, 2.1, *[2.05] * 10, *[2.6] * 10]
    indices = bracket(smooth(jumping), jumping)
    assert indices is not None and indices[1] == 59
    without = bracket(smooth(jumping))
    assert without is not None and without[1] > 75, "the smoothed curve alone is fooled here"


def test_smoothing_is_a_mean_weighted_by_a_bell_over_two_steps() -> None:
    losses = torch.randn(30, generator=stream(0), dtype=torch.float64).numpy()
    steps = np.arange(30)
    weights = np.exp(-((steps[:, None] - steps) ** 2) / 8)
    assert smooth(losses.tolist()) == pytest.approx((weights @ losses / weights.sum(1)).tolist())
    assert smooth([2.0]) == [2.0] and smooth([]) == []


@pytest.mark.parametrize("test", [RangeTest(), RangeTest(1e-3, 100.0)])
def test_on_a_network(test: RangeTest) -> None:
    finding = test(TinyNet(), batches(), SGD(), CPU)
    assert len(finding.rates) == len(finding.losses) == len(finding.smoothed)
    steps = np.diff(np.log10(finding.rates))
    assert steps == pytest.approx(np.full(len(steps), 1 / 20))
    assert finding.rates[0] == test.lowest and finding.rates[-1] <= test.highest * (1 + 1e-9)
    assert test.lowest <= finding.min_lr < finding.peak_lr < test.highest
    assert finding.smoothed == pytest.approx(smooth(list(finding.losses)))
    assert finding.seconds > 0


def test_a_range_that_is_none_is_refused() -> None:
    for rates in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, math.inf), (math.nan, 1.0)):
        with pytest.raises(InputError, match="lowest < highest"):
            RangeTest(*rates)


def test_a_network_without_norms_loses_everything_and_ends_early() -> None:
    with seeded(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    finding = RangeTest()(model, batches(), SGD(), CPU)
    assert len(finding.rates) < 101 and finding.peak_lr < finding.rates[-1]


class Dropping(TinyNet):
    """A network that draws from torch's global stream."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.1, self.training))


def test_the_caller_is_left_alone() -> None:
    model, before = Dropping(), global_random_states()
    model.eval()
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    weights = digest(model.state_dict().values())
    first = RangeTest()(model, batches(), SGD(), CPU)
    assert digest(model.state_dict().values()) == weights
    assert (model.conv.weight.grad == 1).all()
    assert [name for name, weight in model.named_parameters() if weight.grad is not None] == ["conv.weight"]
    assert not any(module.training for module in model.modules())
    assert global_random_states() == before
    torch.rand(1)
    again = RangeTest()(model, batches(), SGD(), CPU)
    assert (again.losses, again.peak_lr, again.min_lr) == (first.losses, first.peak_lr, first.min_lr)


def test_a_finding_goes_to_json_and_back(find: Find) -> None:
    finding = find(curve(*BOWL))
    assert LRFinding.from_json(json.loads(json.dumps(finding.to_json(), allow_nan=False))) == finding
    changes: list[dict[str, object]] = [{"losses": None}, {"rates": 3}, {"surprise": 1}]
    for values in [*({**finding.to_json(), **change} for change in changes), {"rates": [], "smoothed": []}]:
        with pytest.raises(InputError, match="not a learning-rate finding"):
            LRFinding.from_json(values)
