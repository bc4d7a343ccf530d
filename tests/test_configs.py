"""Every file under configs/ parses, makes its objects and trains two steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import CONFIGS, DIGITS, run
from jsonargparse import ArgumentParser
from PIL import Image

from lightning_tweedie.cli import main
from lightning_tweedie.objectives import Objective

# Everything that takes time is made small; nothing of what the files are about is replaced.
QUICK = """
trainer:
  accelerator: cpu
  devices: 1
  precision: 32-true
  max_steps: 2
  val_check_interval: 2
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""
NETWORK = ["--model.denoiser.backbone.init_args.width=16", "--data.init_args.batch_size=4"]
UNET = [*NETWORK, "--model.denoiser.backbone.init_args.blocks=1"]
DIT = [*NETWORK, *(f"--model.denoiser.backbone.init_args.{name}=2" for name in ("depth", "heads"))]
SMALL = {
    "ring": [*NETWORK, "--data.init_args.items=2600"],
    "ring_distilled": ["--data.init_args.items=2600", "--data.init_args.batch_size=4"],
    "demo": UNET,
    "fashion_mnist": UNET,
    "cifar10": UNET,
    "folder": [*UNET, "--data.init_args.holdout=8"],
    "folder_dit": [*DIT, "--data.init_args.holdout=8"],
}
"""Options for each experiment; an experiment that is missing here fails its test."""


def solver(name: str) -> dict[str, object]:
    return {"class_path": f"lightning_tweedie.sampling.{name}", "init_args": {"steps": 2}}


FEW = {
    "SampleGrid": {"num_samples": 2, "sampler": solver("Heun")},
    "RestorationGrid": {"num_items": 2, "draws": 2, "sampler": solver("Ancestral")},
    "SampleQuality": {
        **{"num_images": 4, "sampler": solver("Heun"), "extractor": "efficientnet-lite0-64"},
        "every_n_validations": 1,
    },
    "RestorationQuality": {"num_images": 2, "draws": 2, "sampler": solver("Ancestral"), "every_n_validations": 1},
    "Report": {
        **{"num_images": 4, "num_restored": 2, "draws": 2},
        **{"sampler": solver("Heun"), "posterior_sampler": solver("Ancestral")},
    },
}
"""Small settings for each callback that may be in an experiment."""


def names(folder: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / folder).glob("*.yaml"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Stand-ins of the right shape for data that are too large to be fetched for a test."""
    from lightning_tweedie import datamodules

    generator = torch.Generator().manual_seed(0)

    def images(channels: int, side: int) -> object:
        array = torch.randint(0, 256, (700, channels, side, side), generator=generator, dtype=torch.uint8).numpy()
        return staticmethod(lambda root, train: array)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datamodules.FashionMNIST, "_read", images(1, 28))
    monkeypatch.setattr(datamodules.CIFAR10, "_read", images(3, 32))
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        pixels = torch.randint(0, 256, (70, 80 + i, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return {
        "folder": [f"--data.init_args.root={folder}"],
        "folder_dit": [f"--data.init_args.root={folder}"],
        "ring_distilled": [f"--model.teacher={tmp_path / 'teacher/ring/fit_0/checkpoints/last.ckpt'}"],
    }


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment(name: str, tmp_path: Path, data: dict[str, list[str]]) -> None:
    (tmp_path / "quick.yaml").write_text(QUICK)
    options = ["--config", str(CONFIGS / f"experiment/{name}.yaml"), "--config", str(tmp_path / "quick.yaml")]
    # Few samples with few steps.
    config = yaml.safe_load((CONFIGS / f"experiment/{name}.yaml").read_text())
    for callback in config["trainer"]["callbacks"]:
        callback["init_args"] = {**callback.get("init_args", {}), **FEW[callback["class_path"].rpartition(".")[2]]}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": config["trainer"]["callbacks"]}}))
    options += ["--config", str(tmp_path / "few.yaml"), "--runs", str(tmp_path / "runs")]
    if name == "ring_distilled":
        assert run(tmp_path, "fit", "--runs", str(tmp_path / "teacher")) == 0
    assert main(["fit", *options, *SMALL[name], *data.get(name, [])]) == 0
    (directory,) = tmp_path.glob("runs/*/fit_0")
    assert directory.parent.name == config["name"] == name
    last = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    drawn = [c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("Grid")]
    assert len(list(directory.glob("pictures/*/*.png"))) == len(drawn)
    measured = any(c["class_path"].endswith("Quality") for c in config["trainer"]["callbacks"])
    assert (directory / "quality.jsonl").exists() == measured


def test_the_best_checkpoint_of_cifar10_by_a_measure_without_clean_images(
    tmp_path: Path, data: dict[str, list[str]]
) -> None:
    """What the file says to add."""
    text = (CONFIGS / "experiment/cifar10.yaml").read_text()
    option = "--best_checkpoint.monitor proximal_fid"
    assert option in text
    (tmp_path / "quick.yaml").write_text(QUICK.replace("max_steps: 2", "max_steps: 6"))
    quality = {"class_path": "lightning_tweedie.callbacks.SampleQuality", "init_args": FEW["SampleQuality"]}
    quality["init_args"] = {**FEW["SampleQuality"], "metrics": ["proximal_fid"]}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [quality]}}))
    options = ["--config", str(CONFIGS / "experiment/cifar10.yaml"), "--config", str(tmp_path / "quick.yaml")]
    options += ["--config", str(tmp_path / "few.yaml"), "--runs", str(tmp_path / "runs"), *SMALL["cifar10"]]
    # The name says the extractor, which is a quick one here.
    assert main(["fit", *options, *f"{option.replace('fid', 'fd')}_efficientnet-lite0-64".split()]) == 0
    directory = tmp_path / "runs/cifar10/fit_0"
    rows = [json.loads(line) for line in (directory / "quality.jsonl").read_text().splitlines()]
    full = [row for row in rows if row["sampling"] == "full"]
    best = min(full, key=lambda row: row["value"])
    assert [row["step"] for row in full] == [2, 4, 6]
    assert torch.load(directory / "checkpoints/best.ckpt", weights_only=True)["global_step"] == best["step"]


def test_a_folder_of_noisy_images_of_one_size(tmp_path: Path) -> None:
    """What the file says to add."""
    config = CONFIGS / "experiment/folder.yaml"
    options = "--data.inject false --data.transform null"
    assert options in config.read_text()
    (tmp_path / "images").mkdir()
    for i in range(24):
        noisy = np.random.default_rng(i).normal(0, 0.5, (3, 64, 64)).astype(np.float32)
        np.save(tmp_path / f"images/{i}.npy", noisy)
    (tmp_path / "quick.yaml").write_text(QUICK + "  callbacks: []\n")
    given = ["--config", str(config), "--config", str(tmp_path / "quick.yaml"), "--runs", str(tmp_path / "runs")]
    given += ["--data.root", str(tmp_path / "images"), *options.split(), *SMALL["folder"]]
    assert main(["fit", *given]) == 0


@pytest.mark.parametrize("name", names("objective"))
def test_an_objective_leaves_nothing_of_the_experiments_own(name: str) -> None:
    """It is laid over the default, which all have, and is the same as alone."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(Objective, "objective")

    def parsed(*several: str) -> str:
        return parser.dump(parser.parse_args([f"--objective={CONFIGS / 'objective' / each}.yaml" for each in several]))

    assert parsed("default", name) == parsed(name)


def test_every_model_that_learns_from_data_takes_the_default() -> None:
    models = [yaml.safe_load(path.read_text()) for path in (CONFIGS / "model").glob("*.yaml")]
    own = {model["init_args"].get("objective") for model in models if model["class_path"].endswith("TweedieModule")}
    assert own == {"../objective/default.yaml"}


@pytest.mark.parametrize("name", names("objective"))
def test_objective(name: str, tmp_path: Path) -> None:
    """In the place of an experiment's own, of which no term is left; every other takes part, from the first step on."""
    objective = yaml.safe_load((CONFIGS / f"objective/{name}.yaml").read_text())
    terms = objective["init_args"]
    # What a file is silent about would stay as the experiment has it.
    assert set(terms) == {"ambient", "consistency", "replay", "extra"}
    for term in terms.values():
        if "start" in (term.get("init_args", {}) if isinstance(term, dict) else {}):
            term["init_args"] |= {"start": 0.0, "ramp": 0.0}
    (tmp_path / "objective.yaml").write_text(yaml.safe_dump(objective))
    (tmp_path / "quick.yaml").write_text(QUICK + "  callbacks: []\n  log_every_n_steps: 1\n")
    options = ["--config", str(CONFIGS / "experiment/ring.yaml"), "--config", str(tmp_path / "quick.yaml")]
    options += ["--model.objective.init_args.replay.init_args.start", "0"]
    options += ["--model.objective", str(tmp_path / "objective.yaml"), "--runs", str(tmp_path / "runs"), *SMALL["ring"]]
    assert main(["fit", *options]) == 0
    logged = (tmp_path / "runs/ring/fit_0/metrics.csv").read_text().partition("\n")[0].split(",")
    own = {"ambient": "score_matching" if name == "naive" else "ambient", "extra": "sure"}
    for term in [*own.values(), "ambient", "score_matching", "consistency", "replay"]:
        wanted = any(own.get(key, key) == term for key, its in terms.items() if its is not None)
        assert (f"train/{term}" in logged) == wanted, term


@pytest.mark.parametrize("name", names("trainer"))
def test_trainer(name: str, tmp_path: Path) -> None:
    """Laid over an experiment; what only a GPU can do is left to machines with one."""
    (tmp_path / "tiny.yaml").write_text(DIGITS)
    (tmp_path / "quick.yaml").write_text("accelerator: cpu\nnum_nodes: 1\ndevices: 1\nmax_steps: 2\nstrategy: auto\n")
    options = ["--config", str(tmp_path / "tiny.yaml"), "--trainer", str(CONFIGS / f"trainer/{name}.yaml")]
    options += ["--trainer", str(tmp_path / "quick.yaml"), "--runs", str(tmp_path / "runs")]
    assert main(["fit", *options]) == 0
    written = yaml.safe_load((tmp_path / "runs/digits/fit_0/config.yaml").read_text())["trainer"]
    wanted = yaml.safe_load((CONFIGS / f"trainer/{name}.yaml").read_text())
    assert written["precision"] == wanted["precision"]
    assert written["accumulate_grad_batches"] == wanted.get("accumulate_grad_batches", 1)


def test_every_part_belongs_to_an_experiment() -> None:
    """Then the tests above cover it."""
    experiments = [yaml.safe_load(p.read_text()) for p in (CONFIGS / "experiment").glob("*.yaml")]
    for part in ("model", "data"):
        used = {Path(e[part]).stem for e in experiments}
        assert used == set(names(part))
