"""What the pages tell to type works: every command of ours in a shell block, every configuration in a YAML block."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from image_sets import ENCODER
from PIL import Image

from lightning_tweedie import datamodules
from lightning_tweedie.cli import main
from lightning_tweedie.sweeps import runner
from lightning_tweedie.sweeps.run import Run
from lightning_tweedie.sweeps.sweep_file import agent_command, read_sweep

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not {"_build", "_generated"} & {*path.parts}
)
ELSEWHERE = {"docs/howto/extending.md": "test_examples.py", "docs/howto/giving_away.md": "test_cli_export.py"}
"""Pages whose commands have a test of their own, which goes through them all."""
NOT_WHITE = "docs/howto/noise_not_white.md"


def blocks(page: str, *languages: str) -> list[str]:
    """The code on a page in any of these languages, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [code for language, code in found if language in languages]


def commands(page: str) -> list[list[str]]:
    """Every call of the command line in a shell block, in order, and what stands before it."""
    found = []
    for code in blocks(page, "sh", "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            if re.search(r"(^|\s)lightning_tweedie\s", line.partition(" #")[0]):
                found.append(shlex.split(line.replace('${newest:+--ckpt_path "$newest"}', ""), comments=True))
    return found


def test_shell_and_yaml_blocks_are_called_so() -> None:
    """A command in a block of another kind would not be found."""
    for page in PAGES:
        for language, code in re.findall(r"^```(\S*)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
            if language not in ("sh", "bash"):
                assert not re.search(r"^(\$ )?lightning_tweedie \w+ .*-", code, re.M), (page, code)
            assert language not in ("yml", "shell", "console"), (page, language)


def test_pages_with_a_test_of_their_own_have_one() -> None:
    for page, test in ELSEWHERE.items():
        assert page in PAGES and page in (ROOT / "tests" / test).read_text()


SIDE, GREY_SIDE = 64, 28
UNET = ["--model.denoiser.init_args.backbone.init_args.width", "16"]
UNET += ["--model.denoiser.init_args.backbone.init_args.blocks", "1"]
MLP = ["--data.items", "2600", *UNET[:2]]
FIT = (
    "--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto "
    "--trainer.precision 32-true --trainer.max_steps 2 --trainer.limit_val_batches 1 --trainer.num_sanity_val_steps 0 "
    "--trainer.callbacks [] --trainer.enable_progress_bar false --trainer.enable_model_summary false "
    "--data.batch_size 4 --data.holdout 4"
).split()
LESS = {
    "fit": FIT,
    "validate": FIT,
    "sample": "--num 12 --steps 2 --sampler euler".split(),
    "denoise": "--steps 2".split(),
    "export": "--num 2".split(),
    "evaluate": f"--num 12 --num_restored 2 --draws 2 --steps 2 --extractor {ENCODER}".split(),
    "statistics": f"--extractor {ENCODER}".split(),
    "inspect": [],
    "sweep": [],
}
"""What is added to each command, so that it takes seconds."""


def less(command: Sequence[str]) -> list[str]:
    """The command with less to do."""
    more = list(LESS[command[0]])
    if command[0] in ("fit", "validate"):
        more += MLP if "configs/experiment/ring.yaml" in command else UNET
    if "--num_reference" in command:
        more += ["--num_reference", "12"]
    if command[0] == "denoise" and "--draws" in command:
        more += ["--draws", "2"]
    if command[0] == "evaluate" and Path(command[command.index("--out") + 1]).exists():
        more += ["--overwrite", "true"]  # the page has another command with this name
    return [*command, *more]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has: a run of the demo, here a very short one."""
    folder = tmp_path_factory.mktemp("demo")
    fit = ["fit", "--config", str(ROOT / "configs/experiment/demo.yaml"), "--runs", str(folder), *FIT, *UNET]
    assert main([*fit, "--trainer.max_steps", "1"]) == 0
    return folder / "demo/fit_0"


def picture(seed: int, *shape: int) -> np.ndarray:
    """A smooth image with white noise, 8 bits."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 200, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)) + rng.uniform(-20, 20)
    return np.clip(ramp + rng.normal(0, 25, shape), 0, 255).round().astype(np.uint8)


def write_images(folder: Path, shape: tuple[int, ...], count: int = 24) -> list[str]:
    names = [f"{part}/{number:04}.png" for part in ("night", "tripod") for number in range(1, 1 + count // 2)]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, *shape)).save(folder / name)
    return names


@pytest.fixture
def here(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with everything that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command line adds this folder
    Path("configs").symlink_to(ROOT / "configs")
    shutil.copytree(demo, "runs/demo/fit_0")
    shutil.copy(demo / "config.yaml", "config.yaml")
    for name in ("last", "a", "b", "step1000", "step2500", "step8000"):
        shutil.copy(demo / "checkpoints/last.ckpt", f"{name}.ckpt")
    names = write_images(Path("photos"), (SIDE, SIDE, 3))
    shutil.copytree("photos", "my_images")
    write_images(Path("noisy"), (GREY_SIDE, GREY_SIDE), 8)
    table = "\n".join(f"{name},{0.2 * (number % 3)}" for number, name in enumerate(names))
    for name in ("noise.csv", "levels.csv"):
        Path(name).write_text(f"file,sigma\n{table}\n")
    for name in names:
        Path("maps", name).parent.mkdir(parents=True, exist_ok=True)
        np.save(Path("maps", name).with_suffix(".npy"), np.full((SIDE, SIDE), 0.2))
    np.save("correlation.npy", np.array([[0.0, 0.2, 0.0], [0.2, 1.0, 0.2], [0.0, 0.2, 0.0]]))
    for page, name, own in (("README.md", "galaxies", "class Galaxies"), (NOT_WHITE, "exposure", "def level")):
        Path(f"{name}.py").write_text(next(code for code in blocks(page, "python") if own in code))
    noise = np.random.default_rng(0).normal(0, 0.5, (40, 1, GREY_SIDE, GREY_SIDE))
    np.save("galaxies.npy", noise.astype(np.float32))
    array = np.random.default_rng(0).integers(0, 256, (700, 1, GREY_SIDE, GREY_SIDE), np.uint8)
    monkeypatch.setattr(datamodules.FashionMNIST, "_read", staticmethod(lambda root, train: array))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    for name in ("galaxies", "exposure"):
        sys.modules.pop(name, None)


def parses(command: Sequence[str]) -> bool:
    """Whether a training takes all of these settings; nothing is trained."""
    return main([*command, "--print_config"]) == 0


def parse_first_and_last(runs: Sequence[Run], *_: object) -> tuple[list[Run], None]:
    """Stands in for the runs of a sweep, which have tests of their own."""
    for run in (runs[0], runs[-1]):
        command = run.command()
        assert command[0] == "lightning_tweedie" and parses(command[1:])
    return [], None


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page not in ELSEWHERE])
def test_every_command_works(page: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_all", parse_first_and_last)
    found = [command[command.index("lightning_tweedie") + 1 :] for command in commands(page)]
    made = {command[command.index("--out") + 1].rstrip("/") for command in found if "--out" in command}
    for folder in {"images", "samples"} - made:
        # On the first page they are compared with what the demo draws, elsewhere with one another.
        write_images(Path(folder), (GREY_SIDE, GREY_SIDE) if page == "README.md" else (SIDE, SIDE, 3))
    for command in found:
        if "--trainer" in command or "--trainer.devices" in command:  # for several processes, or GPUs
            assert parses(command), f"{page} has settings that are none: {shlex.join(command)}"
            continue
        assert main(less(command)) == 0, f"{page} has a command that fails: {shlex.join(command)}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_every_configuration_is_one(page: str, here: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        path = Path(f"block{number}.yaml")
        path.write_text(text)
        if "program" in yaml.safe_load(text):
            shutil.copy(path, "sweep.yaml")
            sweep = read_sweep(Path("sweep.yaml"))
            assert parses(agent_command(sweep, sweep.points(None, 0)[-1], Path("p.json"))[1:])
        else:
            assert parses(["fit", "--config", "configs/experiment/folder.yaml", "--config", str(path)])
