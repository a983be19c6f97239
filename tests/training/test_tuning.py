"""Tuning of the last blocks: it is kept where images gain that were held out from it, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.machine.streams import seeded, stream
from firstlight.training.head import MIRRORED, HeadFit, LogisticHead
from firstlight.training.tuning import Tuned, applies, shown, tune

HEAD = LogisticHead(strengths=(1.0,), tune_rate=0.1)


def blocks() -> nn.Module:
    """Return a layer that throws half of what it reads away until it is trained."""
    with seeded(0, "blocks"):
        layer = nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        layer.weight[:, 4:] *= 0.02
    return nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tuned(labels: Tensor, grids: Tensor, seed: int = 0) -> Tuned:
    with torch.no_grad():
        features = torch.stack([blocks()(view.float()) for view in grids])
    fit: HeadFit = HEAD(features, labels, 2, seed)
    return tune(HEAD, blocks, grids, features, labels, 2, fit, seed, quiet=True)


def images(count: int = 400) -> tuple[Tensor, Tensor]:
    """Return six views of grids whose class lies in the channels that `blocks` hardly reads, and labels."""
    draws = stream(0, "grids")
    labels = torch.arange(count) % 2
    grids = torch.randn(len(MIRRORED), count, 8, 3, 3, generator=draws)
    grids[:, :, 6] += 0.7 * (2 * labels - 1)[None, :, None, None]
    return grids.half(), labels


def test_tuning_is_kept_where_held_out_images_gain() -> None:
    grids, labels = images()
    result = tuned(labels, grids)
    assert result.rehearsal.better and result.rehearsal.after > result.rehearsal.before + 0.05
    fresh = blocks().state_dict()
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in result.blocks.state_dict().items())
    assert "kept" in result.rehearsal.words and result.weight.shape == (2, 8)


def test_tuning_on_labels_without_meaning_changes_nothing() -> None:
    grids, labels = images()
    result = tuned(labels[torch.randperm(len(labels), generator=stream(1, "labels"))], grids)
    assert not result.rehearsal.better and "stays as published" in result.rehearsal.words
    fresh = blocks().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in result.blocks.state_dict().items())


def test_tuning_is_the_same_for_a_seed_and_differs_for_another() -> None:
    grids, labels = images(120)
    before = torch.get_rng_state()
    first, again, other = tuned(labels, grids), tuned(labels, grids), tuned(labels, grids, seed=1)
    assert torch.equal(torch.get_rng_state(), before), "the global stream is the user's"
    assert torch.equal(first.weight, again.weight) and torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_auto_tunes_where_there_are_images_and_minutes_enough() -> None:
    assert [applies(HEAD, count) for count in (59, 60, 5000, 5001)] == [False, True, True, False]
    assert applies(LogisticHead(tune="on"), 10) and not applies(LogisticHead(tune="off"), 1000)
    assert shown(5000) < 8 * 5000 < shown(20_000) < 3 * 20_000


@pytest.mark.parametrize("wrong", [{"tune": "maybe"}, {"tune_rate": 0.0}, {"tune_rate": 2.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="tune"):
        LogisticHead(**wrong)  # type: ignore[arg-type]
