"""Make the virtual environment that `make` works in, or bring it up to date: tools/setup.py .venv dev

A torch that the calling Python has is used and never replaced: behind its own packages the environment then
sees that Python's. Otherwise it gets the torch of constraints.txt. An environment that fits is left alone.
"""

import sys

# Before the imports that an older Python lacks. The rest keeps to a syntax that Python 3.6 can read.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "Firstlight needs Python 3.11 or newer, not {}.{}: make PYTHON=python3.12".format(*sys.version_info)
    )

import hashlib
import importlib.util
import os
import re
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, run

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"dev": "150 MB (560 MB on disk)", "bench": "130 MB (480 MB on disk)"}
OWN_TORCH = """This Python has no torch of 2.9 or newer: up to 200 MB (880 MB on disk) more for its CPU build.
Where the package index has torch with CUDA alone, that is 3 GB (5.6 GB on disk). Without a GPU, stop (Ctrl-C)
and say make TORCH_INDEX=URL, with the CPU wheel index named on pytorch.org."""


def working_torch() -> str:
    """Return the version of this Python's torch, or nothing where it does not work or is older than 2.9."""
    code = "import torch; torch.ones(1) + 1; print(torch.__version__)"
    version = run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    number = re.match(r"(\d+)\.(\d+)(\.0a)?", version)  # 2.9.0a0 comes before 2.9
    return version if number and (int(number[1]), int(number[2]), not number[3]) >= (2, 9, True) else ""


def call(*command: str) -> None:
    """Run a command, show its errors and large downloads, and end where it fails."""
    show = re.compile(r"\s*(downloading .* MB\)|error)", re.IGNORECASE).match
    with Popen(command, cwd=ROOT, stdout=PIPE, stderr=STDOUT, text=True) as process:
        for line in filter(show, process.stdout):
            print(line.rstrip(), flush=True)
    if process.returncode:
        sys.exit("The environment is not ready: the lines above say why; build/setup.log has all of pip's.")


def set_up(name: str, extra: str) -> None:
    """Make the environment, unless the stamp in it says that it fits this checkout."""
    folder, version = ROOT / name, "python{}.{}".format(*sys.version_info)
    python, stamp, site = folder / "bin/python", folder / "stamp.txt", folder / f"lib/{version}/site-packages"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + pins.encode()).hexdigest()
    state, *lent = stamp.read_text(encoding="utf-8").split("\n") if stamp.exists() else [""]
    if state == f"{wanted} {folder}" and python.exists() and all(map(os.path.isdir, lent)):
        return
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(f"{version} cannot make environments; on Debian and Ubuntu: apt install {version}-venv")
    torch = working_torch()
    note = f"torch {torch} is here: it is used, and left as it is." if torch else OWN_TORCH
    print(f"Setting up {name} for Firstlight: up to {SIZES[extra]} to download.", note, sep="\n", flush=True)
    stands = state.endswith(f" {folder}") and site.exists()  # in a copy, scripts name the other folder
    call(sys.executable, "-m", "venv", *([] if stands else ["--clear"]), str(folder))
    # `--system-site-packages` would show the base Python's packages, not those of an active environment.
    lent = [path for path in sys.path if torch and path.endswith("-packages") and path != str(site)]
    (site / "lent.pth").write_text("\n".join(lent), encoding="utf-8")
    stamp.write_text("\n".join([f"unfinished {folder}", *lent]), encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text(re.sub(r"(?m)^torch==\S+", f"torch=={torch}", pins) if torch else pins)
    pip = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    pip += ["--log", "build/setup.log", "--constraint", str(constraints)]
    call(*pip, "--upgrade", "pip")
    call(*pip, "--build-constraint", str(constraints), "--editable", f".[{extra}]")
    stamp.write_text("\n".join([f"{wanted} {folder}", *lent]), encoding="utf-8")
    print(f"{name} is ready.", flush=True)


try:
    set_up(*sys.argv[1:])
except KeyboardInterrupt:
    sys.exit("\nstopped; the next make goes on from here")
