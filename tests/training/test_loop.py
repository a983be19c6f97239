"""The training loop: a step is the formula, the numbers are right, and a run can be left and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from tiny import CPU, TinyNet, digest, global_random_states, image_set
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstlight.data.augment import Crop, FlipLR
from firstlight.data.batches import Batches
from firstlight.errors import Diverged, InputError, RunFailed
from firstlight.training.loop import Tick, fit, train_step
from firstlight.training.objective import Objective, uphill
from firstlight.training.optimizers import SGD, OptimizerSpec
from firstlight.training.schedule import Cycle
from firstlight.training.state import Best, TrainState, capture, restore

FOREVER = 1e9
SCHEDULE = Cycle(0.1, 0.01, 12, 4)


def batches(batch_size: int = 6) -> Batches:
    return Batches(image_set(24), batch_size, (Crop(8, pad=2), FlipLR()), seed=0, machine=CPU)


def fresh(seed: int = 0, spec: OptimizerSpec = SGD(), average_decay: float = 0.0) -> TrainState:
    return TrainState.create(TinyNet(seed=seed), spec, CPU, average_decay=average_decay)


def training(state: TrainState, *, tick_seconds: float = FOREVER, epochs: int = 3) -> Iterator[Tick]:
    return fit(state, batches(), SCHEDULE, epochs=epochs, machine=CPU, tick_seconds=tick_seconds)


def minimised(
    model: nn.Module, images: Tensor, labels: Tensor, objective: Objective
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss and the gradients of what a step minimises."""
    weights = list(model.parameters())
    loss = cross_entropy(model(images), labels, label_smoothing=objective.label_smoothing)
    total = loss + objective.l1 * torch.stack([weight.abs().sum() for weight in weights]).sum()
    return loss, list(torch.autograd.grad(total, weights))


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what a network holds but for its count of batches."""
    return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize(
    ("spec", "objective"),
    [
        (SGD(momentum=0.0, weight_decay=0.0, nesterov=False), Objective()),
        (SGD(momentum=0.9, weight_decay=0.0, nesterov=False), Objective()),
        (SGD(momentum=0.9, weight_decay=0.05, nesterov=True), Objective()),
        (SGD(), Objective(clip_norm=1e6)),
        (SGD(), Objective(label_smoothing=0.1, l1=0.003, clip_norm=0.1)),
        (SGD(), Objective(label_smoothing=0.1, l1=0.003, clip_norm=0.1, sharpness=0.5)),
    ],
)
def test_a_step_equals_sgd_written_out(spec: SGD, objective: Objective) -> None:
    state, by_hand = fresh(spec=spec), TinyNet()
    state.model.train()
    weights = list(by_hand.parameters())
    velocity = [torch.zeros_like(weight) for weight in weights]
    for step, (images, labels) in enumerate(batches().epoch(0)):
        lr = 0.1 / (step + 1)
        returned = train_step(state, images, labels, lr, objective, CPU)

        original = numbers(by_hand)
        if objective.sharpness:
            quarter = -(-len(images) // 4)
            _, ascent = minimised(by_hand, images[:quarter], labels[:quarter], objective)
            by_hand.load_state_dict(original, strict=False)  # batch norm's statistics leave the quarter out
            moves = [(weight, way) for weight, way in zip(weights, ascent, strict=True) if weight.ndim > 1]
            length = math.sqrt(sum(float(way.square().sum()) for _, way in moves))
            with torch.no_grad():
                for weight, way in moves:
                    weight.add_(way, alpha=objective.sharpness / length)
        loss, gradients = minimised(by_hand, images, labels, objective)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        share = min(1.0, objective.clip_norm / norm) if objective.clip_norm else 1.0
        with torch.no_grad():
            for name, weight in by_hand.named_parameters():
                weight.copy_(original[name])
            for weight, slope, speed in zip(weights, gradients, velocity, strict=True):
                gradient = share * slope + spec.weight_decay * weight
                speed.mul_(spec.momentum).add_(gradient)
                weight.sub_(lr * (gradient + spec.momentum * speed if spec.nesterov else speed))

        # The loss that is returned is without L1.
        torch.testing.assert_close(returned, loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(numbers(state.model), numbers(by_hand), rtol=1e-4, atol=1e-6)
    assert state.step == 4


@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan, 1.0])
def test_uphill_moves_nothing_without_a_direction_and_puts_weights_back_after_an_error(scale: float) -> None:
    model = TinyNet().train()
    images, labels = next(batches().epoch(0))
    before = numbers(model)
    loss = lambda: scale * cross_entropy(model(images), labels)  # noqa: E731
    with pytest.raises(KeyError), uphill(model, loss, 0.5):
        assert torch.equal(model.conv.weight, before["conv.weight"]) == (scale != 1)
        assert torch.equal(model.norm.weight, before["norm.weight"])
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in numbers(model).items())
    assert model.norm.momentum == 0.1


@pytest.mark.parametrize(
    "setting", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"l1": -1.0}, {"clip_norm": math.nan}]
)
def test_an_objective_that_cannot_be_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        Objective(**setting)


@dataclass
class Spy:
    """Wraps a source, changes its images, and notes the epochs that are taken from it."""

    epochs: list[tuple[int, int]] = field(default_factory=list)
    batch_size: int = 6
    given: int = 4
    change: Callable[[int, Tensor], Tensor] = lambda step, images: images

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.epochs.append((epoch, first))
        for number, (images, labels) in enumerate(batches().epoch(epoch, first), first):
            if number >= self.given:
                return
            yield self.change(epoch * 4 + number, images), labels


def test_every_epoch_takes_the_schedules_rates_and_ends_with_its_own_loss_and_accuracy() -> None:
    state, by_hand, losses = fresh(), fresh(), []
    by_hand.model.train()
    for number, tick in enumerate(training(state)):
        epoch, loss, correct = tick.epoch, 0.0, 0
        for images, labels in batches().epoch(number):
            correct += int((by_hand.model(images).argmax(1) == labels).sum())
            loss += 6 * float(train_step(by_hand, images, labels, SCHEDULE(by_hand.step), Objective(), CPU))
        assert epoch is not None
        assert (epoch.epoch, epoch.step, epoch.lr) == (number + 1, 4 * number + 4, SCHEDULE(4 * number + 3))
        assert (tick.step, tick.steps, tick.lr) == (epoch.step, 12, epoch.lr)
        torch.testing.assert_close([*state.model.parameters()], [*by_hand.model.parameters()])
        assert epoch.train_loss == pytest.approx(loss / 24, rel=1e-6)
        assert epoch.train_accuracy == correct / 24
        assert (epoch.validation_loss, epoch.test_loss) == (None, None)
        losses.append(epoch.train_loss)
    assert by_hand.sums[2] == 72 and int(by_hand.first_bad_step) == -1
    assert len(losses) == 3 and losses[-1] < losses[0], "training learns"


def losses_of(ticks: Iterable[Tick]) -> list[tuple[int, float, float]]:
    epochs = (tick.epoch for tick in ticks)
    return [(epoch.epoch, epoch.train_loss, epoch.train_accuracy) for epoch in epochs if epoch]


@pytest.mark.parametrize("stop", [1, 4, 6, 8, 11])
@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_a_run_goes_on_from_any_step_to_the_same_bits_whatever_happens_at_its_ticks(
    stop: int, average_decay: float
) -> None:
    before = global_random_states()
    whole, first, second = (fresh(seed, average_decay=average_decay) for seed in (0, 0, 1))
    expected = losses_of(training(whole))

    ticks = training(first, tick_seconds=0.0)
    seen = [next(ticks) for _ in range(stop)]
    ticks.close()  # type: ignore[attr-defined]
    assert first.step == stop
    restore(second, capture(first))
    for tick in training(second, tick_seconds=0.0):
        seen.append(tick)
        second.model.eval()
    list(training(first))
    assert global_random_states() == before
    for state in (first, second):
        torch.testing.assert_close(capture(state).tensors, capture(whole).tensors, rtol=0, atol=0)
        assert list(training(state)) == []
    assert [(tick.step, tick.epoch is not None) for tick in seen] == [(n, n % 4 == 0) for n in range(1, 13)]
    assert losses_of(seen) == expected


def test_the_best_epoch_is_restored_and_a_checkpoint_of_another_run_is_refused() -> None:
    state, again = fresh(), fresh(1)
    state.best, again.best = Best(), Best()
    restore(again, capture(state))
    assert not again.best.weights and again.best.accuracy == -math.inf
    for epoch, accuracy in ((1, 0.5), (2, 0.75), (3, 0.75)):
        state.best.offer(TinyNet(seed=epoch), epoch, accuracy)
    restore(again, capture(state))
    assert (again.best.accuracy, again.best.epoch) == (0.75, 2)
    assert digest(again.best.weights.values()) == digest(TinyNet(seed=2).state_dict().values())
    for captured in (capture(fresh()), capture(TrainState.create(TinyNet(5), SGD(), CPU))):
        with pytest.raises(InputError, match="the checkpoint does not fit this run"):
            restore(again, captured)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 6])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_rate(step: int, bad: float) -> None:
    # Step 7 is bad as well, but not the first.
    spy = Spy(change=lambda number, images: images * bad if number in (step, 7) else images)
    state = fresh()
    with pytest.raises(Diverged, match=f"step {step}, learning rate {SCHEDULE(step):.4g}") as caught:
        list(fit(state, spy, SCHEDULE, epochs=3, machine=CPU, tick_seconds=FOREVER))
    assert (caught.value.step, caught.value.lr) == (step, SCHEDULE(step))
    assert isinstance(caught.value, RunFailed) and "peak_lr" in caught.value.hint
    # It is noticed at the next tick, here the epoch's end.
    assert state.step == 4 * (step // 4 + 1)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_equals_the_plain_recurrence(decay: float) -> None:
    state = fresh(average_decay=decay)
    expected = numbers(TinyNet())
    for tick in training(state, tick_seconds=0.0):
        for name, value in numbers(state.model).items():
            expected[name] = decay * expected[name] + (1 - decay) * value if tick.step > 1 else value
    averaged = numbers(state.trained)
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-7)
    assert state.trained is not state.model
    assert not torch.equal(averaged["conv.weight"], numbers(state.model)["conv.weight"])


def test_a_state_is_channels_last_and_without_an_average_keeps_the_model_itself() -> None:
    state = fresh()
    assert state.model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert state.average is None and state.trained is state.model


def test_the_clock_counts_training_alone_also_of_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def second_passes(step: int, images: Tensor) -> Tensor:
        nonlocal now
        now += 1
        return images

    spy, state, rows = Spy(change=second_passes), fresh(), []
    for tick in fit(state, spy, SCHEDULE, epochs=2, machine=CPU, tick_seconds=3.0):
        now += 100
        seconds = tick.epoch and tick.epoch.train_seconds
        rows.append((tick.step, state.seconds, tick.images_per_second, seconds))
    assert rows == [(3, 3, 6, None), (4, 4, 6, 4), (7, 7, 6, None), (8, 8, 6, 8)]

    spy, state = Spy(change=second_passes), fresh()
    ticks = fit(state, spy, SCHEDULE, epochs=2, machine=CPU, tick_seconds=0.0)
    assert [next(ticks).step for _ in range(6)][-1] == 6
    ticks.close()  # type: ignore[attr-defined]
    now += 1000
    [tick] = fit(state, spy, SCHEDULE, epochs=2, machine=CPU, tick_seconds=FOREVER)
    assert spy.epochs == [(0, 0), (1, 0), (1, 2)]
    assert (tick.epoch and tick.epoch.train_seconds, tick.images_per_second) == (8, 6)


WAITS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero")


def waits(count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often the host reads a tensor in an epoch of `count` steps."""
    reads = 0
    state, source = fresh(), batches(24 // count)

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def read(*args: object, **more: object) -> object:
            nonlocal reads
            reads += 1
            return original(*args, **more)

        return read

    with monkeypatch.context() as patch:
        for name in WAITS:
            patch.setattr(Tensor, name, counted(getattr(Tensor, name)))
        objective = Objective(label_smoothing=0.1, l1=1e-4, clip_norm=1.0, sharpness=0.1)
        ticks = fit(state, source, SCHEDULE, epochs=1, machine=CPU, objective=objective, tick_seconds=FOREVER)
        assert len(list(ticks)) == 1
    assert state.step == count
    return reads


def test_within_an_epoch_the_host_reads_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = waits(2, monkeypatch), waits(12, monkeypatch)
    assert few == many <= 4


def test_a_source_that_gives_fewer_batches_than_it_promised_is_refused() -> None:
    with pytest.raises(InputError, match="epoch 1 gave 3 batches where 4"):
        list(fit(fresh(), Spy(given=3), SCHEDULE, epochs=3, machine=CPU))


def test_a_lower_precision_keeps_weights_in_fp32() -> None:
    half = replace(CPU, precision="bf16")
    state = TrainState.create(TinyNet(), SGD(), half)
    source = Batches(image_set(24), 6, seed=0, machine=half)
    [tick] = fit(state, source, SCHEDULE, epochs=1, machine=half, tick_seconds=FOREVER)
    assert {value.dtype for value in (*state.model.parameters(), state.sums)} == {torch.float32}
    assert tick.epoch is not None and math.isfinite(tick.epoch.train_loss) and state.scaler is None


def test_a_loss_far_above_the_first_is_divergence_too() -> None:
    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.steps = 0

        def forward(self, images: Tensor) -> Tensor:
            self.steps += 1
            wrong = torch.zeros(len(images), 4)
            wrong[:, 0] = 1.0 if self.steps <= 3 else 100.0
            return wrong * self.scale

    state = TrainState.create(Exploding(), SGD(), CPU)
    with pytest.raises(Diverged, match="far above the first at step 3, learning rate") as caught:
        list(fit(state, batches(), lambda step: 0.0, epochs=1, machine=CPU))
    assert "peak_lr=" in caught.value.hint
