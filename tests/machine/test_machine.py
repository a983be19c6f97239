"""The machine, its random streams and its clock."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CPU, global_random_states
from torch import nn

from firstlight.errors import InputError
from firstlight.jobs.failures import interruptible
from firstlight.machine import machine as machines
from firstlight.machine.clock import Stopwatch
from firstlight.machine.kernels.library import load
from firstlight.machine.limits import usable_cores
from firstlight.machine.machine import choose, operations_on
from firstlight.machine.memory import tune_allocator
from firstlight.machine.processor import hardware_name, microarchitecture
from firstlight.machine.streams import seeded, stream


def test_streams_are_told_apart_by_seed_and_purpose() -> None:
    purposes = [(0,), (1,), (0, "order"), (0, "order", 0), (0, "order", 1), (0, "augment", 1)]
    purposes += [(0, "augment", "1")]
    drawn = {tuple(torch.rand(4, generator=stream(*purpose)).tolist()) for purpose in purposes}  # type: ignore[arg-type]
    assert len(drawn) == len(purposes)


def test_streams_stay_what_finished_runs_drew_from() -> None:
    assert stream(0).initial_seed() == 2583942801
    assert stream(0, "order", 0).initial_seed() == 3864838707
    assert stream(7, "augment", 1, 3).initial_seed() == 3193610076


def test_seeded_gives_a_stream_and_takes_it_back() -> None:
    before = global_random_states()
    with seeded(3, "weights"):
        first = torch.rand(5)
    assert global_random_states() == before
    assert torch.equal(first, torch.rand(5, generator=stream(3, "weights")))
    with pytest.raises(ZeroDivisionError), seeded(3, "weights"):
        torch.rand(1)
        raise ZeroDivisionError
    assert global_random_states() == before


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'\nKnown: auto, cpu"),
        ({"device": "cpu", "precision": "half"}, "unknown precision 'half'"),
        ({"determinism": "none"}, "unknown level of determinism 'none'"),
        ({"device": "cpu", "precision": "fp16"}, "needs a GPU"),
        ({"device": "cuda"}, "no cuda device.*\n.*--device cpu"),
    ],
)
def test_impossible_machines_are_refused(
    choices: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        choose(**choices, tune_memory=False)


@pytest.mark.parametrize(("bf16", "fp32", "chosen"), [(0.001, 0.01, "bf16"), (0.01, 0.001, "fp32")])
def test_a_cpu_takes_the_precision_that_is_faster(
    bf16: float, fp32: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.dtype] = []

    def convolution(dtype: torch.dtype, *, compiled: bool) -> Callable[[], None]:
        def takes() -> None:
            calls.append(dtype)
            # The first call compiles, and others may be disturbed: neither is to count.
            disturbed = calls.count(dtype) in (1, 3)
            time.sleep(0.02 if disturbed else {torch.bfloat16: bf16, torch.float32: fp32}[dtype])
            assert torch.get_num_threads() == 1

        return takes

    monkeypatch.setattr(machines, "load", lambda: None)  # no compiled kernels in bf16
    monkeypatch.setattr(machines, "_convolution", convolution)
    machine = choose("cpu", tune_memory=False)
    assert machine.precision == chosen and calls[:2] == [torch.bfloat16, torch.float32]
    assert machine.allocator == "default"
    assert machine.device.type == "cpu"
    assert machine.threads == torch.get_num_threads()


def test_nothing_is_compiled_for_a_network_that_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiles(*_: object) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(machines, "load", compiles)
    assert choose("cpu", tune_memory=False, trains=False).precision in ("bf16", "fp32")
    with pytest.raises(AssertionError, match="kernel"):
        choose("cpu", tune_memory=False)


def test_choosing_measures_real_convolutions_and_touches_no_global_stream() -> None:
    before = global_random_states()
    assert choose("cpu", tune_memory=False).precision in ("bf16", "fp32")
    assert global_random_states() == before


def test_a_machine_says_what_it_computes_in() -> None:
    half = replace(CPU, precision="bf16")
    assert (CPU.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    model, images = nn.Linear(4, 4), torch.ones(2, 4)
    with CPU.autocast():
        assert model(images).dtype == torch.float32
    with half.autocast():
        assert model(images).dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
    placed = half.place(nn.Conv2d(3, 4, 3))
    assert placed.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]
    assert operations_on(CPU) == load(torch.float32).words != operations_on(half)
    on_gpu = replace(half, device=torch.device("cuda"))
    assert operations_on(on_gpu) == "plain operations: on cuda torch's own are fast"


GLIBC = sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")


def in_own_process(code: str) -> list[str]:
    """Return the words that this code prints; there is no way back from a tuned allocator."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split()


def test_freed_memory_is_kept_and_lies_in_huge_pages() -> None:
    code = """
import re, torch
from firstlight.machine.machine import choose, operations_on
allocator = choose("cpu", "fp32").allocator
def kilobytes(name):
    return int(re.search(name + r": +([0-9]+)", open("/proc/self/smaps_rollup").read())[1])
before = kilobytes("Rss")
blocks = [torch.ones(2**24) for _ in range(4)]  # 64 MB each
within = kilobytes("Rss")
del blocks
print(within - before, kilobytes("Rss") - before, kilobytes("AnonHugePages"), allocator)
"""
    if not GLIBC:
        assert in_own_process("from firstlight.machine.memory import *; print(tune_allocator())") == [
            "default"
        ]
        return
    taken, kept, huge, *words = in_own_process(code)
    offers = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    offered = offers.exists() and "[never]" not in offers.read_text(encoding="ascii")
    assert " ".join(words) == "glibc, blocks kept" + (", huge pages" if offered else "")
    assert int(taken) > 250_000 and int(kept) > 250_000
    if offered and int(huge) < 200_000:
        pytest.skip(f"the system offers huge pages, but gave only {int(huge) // 1000} MB of them")


def test_elsewhere_the_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tune_allocator() == "default"


def test_a_stopwatch_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch(CPU)
    assert watch.seconds == 0
    watch.start()
    now += 2
    assert watch.seconds == 2
    watch.pause()
    now += 50
    assert watch.seconds == 2
    watch.start()
    now += 1
    watch.pause()
    assert watch.seconds == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(interruptible())
            found.append((asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_hardware_has_a_name_and_cores() -> None:
    assert usable_cores() >= 1
    assert f"{usable_cores()} cores" in hardware_name(torch.device("cpu"))


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", "25", "17", "Zen 4"),
        ("AuthenticAMD", "26", "2", "Zen 5"),
        ("AuthenticAMD", "25", "1", "Zen 3"),
        ("AuthenticAMD", "23", "49", "Zen 2"),
        ("GenuineIntel", "6", "207", "Emerald Rapids"),
        ("GenuineIntel", "6", "1", "family 6, model 1"),
        ("Somebody", "9", "3", "family 9, model 3"),
        ("AuthenticAMD", "", "17", ""),
    ],
)
def test_chips_of_one_name_are_told_apart(vendor: str, family: str, model: str, name: str) -> None:
    facts = {"vendor_id": vendor, "cpu family": family, "model": model, "model name": "AMD EPYC"}
    assert microarchitecture(facts) == name
