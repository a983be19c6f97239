"""Under `make sanitise` the sanitisers watch the kernels: what is wrong on purpose ends the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "libasan" not in os.environ.get("LD_PRELOAD", ""),
    reason="only `make sanitise` builds with the sanitisers",
)

BEFORE = """
import torch
from firstlight.machine.kernels.library import load
for dtype in (torch.bfloat16, torch.float32):  # what does not compile would be tested nowhere
    assert load(dtype) or "compiler" not in load(dtype).words, load(dtype).words
kernels = load(torch.float32)
images, sums = torch.zeros(64, 16), torch.zeros(2, 16, dtype=torch.float64)
"""
MISTAKES = {
    "heap-buffer-overflow": 'kernels.call("norm_sums", images, 65, 16, sums[0], sums[1])',
    "signed integer overflow": 'kernels.call("filter_gradient_work", 2**62, 2**62, sums)',
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(mistake: str) -> None:
    code = BEFORE + MISTAKES[mistake]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and mistake in done.stderr


def test_no_mistake_is_seen_where_none_is() -> None:
    code = BEFORE + MISTAKES["heap-buffer-overflow"].replace("65", "64")
    subprocess.run([sys.executable, "-c", code], check=True)
