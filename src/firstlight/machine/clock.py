"""The clock of training, and lengths of time in words."""

from __future__ import annotations

import time

from firstlight.machine.machine import Machine


class Stopwatch:
    """Measures running time without pauses, in seconds; the device is synchronised at both ends."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._elapsed = 0.0
        self._start: float | None = None

    def start(self) -> None:
        self._machine.synchronise()
        self._start = time.perf_counter()

    def pause(self) -> None:
        self._machine.synchronise()
        self._elapsed = self.seconds
        self._start = None

    @property
    def seconds(self) -> float:
        """Seconds so far, without waiting for the device."""
        running = 0.0 if self._start is None else time.perf_counter() - self._start
        return self._elapsed + running


def duration(seconds: float) -> str:
    """Write a length of time for a reader: 45 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
