"""docs/extending.md, carried out: each kind of part is one file and one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PARTS = "model=plainnet width=4 data=stripes train=120 test=40 optimizer=rmsprop alpha=0.9 finder=cautious"
SMALL = [word for setting in f"{PARTS} batch_size=20".split() for word in ("--set", setting)]
NUMBERS = ["--set", "peak_lr=0.01", "--set", "min_lr=0.001"]
RECIPE = """
def toy() -> Recipe:
    \"\"\"The parts of the page, together.\"\"\"
    return dataclasses.replace(
        demo(), name="shapes.toy", data=Stripes(120, 40), model=PlainNetSpec(4), augment=(Brightness(20),),
        optimizer=RMSprop(), finder=Cautious(), batch_size=20, epochs=2, schedule=OneCycle(1.0),
    )
"""
IMPORTS = """
from firstlight.data.brightness import Brightness
from firstlight.data.stripes import Stripes
from firstlight.models.plain_net import PlainNetSpec
from firstlight.training.cautious import Cautious
from firstlight.training.rmsprop import RMSprop
from firstlight.training.schedule import OneCycle
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's parts, and a recipe that holds them all."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(
        ROOT / "src" / "firstlight", folder / "firstlight", ignore=shutil.ignore_patterns("__pycache__")
    )
    files = re.findall(r"`(\w+/(?!__init__)\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    lines = re.findall(r"The line in `(\w+/__init__\.py)`:\n\n```python\n((\w+) = .*?)\n```", PAGE, re.DOTALL)
    assert len(files) == len(lines) == 5
    for (file, code), (room, line, name) in zip(files, lines, strict=True):
        (folder / "firstlight" / file).write_text(code, encoding="utf-8")
        registry = folder / "firstlight" / room
        whole = re.compile(rf"^{name} = \(.*?\)$", re.MULTILINE | re.DOTALL)
        text, changes = whole.subn(line, registry.read_text())
        assert changes == 1, f"the page's line is not the one in {room}"
        part = re.search(r",\s+(\w+),?\s*\)$", line)
        assert part is not None
        imported = f"from firstlight.{file.removesuffix('.py').replace('/', '.')} import {part[1]}\n"
        registry.write_text(text.replace(f"\n{name} = ", f"\n{imported}\n{name} = "), encoding="utf-8")
    recipes = folder / "firstlight" / "recipes"
    shapes = (recipes / "shapes.py").read_text()
    (recipes / "shapes.py").write_text(
        shapes.replace("import dataclasses\n", "import dataclasses\n" + IMPORTS) + RECIPE
    )
    table = (recipes / "__init__.py").read_text()
    (recipes / "__init__.py").write_text(
        table.replace(
            '    "shapes.demo": shapes.demo,\n',
            '    "shapes.demo": shapes.demo,\n    "shapes.toy": shapes.toy,\n',
        )
    )
    return folder


def firstlight(*words: str, cwd: Path, path: Path | None = None) -> str:
    """Run the shell's command with the package in `path`, else as it is installed."""
    environment = {**os.environ, **({} if path is None else {"PYTHONPATH": str(path)})}
    command = [sys.executable, "-W", "error", "-m", "firstlight", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(extended: Path) -> Path:
    """A run of the recipe that holds every new part."""
    firstlight("train", "shapes.toy", *NUMBERS, "--precision", "fp32", cwd=extended, path=extended)
    return extended / "runs" / "shapes.toy"


def test_new_parts_are_listed_found_by_name_and_described_from_their_own_fields(extended: Path) -> None:
    assert "shapes.toy" in firstlight("recipes", cwd=extended, path=extended)
    lines = firstlight("recipes", "shapes.toy", cwd=extended, path=extended).splitlines()
    assert any("Brightness(most=20)" in line for line in lines)
    assert any(line.split()[:2] == ["alpha", "0.99"] and "decay of the mean" in line for line in lines)
    assert any(line.split()[:2] == ["share", "0.5"] for line in lines)
    assert "stage2.conv" in "\n".join(lines) and "Fixed by the assignment" not in "\n".join(lines)
    found = firstlight("find-lr", "shapes.demo", *SMALL, "--precision", "fp32", cwd=extended, path=extended)
    assert "cautious, " in found


def test_a_run_with_new_parts_reports_and_a_stopped_one_goes_on(extended: Path, run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_accuracy"] is not None and (run / "figures" / "augmentations.png").is_file()
    firstlight("report", str(run), cwd=extended, path=extended)
    assert "Brightness" in (run / "report.html").read_text(encoding="utf-8")
    stop = (
        "import firstlight, signal\nfrom firstlight.record.checkpoints import Checkpoints\n"
        "save = Checkpoints.save\n"
        "def stop(self, *values):\n    save(self, *values)\n    signal.raise_signal(signal.SIGINT)\n"
        "Checkpoints.save = stop\n"
        "options = dict(peak_lr=0.01, min_lr=0.001, precision='fp32', out='again', quiet=True)\n"
        "firstlight.train('shapes.toy', **options)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    stopped = subprocess.run(
        [sys.executable, "-c", stop], cwd=extended, capture_output=True, text=True, env=environment
    )
    assert "KeyboardInterrupt" in stopped.stderr
    options = [*NUMBERS, "--precision", "fp32", "--out", "again", "--resume"]
    assert "going on after step" in firstlight("train", "shapes.toy", *options, cwd=extended, path=extended)
    weights = [(path / "model.safetensors").read_bytes() for path in (run, extended / "again")]
    assert weights[0] == weights[1]


def test_the_folder_opens_without_the_parts_and_imports_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
    firstlight("report", "run", cwd=tmp_path)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "PlainNetSpec" in page and "is no part of Firstlight" in page
    firstlight("compare", "run", "run", cwd=tmp_path)
    command = [sys.executable, "-m", "firstlight", "predict", "run", "figure.png"]
    shutil.copy(run / "figures" / "confusion.png", tmp_path / "figure.png")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "PlainNetSpec is no part of Firstlight" in done.stderr


OWN = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self, classes=10):
        layers = nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*layers, nn.Linear(4, classes))
"""


def test_a_users_own_network_trains_resumes_and_reports_from_shell_and_python(tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(OWN)
    small = [
        word
        for each in ("train=60", "test=20", "batch_size=20", "model=mynet:MyNet")
        for word in ("--set", each)
    ]
    words = ["train", "shapes.demo", *small, *NUMBERS, "--epochs", "2", "--out", "run", "--resume"]
    firstlight(*words, cwd=tmp_path)
    assert "finished already" in firstlight(*words, cwd=tmp_path)
    code = (
        "import dataclasses, firstlight\nfrom firstlight.recipes import named\n"
        "run = firstlight.open_run('run')\nassert run.evaluation is not None and str(run.report())\n"
        "import sys\nassert 'mynet' not in sys.modules\n"
        "try:\n    run.model\nexcept firstlight.InputError as error:\n"
        "    assert 'mynet.MyNet' in str(error)\n"
        "from mynet import MyNet\nwhole = firstlight.open_run('run', parts=[MyNet])\n"
        "assert whole.gradcam() is not None\n"
        "recipe = dataclasses.replace(named('shapes.demo'), name='mine', model=MyNet(10))\n"
        "options = dict(train=60, test=20, batch_size=20, peak_lr=0.1, min_lr=0.01, epochs=1, quiet=True)\n"
        "print(firstlight.train(recipe, **options).path)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
