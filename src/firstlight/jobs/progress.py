"""What a person sees while a run is on its way, and at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Self

from tqdm import tqdm

from firstlight.errors import printable
from firstlight.machine.clock import duration
from firstlight.record.summary import Summary
from firstlight.training.history import Epoch
from firstlight.training.loop import Tick


def cost_after(done: int, costs: Sequence[float], steps: int) -> float:
    """Return what the steps after the first `done` cost, where epoch e has `steps` of costs[e] each."""
    return sum(cost * min(max((epoch + 1) * steps - done, 0), steps) for epoch, cost in enumerate(costs))


class Progress:
    """A bar with rate and time left in a terminal or notebook, and one line an epoch that stays.

    Where there is neither, in a log, only the lines are written.

    steps: in an epoch. costs: of a step of each epoch, in any unit. done: steps taken before.
    lines: whether an epoch leaves one.
    """

    def __init__(
        self,
        steps: int,
        costs: Sequence[float],
        *,
        done: int = 0,
        quiet: bool = False,
        lines: bool = True,
    ) -> None:
        self._steps, self._costs, self._done, self._lines = steps, costs, done, lines and not quiet
        self._epochs = len(costs)
        in_notebook = "ipykernel" in sys.modules  # its output is no terminal, but can redraw a line
        self._bar: tqdm[None] = tqdm(
            total=steps * len(costs),
            initial=done,
            unit="step",
            disable=quiet or not (sys.stderr.isatty() or in_notebook),
            leave=False,
            dynamic_ncols=not in_notebook,
            ncols=100 if in_notebook else None,
            bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps  {postfix}",
        )

    def update(self, tick: Tick) -> None:
        if not self._bar.disable:
            left = self._left(self._bar.format_dict["elapsed"], tick.step, self._done)
            self._bar.set_postfix_str(
                f"{tick.images_per_second:,.0f} images/s  rate {tick.lr:.4f}  {duration(left)} left",
                refresh=False,
            )
            self._bar.update(tick.step - self._bar.n)
        if tick.epoch is not None and self._lines:
            self._write_epoch(tick.epoch)

    def _write_epoch(self, epoch: Epoch) -> None:
        line = (
            f"epoch {epoch.epoch:>{len(str(self._epochs))}}/{self._epochs}"
            f"  loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:6.2%}"
        )
        if epoch.validation_accuracy is not None:
            line += f"  validation {epoch.validation_accuracy:6.2%}"
        left = self._left(epoch.train_seconds, epoch.step, 0)
        line += f"  rate {epoch.lr:.4f}  {epoch.images_per_second:,.0f} images/s  {duration(left)} left"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def _left(self, seconds: float, step: int, first: int) -> float:
        """Return how long the steps after `step` will take, where those since `first` took `seconds`."""
        before, now = (cost_after(done, self._costs, self._steps) for done in (first, step))
        return seconds * now / (before - now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def result_lines(summary: Summary, images: int, views: int) -> list[str]:
    """Say what came out, for a terminal. images: in the test set. views: of test-time augmentation."""
    low, high = summary.test_interval_95 or (math.nan, math.nan)
    size, seconds = (summary.checkpoint_bytes or 0) / 1e6, summary.checkpoint_seconds or 0.0
    averaged = f"; {summary.test_accuracy_tta:.2%} with TTA" if views > 1 else ""
    halved = f"the rates were halved {summary.halvings} times, because training diverged"
    return [
        *([halved] if summary.halvings else []),
        f"test accuracy {summary.test_accuracy:.2%} without TTA (95 % interval {low:.2%} to {high:.2%}, "
        f"{images:,} images){averaged}",
        f"training took {duration(summary.train_seconds or 0)}, everything together "
        f"{duration(summary.wall_seconds or 0)}",
        f"checkpoints of {size:.1f} MB took {seconds:.1f} s",
    ]


def say(line: str) -> None:
    """Print a line at once, also into a log; what a terminal could take for a command is escaped."""
    print("\n".join(map(printable, line.split("\n"))), flush=True)


def silent(line: str) -> None:
    """Print nothing."""
