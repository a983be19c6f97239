"""The page of a network of the package: its card, and its mistakes where the test images are here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from firstlight.data.cifar10 import is_here
from firstlight.data.images import ImageSet
from firstlight.data.source import Source
from firstlight.errors import InputError, printable
from firstlight.insight.evaluation import Evaluation
from firstlight.page.page import NEEDS_DATA, Page, write_page
from firstlight.record.packaged import WithResults
from firstlight.record.record import REPORT, Record


def write_card_page(
    network: WithResults,
    source: Source,
    evaluate: Callable[[ImageSet], Evaluation],
    data_dir: str | Path | None = None,
) -> Page:
    """Write NAME-report.html into the current folder, whole or not at all.

    source: of its test images, which `data_dir` or the cache holds; nothing is downloaded, and without them
    the page is the card alone. evaluate: classifies them.
    Raises InputError where the file is there already, or cannot be written.
    """
    out = network.default_output(REPORT)
    if out.exists():
        raise InputError(f"{printable(out)} is there already", "Move it away, or go to another folder.")
    record = Record(network)
    # The networks of the package are of CIFAR-10.
    is_at_hand = data_dir is not None or is_here()
    if is_at_hand:
        _, images = source.load(None if data_dir is None else Path(data_dir))
        record.write_evaluation(evaluate(images), None, images)
    write_page(record)
    try:
        handle, aside = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(network.read_bytes(REPORT, 0))
            os.chmod(aside, 0o644)
            os.replace(aside, out)
        finally:
            Path(aside).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {printable(out)}: {error.strerror}") from None
    return Page(out, "" if is_at_hand else f"The card alone: {NEEDS_DATA}.")
