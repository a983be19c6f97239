"""Imports point one way, importing the package costs nothing, and no module is a lumber room."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "firstlight"

# From the top down; a room may import those below it. The front door, `firstlight` itself, stands above all.
ROOMS = (
    *("cli", "jobs", "run", "serve", "page", "figures", "recipes", "record", "recipe"),
    *("insight", "training", "models", "data", "machine", "errors"),
)
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
        if room not in ROOMS:
            wrong.append(f"{path.relative_to(source)} stands in no room that has a rank")
            continue
        for line, module in imported_modules(path, source):
            package, _, rest = module.partition(".")
            other = rest.split(".")[0]
            if package != source.name or not other or other == room or other.startswith("__"):
                continue
            place = f"{path.relative_to(source)}:{line}"
            if other not in ROOMS:
                wrong.append(f"{place} goes out by the front door for {other!r}: import it from its room")
            elif ROOMS.index(other) < ROOMS.index(room):
                wrong.append(f"{place} imports {other}, which stands above {room}")
    return wrong


def circle(source: Path) -> list[str]:
    """Return modules that import each other in a circle, none where there is no circle."""
    files = {".".join(path.relative_to(source).with_suffix("").parts): path for path in source.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items() if name not in DOORS}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        imports = {module.partition(".")[2] for _, module in imported_modules(path, source)}
        # `from a.b import c` names a module a.b.c, or something in a.b.
        graph[name] = {each if each in modules else each.rpartition(".")[0] for each in imports} & set(
            modules
        )
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_imports_point_downward_and_never_in_a_circle() -> None:
    assert wrong_imports(SOURCE) == [] and circle(SOURCE) == []


def test_a_circle_is_found_inside_a_room_and_through_functions(tmp_path: Path) -> None:
    room = tmp_path / "firstlight" / "page"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text("from firstlight.page import sheet")
    (room / "page.py").write_text("from firstlight.page.payload import heat")
    (room / "payload.py").write_text("def late():\n    from firstlight.page import sheet")
    (room / "sheet.py").write_text("if TYPE_CHECKING:\n    from .page import Page")
    assert set(circle(tmp_path / "firstlight")) == {"page.page", "page.payload", "page.sheet"}


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("data/images.py", "import firstlight.models.net", "imports models, which stands above"),
        ("record/record.py", "from firstlight import recipes", "imports recipes, which stands above"),
        ("training/loop.py", "from firstlight.recipe import Recipe", "imports recipe, which stands above"),
        ("training/deep/loop.py", "import firstlight.record", "imports record, which stands above"),
        ("errors.py", "import firstlight.machine", "imports machine, which stands above"),
        ("run.py", "def f():\n    from firstlight.cli import main", "run.py:2 imports cli"),
        (
            "machine/clock.py",
            "if TYPE_CHECKING:\n    from firstlight.data import images",
            "clock.py:2 imports data",
        ),
        ("data/images.py", "from ..models import net", "imports models, which stands above"),
        ("data/images.py", "from .. import training", "imports training, which stands above"),
        ("data/__init__.py", "from ..models import net", "imports models, which stands above"),
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
        "run.py": "import firstlight\nfirstlight.__version__\nfrom firstlight import recipes, machine",
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


def test_modules_are_short_and_no_lumber_room() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} == {"__init__", "__main__", "run", "recipe", "errors"}
    for path in SOURCE.rglob("*.py"):
        assert path.stem.strip("_") != "utils" and len(path.read_text("utf-8").splitlines()) <= 300, path
        assert not [module for _, module in imported_modules(path, SOURCE) if module.endswith(".*")], path
