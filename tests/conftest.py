"""What every test shares: a cache of its own, no network, and the real CIFAR-10 where this machine has it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread: the networks here are tiny, and beside other work two threads wait for each other.
# Before torch is imported, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_GIVEN = os.environ.get("FIRSTLIGHT_DATA")
_BESIDE = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(autouse=True, scope="session")
def own_cache() -> Iterator[Path]:
    """Keep the user's cache and data out of the tests, and the tests out of the network."""
    # Not pytest's temporary folder, which outlives the session: the decoded set takes 185 MB.
    with (
        tempfile.TemporaryDirectory(prefix="firstlight-tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("FIRSTLIGHT_CACHE", folder)
        patch.setenv("FIRSTLIGHT_OFFLINE", "1")
        patch.delenv("FIRSTLIGHT_DATA", raising=False)
        yield Path(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run, with validation images; to be copied, not changed."""
    from firstlight.jobs.train import train

    size = {"train": 130, "test": 20, "width": 2, "batch_size": 20, "validation": 10, "epochs": 2}
    options = {"peak_lr": 0.1, "min_lr": 0.001, "device": "cpu", "precision": "fp32", "quiet": True}
    return train("shapes.demo", out=tmp_path_factory.mktemp("trained") / "run", **size, **options).path


@pytest.fixture(scope="session")
def cifar_folder() -> Path:
    """Return a folder that holds the real CIFAR-10, or skip the test."""
    for folder in (Path(_GIVEN) if _GIVEN else None, _BESIDE):
        if folder is not None and (folder / "cifar-10-batches-py" / "test_batch").is_file():
            return folder.resolve()
    pytest.skip(
        "the real CIFAR-10 is not here: set FIRSTLIGHT_DATA to the folder that holds cifar-10-batches-py"
    )
