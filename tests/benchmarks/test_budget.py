"""The limits of a step follow from the network and from measured rates; a row's parts add up to its step."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed import budget, limits, roofline, tracking
from firstlight.machine.kernels.library import load


def test_the_products_of_the_network_are_counted() -> None:
    # 379 million, of which its linear layer makes 5,120 (tests/models/test_models.py counts its weights).
    products = sum(limits.direct(block, images) for block, images, _ in limits.blocks())
    assert products == pytest.approx(379e6, rel=0.01)
    assert (limits.fewer(2), limits.fewer(4)) == (2.25, 4.0)


def test_the_limits_are_those_of_the_slower_of_products_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_KERNELS", "plain")
    load.cache_clear()
    rates = {"fast memory": (100.0, 1e9), "fast products": (1e9, 10.0), "both": (100.0, 10.0)}
    found = {}
    for name, (registers, memory) in rates.items():
        monkeypatch.setattr(
            roofline, "measure", lambda _, r=registers, m=memory: roofline.Roofline(r, 0, 0, 0, m)
        )
        found[name], _ = limits.limits("fp32", 8)
    load.cache_clear()
    # Torch's direct convolutions, three times a step: two operations of floating point for each product.
    assert found["fast memory"]["limit"] == pytest.approx(3 * 2 * 379e6 * 8 / 1e11, rel=0.01)
    assert found["fast memory"]["limit"] == pytest.approx(found["fast memory"]["limit_products"], rel=1e-3)
    assert found["fast products"]["limit"] == pytest.approx(found["fast products"]["limit_memory"], rel=1e-3)
    both = found["both"]
    assert max(both["limit_products"], both["limit_memory"]) <= both["limit"]
    assert both["limit"] <= both["limit_products"] + both["limit_memory"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_rates_of_the_chip_are_measured(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not load(dtype):
        pytest.skip(load(dtype).words)
    monkeypatch.setattr(roofline, "MOST_BYTES", 2**24)
    rates = roofline.measure(dtype)
    assert rates.registers > 1 and rates.l1 > rates.memory > 0.1


def test_a_rows_parts_add_up_to_its_step() -> None:
    parts = dict.fromkeys([*budget.PARTS, budget.OPTIMIZER, budget.REST], 0.125)
    loops = {loop: {"step": 0.125 * len(parts), "parts": parts} for loop in budget.LOOPS}
    kept = {"limit": 0.5, "limit_memory": 0.2, "limit_products": 0.4, "registers": 100.04}
    row = budget.row("avx2", {"loops": loops, "limits": kept, "kernels": "some", "batch_size": 8})
    assert row["step_seconds"] == pytest.approx(
        row["convolutions_seconds"] + row["norms_seconds"] + row["rest_seconds"]
    )
    assert (row["kernels"], row["limit_seconds"], row["registers"]) == ("avx2", 0.5, 100.0)


def test_courses_of_the_loss_are_compared_by_their_means() -> None:
    reference = [2.0] * 200
    drifting = [2.0 + (0.1 if step % 2 else -0.1) for step in range(200)]
    off = [*reference[:180], *[2.1] * 20]
    assert tracking.furthest(drifting, reference) == pytest.approx(0.0)
    assert tracking.furthest(off, reference) == pytest.approx(0.05)
