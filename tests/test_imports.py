"""Imports point one way, importing the package costs nothing, and no module is a lumber room."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "firstlight"

# From the ground up. Rooms of one storey do not know each other; the front door, `firstlight` itself
# and `python -m firstlight`, stands above them all.
STOREYS = (
    ("errors",),
    ("runtime",),
    ("kernels",),
    ("models", "data"),
    ("training",),
    ("insight", "recipe"),
    ("record",),
    ("report", "serving", "recipes"),
    ("job",),
    ("resume",),
    ("seeds",),
    ("run", "crossfit", "doctor"),
    ("cli",),
)
RANK = {room: rank for rank, storey in enumerate(STOREYS) for room in storey}
DOORS = ("__init__", "__main__")


def room_of(path: Path, source: Path) -> str:
    """Return the room that a module stands in: a folder, or a module beside the folders."""
    return path.relative_to(source).with_suffix("").parts[0]


def imported_modules(path: Path, source: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of all that a module imports, also inside functions and `if TYPE_CHECKING`.

    `from a import b` gives `a.b`. What is reached through `import firstlight` counts as imported.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = [source.name, *path.relative_to(source).parts[:-1]]
    through_the_door = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                through_the_door |= alias.name.split(".")[0] == source.name and alias.asname is None
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)
    if through_the_door:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == source.name:
                yield node.lineno, f"{source.name}.{node.attr}"


def wrong_imports(source: Path) -> list[str]:
    """Return what is wrong with the directions of imports under `source`, a sentence each."""
    wrong = []
    for path in sorted(source.rglob("*.py")):
        room = room_of(path, source)
        if room in DOORS:
            continue
        if room not in RANK:
            wrong.append(f"{path.relative_to(source)} stands in no room that has a rank")
            continue
        for line, module in imported_modules(path, source):
            package, _, rest = module.partition(".")
            other = rest.split(".")[0]
            if package != source.name or not other or other == room or other.startswith("__"):
                continue
            place = f"{path.relative_to(source)}:{line}"
            if other not in RANK:
                wrong.append(f"{place} goes out by the front door for {other!r}: import it from its room")
            elif RANK[other] == RANK[room]:
                wrong.append(f"{place} imports {other}, which stands beside {room}")
            elif RANK[other] > RANK[room]:
                wrong.append(f"{place} imports {other}, which stands above {room}")
    return wrong


def test_imports_point_downward() -> None:
    wrong = wrong_imports(SOURCE)
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("models/net.py", "from firstlight.data.images import ImageSet", "imports data, which stands beside"),
        ("data/images.py", "import firstlight.models.net", "imports models, which stands beside"),
        ("report/page.py", "from firstlight.serving import app", "imports serving, which stands beside"),
        ("report/page.py", "from firstlight import recipes", "imports recipes, which stands beside"),
        ("recipe.py", "from firstlight.insight import gradcam", "imports insight, which stands beside"),
        ("training/loop.py", "from firstlight.recipe import Recipe", "imports recipe, which stands above"),
        ("training/deep/loop.py", "import firstlight.record", "imports record, which stands above"),
        ("errors.py", "import firstlight.runtime", "imports runtime, which stands above"),
        ("run.py", "def f():\n    from firstlight.cli import main", "run.py:2 imports cli"),
        (
            "runtime.py",
            "if TYPE_CHECKING:\n    from firstlight.data import images",
            "runtime.py:2 imports data",
        ),
        ("data/images.py", "from ..models import net", "imports models, which stands beside"),
        ("data/images.py", "from .. import training", "imports training, which stands above"),
        ("data/__init__.py", "from ..models import net", "imports models, which stands beside"),
        ("data/images.py", "importlib.import_module('firstlight.run')", "imports run, which stands above"),
        ("data/images.py", "import firstlight\nfirstlight.run.train", "images.py:2 imports run"),
        ("data/images.py", "import firstlight\nfirstlight.train()", "front door for 'train'"),
        ("data/images.py", "from firstlight import train", "front door for 'train'"),
        ("attic.py", "", "attic.py stands in no room"),
    ],
)
def test_a_wrong_import_is_found(file: str, code: str, said: str, tmp_path: Path) -> None:
    source = tmp_path / "firstlight"
    (source / file).parent.mkdir(parents=True)
    (source / file).write_text(code, encoding="utf-8")
    (found,) = set(wrong_imports(source))
    assert said in found


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    allowed = {
        "__init__.py": "from firstlight.cli import main",
        "__main__.py": "from firstlight.cli import main",
        "cli.py": "from firstlight import __version__\nimport firstlight.run\nfrom firstlight import recipes",
        "run.py": "import firstlight\nfirstlight.__version__\nfrom firstlight import recipes, runtime",
        "recipes/__init__.py": "from firstlight.recipes import shapes\nfrom . import cifar10",
        "recipes/shapes.py": "from firstlight.recipe import Recipe\nfrom .cifar10 import assignment",
        "training/loop.py": "import torch\nfrom firstlight.errors import Diverged\nimport recipe",
        "data/images.py": "firstlight = command()\nfirstlight.train",
    }
    for file, code in allowed.items():
        path = tmp_path / "firstlight" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    assert wrong_imports(tmp_path / "firstlight") == []


@pytest.mark.parametrize("module", ["firstlight", "firstlight.cli"])
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_no_module_is_a_lumber_room() -> None:
    names = {path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.stem.strip("_") == "utils"}
    assert not names


def test_no_module_imports_everything() -> None:
    assert not [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in SOURCE.rglob("*.py")
        for line, module in imported_modules(path, SOURCE)
        if module.endswith(".*")
    ]


def test_no_module_needs_scrolling_for_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert not {str(path.relative_to(SOURCE)): lines for path, lines in lengths.items() if lines > 320}
