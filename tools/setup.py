"""Make the virtual environment that `make` works in, and say beforehand what it costs.

    python3 tools/setup.py .venv dev

It needs Python alone, and does nothing where the environment already fits this checkout. A torch that
the calling Python has is used and never replaced: the environment then sees that Python's packages, and
what it lacks is installed beside them. Otherwise it gets the torch that constraints.txt pins.
"""

import sys

# Before the imports that an older Python lacks. The rest keeps to a syntax that Python 3.6 can read.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "Firstlight needs Python 3.11 or newer, not {}.{}: make PYTHON=python3.12".format(*sys.version_info)
    )

import argparse
import hashlib
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH_FLOOR = (2, 9)  # as in pyproject.toml
CUDA_DOWNLOAD, CUDA_DISK = 3000, 5600  # MB; torch as a CUDA build, with its libraries
TOOLS = ("pip", "hatchling")

LOOK = """
import importlib.metadata, importlib.util, json, os, sys
torch = None
if importlib.util.find_spec("torch"):
    torch = "broken"
    import torch as module
    module.ones(1) + 1
    torch = importlib.metadata.version("torch")
versions = {}
for found in importlib.metadata.distributions():
    versions.setdefault(found.metadata["Name"], found.version)  # the first on the path is the one in use
print()
print(json.dumps({
    "torch": torch,
    "folders": [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")],
    "versions": versions,
}))
"""


@dataclass(frozen=True)
class Pin:
    """One line of constraints.txt; `download` and `disk` in MB, with what the package alone brings."""

    name: str
    version: str
    download: int
    disk: int


@dataclass(frozen=True)
class Packages:
    """What a Python has: the version of its torch, its package folders, all versions by name."""

    torch: str | None
    folders: list[str]
    versions: dict[str, str]

    @property
    def has_torch(self) -> bool:
        """Whether its torch works and is new enough; a pre-release is older than its release, as for pip."""
        numbers = re.match(r"(\d+)\.(\d+)(?:\.0)?(a|b|rc|\.dev)?", self.torch or "")
        if numbers is None:
            return False
        release = (int(numbers[1]), int(numbers[2]))
        return release > TORCH_FLOOR or (release == TORCH_FLOOR and numbers[3] is None)


def packages_of(python: str | Path) -> Packages:
    """Return what a Python has; its torch is tried, since one that is there may not work."""
    done = subprocess.run([python, "-c", LOOK], capture_output=True, text=True)
    if done.returncode:
        return Packages("broken", [], {})
    seen = json.loads(done.stdout.splitlines()[-1])
    versions = {plain(name): version for name, version in seen["versions"].items()}
    return Packages(seen["torch"], seen["folders"], versions)


def plain(name: str) -> str:
    """Return a package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_for(extra: str) -> list[Pin]:
    """Return the pins of what pyproject.toml asks for with one extra, and of the tools that install it."""
    line = re.compile(r"^([\w.-]+)==(\S+) *# *(\d+) / (\d+)", re.MULTILINE)
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {m[1]: Pin(m[1], m[2], int(m[3]), int(m[4])) for m in line.finditer(text)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"][extra], *TOOLS]
    names = [plain(re.split(r"[^\w.-]", requirement)[0]) for requirement in asked]
    unpinned = [name for name in names if name not in pins]
    if unpinned:
        sys.exit(f"constraints.txt has no version and size for {', '.join(unpinned)}")
    return [pins[name] for name in names]


def fingerprint() -> str:
    """Return the stamp of an environment that has all it should have."""
    files = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"".join(files)).hexdigest()


def size(megabytes: int) -> str:
    """Return a size as a person says it."""
    return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


class Environment:
    """A virtual environment in this checkout."""

    def __init__(self, name: str, extra: str) -> None:
        self.name, self.extra = name, extra
        self.folder = ROOT / name
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / "installed.txt"
        self.log = self.folder / "setup.log"

    @property
    def lending(self) -> Path | None:
        """The file that names the package folders of another Python, if this environment sees any."""
        return next(self.folder.glob("lib/python*/site-packages/lent.pth"), None)

    def alive(self) -> bool:
        """Return whether it can run: its Python, or the folders lent to it, may be gone."""
        lent = self.lending.read_text().splitlines() if self.lending else []
        return self.python.exists() and all(Path(folder).is_dir() for folder in lent)

    def mark(self, state: str) -> None:
        """Stamp how far it is; a copy or a moved checkout does not count as stamped."""
        self.stamp.write_text(f"{state} {self.folder}\n", encoding="utf-8")

    def state(self) -> str:
        """Return what it was last stamped with; empty where it cannot be used and has to be made anew."""
        stamp = self.stamp.read_text(encoding="utf-8") if self.stamp.exists() and self.alive() else ""
        return stamp.split()[0] if stamp.endswith(f" {self.folder}\n") else ""

    def create(self, lent: list[str]) -> None:
        """Make it anew, with pip alone; behind its own packages it sees those in the folders `lent`."""
        if importlib.util.find_spec("ensurepip") is None:
            this = "python{}.{}".format(*sys.version_info)
            sys.exit(f"{this} lacks what makes environments; on Debian and Ubuntu: apt install {this}-venv")
        if Path(sys.prefix) == self.folder:
            sys.exit(f"{self.name} has to be made anew but is active: run `deactivate` first")
        command = [sys.executable, "-m", "venv", "--clear", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"cannot make {self.name}: {(done.stderr or done.stdout).strip()}")
        if lent:
            # `--system-site-packages` would show the packages of the base Python, not those of an active
            # virtual environment.
            own = next(self.folder.glob("lib/python*/site-packages"))
            (own / "lent.pth").write_text("".join(f"{folder}\n" for folder in lent))

    def pip(self, *words: str) -> Iterator[str]:
        """Run pip, keep all it says in the log and yield it; end with its reasons where it fails."""
        command = [str(self.python), "-m", "pip", "--no-input", "--disable-pip-version-check", *words]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )
        said = []
        with self.log.open("a", encoding="utf-8") as log, process:
            for line in process.stdout or ():
                log.write(line)
                said.append(line.rstrip())
                yield said[-1]
        if process.returncode:
            reasons = [line for line in said if line.startswith("ERROR")] or said[-10:]
            where = self.log.relative_to(ROOT)
            sys.exit("\n".join([*reasons, f"pip could not install everything; {where} has all it said"]))

    def install(self, *words: str) -> None:
        """Let pip install, and show the downloads of a megabyte and more as they start."""
        for line in self.pip("install", *words):
            loading = re.match(r"\s*Downloading (\S+) \(([\d.]+ [MG]B)\)", line)
            if loading:
                file = loading[1].rsplit("/")[-1]
                print(f"  downloading {'-'.join(file.split('-')[:2])} ({loading[2]})", flush=True)
            elif line.startswith("Installing collected packages"):
                print("  installing", flush=True)

    def only_cuda(self, torch: Pin) -> bool:
        """Return whether the package index has this torch only with CUDA; reads metadata, no package."""
        report = self.folder / "torch.json"
        asking = ("--dry-run", "--ignore-installed", "--quiet", "--report", str(report))
        for _ in self.pip("install", *asking, f"torch=={torch.version}"):
            pass
        names = [each["metadata"]["name"] for each in json.loads(report.read_text())["install"]]
        return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def announce(name: str, pins: list[Pin]) -> None:
    """Say what will be downloaded and what it takes on disk; end where there is no room for it."""
    disk = sum(pin.disk for pin in pins)
    print(f"To download: about {size(sum(pin.download for pin in pins))}. On disk: {size(disk)}, in {name}.")
    large = sorted((pin for pin in pins if pin.download >= 5), key=lambda pin: -pin.download)
    for pin in large:
        build = "  as a CPU build" if pin.name == "torch" else ""
        print(f"  {f'{pin.name} {pin.version}':34}{size(pin.download):>7}{build}")
    print("  and", ", ".join(pin.name for pin in pins if pin not in large), flush=True)
    check_room(disk)


def check_room(disk: int) -> None:
    """End where the disk has not so many MB left."""
    free = shutil.disk_usage(ROOT).free // 10**6
    if free < disk:
        sys.exit(f"There is not so much room: {size(free)} are free.")


def set_up(environment: Environment, torch_index: str) -> None:
    """Make the environment, or bring it up to date."""
    pins = pins_for(environment.extra)
    pip, torch = (next(pin for pin in pins if pin.name == name) for name in ("pip", "torch"))
    print(f"Setting up {environment.name} for Firstlight.")
    stands = environment.state() != ""
    found = packages_of(environment.python if stands else sys.executable)
    if stands and environment.lending and not found.has_torch:
        stands, found = False, packages_of(sys.executable)
    lent = found.has_torch and (not stands or environment.lending is not None)
    if not stands:
        environment.create(found.folders if lent else [])
    else:
        environment.mark("unfinished")

    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if lent:
        print(f"torch {found.torch} is there: it is used, and left as it is.")
        constraints = re.sub(r"(?m)^torch==\S+", f"torch=={found.torch}", constraints)
    elif found.torch and not stands:
        lack = "does not work" if found.torch == "broken" else f"is {found.torch}, too old"
        print(f"The torch of {sys.executable} {lack}: {environment.name} gets one of its own.")
    constraint_file = environment.folder / "constraints.txt"
    constraint_file.write_text(constraints, encoding="utf-8")

    present = dict(found.versions) if stands or lent else {}
    if lent:
        present["torch"] = torch.version
    if not stands:
        present["pip"] = "as old as Python itself"
    missing = [pin for pin in pins if present.get(pin.name, "").split("+")[0] != pin.version]
    announce(environment.name, missing)
    environment.install(f"pip=={pip.version}")
    index = ["--extra-index-url", torch_index] if torch_index else []
    if torch in missing and not index and platform.system() == "Linux" and environment.only_cuda(torch):
        print(
            f"The package index has torch only with CUDA: {size(CUDA_DOWNLOAD)} to download and "
            f"{size(CUDA_DISK)} on disk, not {size(torch.download)} and {size(torch.disk)}.\n"
            "Without a GPU, stop here (Ctrl-C) and say TORCH_INDEX=URL behind make, with the URL of the "
            "CPU wheel index named on pytorch.org.",
            flush=True,
        )
        check_room(CUDA_DISK)
    environment.install(
        *("--constraint", str(constraint_file), "--build-constraint", str(constraint_file)),
        *index,
        *("--editable", f".[{environment.extra}]"),
    )
    environment.mark(fingerprint())
    print(f"{environment.name} is ready, with torch {packages_of(environment.python).torch}.", flush=True)


def main() -> None:
    """Set up the environment named on the command line, unless it fits already."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="folder of the environment, in this checkout")
    parser.add_argument("extra", help="the extra of pyproject.toml that it gets")
    parser.add_argument("--torch-index", default="", help="one more package index, for torch")
    arguments = parser.parse_args()
    environment = Environment(arguments.name, arguments.extra)
    if environment.state() != fingerprint():
        try:
            set_up(environment, arguments.torch_index)
        except KeyboardInterrupt:
            sys.exit("\nstopped; the next make goes on from here")


if __name__ == "__main__":
    main()
