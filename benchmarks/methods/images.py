"""Training and measuring on images, with the command line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from cells import Cell
from registry import METHODS, objective_config
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_tweedie import datamodules
from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import ItemSet, collate
from lightning_tweedie.files import npy_bytes, write_whole
from lightning_tweedie.sampling import one_step

__all__ = ["ArrayData", "Unfinished", "run_images", "true_fid"]

HERE = Path(__file__).resolve().parent
EXTRACTOR = "efficientnet-lite0-96"
REFERENCE = 10_000
"""Clean images that samples are compared with."""
SHOWN = 12
"""Samples that are kept for pictures."""


class Unfinished(Exception):
    """The time for this call is over; the next one goes on."""


class ArrayData(datamodules.NoisyDataModule):
    """Images in a file of NumPy, floats in [-1, 1] or beyond.

    Args:
        path: The file, ``(N, C, H, W)``.
        kwargs: The settings of NoisyDataModule.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:  # noqa: ANN401 - handed on
        super().__init__(**kwargs)
        self.path = path

    def train_set(self) -> ItemSet:
        """All of them."""
        return ArrayDataset(np.load(self.path))


def command(*arguments: str) -> None:
    """Runs one command of the command line; its output goes to this process' standard error."""
    paths = os.pathsep.join([str(HERE), *sys.path])
    call = [sys.executable, "-m", "lightning_tweedie", *arguments]
    subprocess.run(call, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": paths})


def newest(folder: Path) -> Path | None:
    """The last checkpoint of the latest of some runs."""
    found = list(folder.glob("fit_*/checkpoints/last.ckpt"))
    return max(found, key=lambda path: int(path.parts[-3].removeprefix("fit_"))) if found else None


def state(checkpoint: Path) -> tuple[int, float]:
    """Steps that were made, and the seconds that they took."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return content["global_step"], content["callbacks"]["Timer"]["time_elapsed"]["train"]


def fit(
    name: str, folder: Path, objective: dict[str, Any], cell: Cell, steps: int, minutes: float | None, *options: str
) -> tuple[Path, float]:
    """Trains, or goes on with what an earlier call has begun; the checkpoint and the seconds of all steps."""
    dataset = cell.problem.partition("@")[0]
    objective_file = folder / f"{name}.yaml"
    objective_file.write_text(yaml.safe_dump(objective))
    before = newest(folder / name)
    done, seconds = state(before) if before else (0, 0.0)
    if done < steps:
        # A limit makes Lightning measure the time and keep it in checkpoints.
        until = round(seconds + 60 * minutes) if minutes else 10**8
        command(
            *("fit", "--config", str(HERE / f"{dataset}.yaml"), "--name", name, "--runs", str(folder)),
            *("--model.objective", str(objective_file), "--seed_everything", str(cell.seed)),
            *("--model.seed", str(cell.seed), "--trainer.max_steps", str(steps), *options),
            *("--trainer.max_time", json.dumps({"seconds": until})),
            *(("--ckpt_path", str(before)) if before else ()),
        )
    found = newest(folder / name)
    assert found is not None
    done, seconds = state(found)
    if done < steps:
        raise Unfinished(f"{done:,} of {steps:,} steps")
    return found, seconds


def nonlocal_means(images: np.ndarray, sigma_n: float) -> np.ndarray:
    """Images ``(N, C, H, W)`` with their noise of level ``sigma_n`` taken away by non-local means (scikit-image)."""
    from skimage.restoration import denoise_nl_means

    settings = {"patch_size": 5, "patch_distance": 6, "h": 0.6 * sigma_n, "sigma": sigma_n, "fast_mode": True}
    last = np.moveaxis(images, 1, -1)
    found = [denoise_nl_means(image, channel_axis=-1, **settings) for image in last]
    # It drops the axis of a single channel.
    return np.moveaxis(np.stack(found).reshape(last.shape), -1, 1)


def denoise_all(dataset: datamodules.NoisyDataModule, checkpoint: Path | None, path: Path) -> None:
    """Writes estimates of all training images: one-step ones, or those by non-local means without a checkpoint."""
    denoiser = load_denoiser(str(checkpoint)).denoiser if checkpoint else None
    parts = []
    for batch in tqdm(DataLoader(dataset.noisy_set(), batch_size=250, collate_fn=collate), "denoising", mininterval=2):
        if denoiser is None:
            parts.append(nonlocal_means(batch.x_n.numpy(), dataset.sigma_n).astype(np.float32))
        else:
            parts.append(one_step(denoiser, batch.x_n, batch.sigma_n).numpy())
    write_whole(path, npy_bytes(np.concatenate(parts)))


def _samplings(cell: Cell) -> tuple[str, ...]:
    return ("full", "truncated") if METHODS[cell.method].truncated else ("full",)


def measure(cell: Cell, folder: Path, checkpoint: Path, *options: str) -> list[dict[str, Any]]:
    """The rows of ``lightning_tweedie evaluate``; samples that are there already are not made again."""
    command(
        *("evaluate", "--ckpt_path", str(checkpoint), "--data", str(folder / "data.yaml")),
        *("--sampling", ",".join(_samplings(cell)), "--sampler", "sde-dpmsolver++", "--steps", "20"),
        *("--num", str(cell.num), "--seed", str(cell.seed), *options),
        *("--out", str(folder / "result.json"), "--overwrite", "true"),
    )
    rows: list[dict[str, Any]] = json.loads((folder / "result.json").read_text())["rows"]
    return rows


def true_fid(cell: Cell, folder: Path) -> dict[str, float]:
    """The distance of a finished cell's samples in the features of Inception, by the way of sampling.

    The features of the clean images, the same for all cells, are kept beside their folders.
    """
    reference = folder.parent / f"{cell.problem.partition('@')[0]}-inception.npz"
    if not reference.is_file():
        command(
            *("statistics", "--images", str(folder / "data.yaml"), "--extractor", "inception"),
            *("--num", str(REFERENCE), "--out", str(reference)),
        )
    checkpoint = newest(folder / "final")
    assert checkpoint is not None
    options = ("--metrics", "fid", "--extractor", "inception", "--reference", str(reference))
    rows = measure(cell, folder, checkpoint, *options)
    return {row["sampling"]: row["value"] for row in rows if row["metric"] == "fid"}


def run_images(cell: Cell, folder: Path, minutes: float | None = None) -> dict[str, Any]:
    """Trains with one method and measures; the runs are kept in the folder.

    Raises:
        Unfinished: The training takes more than so many minutes.
    """
    method, (name, _, sigma) = METHODS[cell.method], cell.problem.partition("@")
    folder.mkdir(parents=True, exist_ok=True)
    noisy = yaml.safe_load((HERE / f"{name}.yaml").read_text())["data"]
    noisy["init_args"] |= {"sigma": float(sigma), "seed": cell.seed, "batch_size": cell.batch}
    # All are measured with the noisy data, whatever they were trained on.
    (folder / "data.yaml").write_text(yaml.safe_dump(noisy))
    given = [f"--data.{key}={noisy['init_args'][key]}" for key in ("seed", "batch_size")]
    steps, seconds, checkpoint = cell.steps, 0.0, None
    if method.first not in (None, "nonlocal_means"):
        steps -= cell.steps // 2
        objective, its = objective_config(method.first, {}), [*given, f"--data.sigma={sigma}"]
        checkpoint, seconds = fit("first", folder, objective, cell, cell.steps // 2, minutes, *its)
    if method.data == "denoised":
        if not (folder / "denoised.npy").is_file():
            module = getattr(datamodules, noisy["class_path"].rpartition(".")[2])(**noisy["init_args"])
            module.setup("fit")
            denoise_all(module, checkpoint, folder / "denoised.npy")
        # Estimates may lie beyond [-1, 1], which clean images may not.
        given = ["--data=images.ArrayData", f"--data.path={folder / 'denoised.npy'}", "--data.inject=false", *given]
    given += [
        f"--data.sigma={sigma if method.data == 'noisy' else 0}",
        f"--data.clean_fraction={method.clean_fraction}",
    ]
    objective = objective_config(method.objective, method.settings)
    checkpoint, more = fit("final", folder, objective, cell, steps, minutes, *given)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    samplings = _samplings(cell)
    rows = measure(
        *(cell, folder, checkpoint, "--metrics", "fid,proximal_fid,restoration", "--extractor", EXTRACTOR),
        *("--num_reference", str(REFERENCE), "--num_restored", str(min(64, cell.num)), "--draws", "3"),
    )
    for sampling in samplings:
        row = next(row for row in rows if row["sampling"] == sampling)
        solver = f"{row['sampler']}{row['steps']}"  # samples by another may be there from before
        (first,) = (folder / "result_samples").glob(f"*-{solver}-{sampling}-seed*/00000000.npy")
        np.save(folder / f"{sampling}.npy", np.load(first)[:SHOWN])
    wanted = (f"fd_{EXTRACTOR}", f"proximal_fd_{EXTRACTOR}", "psnr_one_step", "psnr_draw", "psnr_mean")
    measured = {
        sampling: {row["metric"]: row["value"] for row in rows if row["sampling"] in (sampling, None)}
        for sampling in samplings
    }
    return {
        "sigma_n": float(sigma),
        "measured": {sampling: {name: its[name] for name in wanted} for sampling, its in measured.items()},
        "seconds_per_step": round((seconds + more) / cell.steps, 6),
        "peak_memory_mb": memory,
    }
