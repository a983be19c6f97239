"""What is installed is whole: the wheel and the source archive, built and used without a network."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from PIL import Image

import firstlight

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
MOST_MEGABYTES = 6


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist of this checkout, by kind."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed: pip install hatchling")
    folder = tmp_path_factory.mktemp("built")
    made = {}
    for kind in ("wheel", "sdist"):
        code = f"import sys, hatchling.build as b; print(b.build_{kind}(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        made[kind] = folder / done.stdout.split()[-1]
    return made


def package_files() -> set[str]:
    """Every file of the package in this checkout, as a wheel names it."""
    return {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "firstlight").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_holds_the_whole_package_and_no_more(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        version = message_from_bytes(wheel.read(metadata))["Version"]
    assert names == package_files() and version == firstlight.__version__
    kernels = ("winograd.cpp", "strided.cpp", "norm.cpp", "winograd_fp32.cpp", "norm_fp32.cpp")
    headers = ("bf16.h", "both_ways.h", "products.h", "scratch.h", "vector.h")
    needed = [
        "py.typed",
        *(f"models/pretrained/cifar10/{name}" for name in ("model.safetensors", "card.json", "recipe.json")),
        "page/assets/page.html",
        *(f"machine/kernels/{name}" for name in (*kernels, *headers)),
    ]
    assert not [name for name in needed if f"firstlight/{name}" not in names]
    assert any(name.startswith("firstlight/serve/assets/") for name in names)


def test_it_is_small(built: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {kind: path.stat().st_size / 1e6 for kind, path in built.items()}
    with capsys.disabled():
        print("\n" + ", ".join(f"{built[kind].name} {size:.1f} MB" for kind, size in sizes.items()))
    assert max(sizes.values()) <= MOST_MEGABYTES


def test_the_source_archive_holds_what_builds_and_tests_it(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in package_files()} <= names
    assert {"pyproject.toml", "LICENSE", "README.md", "CITATION.cff", "tests/test_wheel.py"} <= names


def test_the_wheel_classifies_a_picture_without_a_network(built: dict[str, Path], tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(installed)
    Image.new("RGB", (60, 40), (120, 170, 240)).save(tmp_path / "sky.png")
    # A proxy that nobody listens at: whatever asks the network fails.
    environment = {**os.environ, "PYTHONPATH": str(installed), "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "firstlight", "predict", "pretrained:cifar10", "sky.png"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(f"{time.perf_counter() - start:.1f} s from a fresh process")
    assert done.returncode == 0 and "sky.png" in done.stdout and "%" in done.stdout, done.stderr
    code = "import firstlight; print(firstlight.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(installed), "the wheel was used, not the checkout"


def test_predict_draws_nothing_and_so_loads_no_matplotlib(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (120, 170, 240)).save(tmp_path / "sky.png")
    code = (
        "import sys, firstlight; firstlight.predict('pretrained:cifar10', 'sky.png'); "
        "print('matplotlib' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {firstlight.__version__}\n" in text and "\nlicense: Apache-2.0\n" in text
