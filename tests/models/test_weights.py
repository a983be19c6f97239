"""Published weights: read without running a file, taken by name and shape, or refused with the names."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import TinyNet, digest
from torch import Tensor

from firstlight.errors import InputError
from firstlight.models.weights import load_weights, read_weights, take_weights


def weights(classes: int = 4) -> dict[str, Tensor]:
    return TinyNet(classes, seed=1).state_dict()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "nested.pth", "parallel.pt"])
def test_weights_come_from_either_kind_of_file(name: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / name, weights()
    content = {
        "w.safetensors": tensors,
        "w.pth": tensors,
        "nested.pth": {"epoch": 3, "state_dict": tensors},
        "parallel.pt": {f"module.{key}": value for key, value in tensors.items()},
    }[name]
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(content, path)
    model = TinyNet()
    assert str(load_weights(model, path)) == "8 of 8 tensors taken"
    assert digest(model.parameters()) == digest(TinyNet(seed=1).parameters())


def test_a_head_of_another_size_stays_and_is_named(tmp_path: Path) -> None:
    model = TinyNet(2)
    head = model.linear.weight.clone()
    torch.save(weights(4), tmp_path / "w.pth")
    taken = load_weights(model, tmp_path / "w.pth", head="linear")
    assert str(taken) == "6 of 8 tensors taken, these not: linear.weight, linear.bias (of another shape)"
    assert torch.equal(model.linear.weight, head) and torch.equal(model.conv.weight, weights()["conv.weight"])


def test_a_head_is_taken_whole_or_not_at_all() -> None:
    model, file = TinyNet(2), weights(4)
    file["linear.bias"] = file["linear.bias"][:2]
    assert set(take_weights(model, file, head="linear").misshapen) == {"linear.weight", "linear.bias"}


def test_a_file_without_the_counters_of_batch_norm_fits() -> None:
    file = {name: value for name, value in weights().items() if "num_batches_tracked" not in name}
    assert len(take_weights(TinyNet(), file).taken) == 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"conv.weight": "first.weight"},
            r"conv\.weight \(not in the file\); first\.weight \(in the file alone",
        ),
        ({"linear.weight": "fc.weight"}, r"linear\.weight \(not in the file\); fc\.weight"),
    ],
)
def test_a_renamed_tensor_is_refused_by_name_and_nothing_is_changed(
    change: dict[str, str], says: str
) -> None:
    model = TinyNet()
    before = digest(model.state_dict().values())
    with pytest.raises(InputError, match=f"are of another network: 7 of 8 tensors taken, these not: {says}"):
        take_weights(
            model, {change.get(name, name): value for name, value in weights().items()}, head="linear"
        )
    assert digest(model.state_dict().values()) == before


def test_a_long_list_of_names_is_cut() -> None:
    with pytest.raises(InputError, match="and 3 more"):
        take_weights(TinyNet(), {f"x.{name}": value for name, value in weights().items()})


def test_a_tensor_left_over_or_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"extra \(in the file alone\)"):
        take_weights(TinyNet(), weights() | {"extra": torch.zeros(1)}, head="linear")
    with pytest.raises(InputError, match=r"conv\.bias \(of another shape\)"):
        take_weights(TinyNet(), weights() | {"conv.bias": torch.zeros(1)}, head="linear")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    "data",
    [b"", b"no weights", pickle.dumps(Harmful()), pickle.dumps([1, 2])],
    ids=["empty", "text", "code", "list"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_file_of_weights_is_refused_and_not_run(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match="holds no weights that can be read safely"):
        read_weights(path)


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    for content in ({"lr": 0.1}, {}, [torch.zeros(1)]):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match="holds no weights"):
            read_weights(tmp_path / "w.pth")


def test_the_sum_of_a_file_is_checked_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights(), path)
    assert read_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(InputError, match="is altered"):
        read_weights(path, "0" * 64)
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(tmp_path / "nothing.pth")
