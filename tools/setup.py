"""Make the virtual environment that `make` works in, or bring it up to date: tools/setup.py .venv dev

A torch that the calling Python has is used and never replaced: the environment sees that Python's packages
behind its own (an active environment's too, unlike --system-site-packages). Otherwise it gets its own torch.
"""

import sys

# Before the imports that an older Python lacks. The rest keeps to a syntax that Python 3.6 can read.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "Firstlight needs Python 3.11 or newer, not {}.{}: make PYTHON=python3.12".format(*sys.version_info)
    )

import hashlib
import importlib.util
import re
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, run

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "build" / "setup.log"
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
    """Run a command, show its errors and large downloads, log the rest, and end where it fails."""
    LOG.parent.mkdir(exist_ok=True)
    with Popen(command, cwd=ROOT, stdout=PIPE, stderr=STDOUT, text=True) as process, LOG.open("a") as log:
        for line in process.stdout:
            log.write(line)
            if re.match(r"\s*(downloading .* MB\)|error)", line, re.IGNORECASE):
                print(line.rstrip(), flush=True)
    if process.returncode:
        sys.exit(f"The environment is not ready: the lines above say why; {LOG} has all of them.")


def set_up(name: str, extra: str) -> None:
    """Make the environment, unless its stamp says that it is of this very folder and fits the checkout."""
    folder, version = (ROOT / name).resolve(), "python{}.{}".format(*sys.version_info)
    python, site = folder / "bin/python", folder / f"lib/{version}/site-packages"
    stamp, constraints = folder / "installed.txt", folder / "constraints.txt"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + pins.encode()).hexdigest()
    state, *lent = stamp.read_text(encoding="utf-8").split("\n") if stamp.exists() else [""]
    usable = state.endswith(f" {folder}") and python.exists() and all(Path(path).is_dir() for path in lent)
    if usable and state.startswith(wanted):
        return
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(f"{version} cannot make environments; on Debian and Ubuntu: apt install {version}-venv")
    torch = working_torch()
    print(f"Setting up {name} for Firstlight: up to 150 MB (560 MB on disk) to download.")
    print(f"torch {torch} is here: it is used, and left as it is." if torch else OWN_TORCH, flush=True)
    if not (usable and site.exists()):
        call(sys.executable, "-m", "venv", "--clear", str(folder))
    lent = [path for path in sys.path if torch and path.endswith("-packages") and path != str(site)]
    (site / "lent.pth").write_text("\n".join(lent), encoding="utf-8")
    stamp.write_text("\n".join([f"unfinished {folder}", *lent]), encoding="utf-8")
    constraints.write_text(re.sub(r"(?m)^torch==\S+", f"torch=={torch}", pins) if torch else pins)
    pip = [str(python), "-m", "pip", "install", "--no-input", f"--constraint={constraints}"]
    call(*pip, "--upgrade", "pip")
    call(*pip, f"--build-constraint={constraints}", "--editable", f".[{extra}]")
    stamp.write_text("\n".join([f"{wanted} {folder}", *lent]), encoding="utf-8")
    print(f"{name} is ready.", flush=True)


try:
    set_up(*sys.argv[1:])
except KeyboardInterrupt:
    sys.exit("\nstopped; the next make goes on from here")
