"""`sample`: images from a checkpoint alone."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.output import choose_device, output_folder, write_picture
from lightning_tweedie.commands.samplers import SamplerName, make_sampler
from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["main", "sample"]

LARGEST_GRID = 256
"""So many samples at most are shown in one picture."""


def sample(
    ckpt_path: str,
    out: str,
    num: int = 64,
    seed: int = 0,
    sampler: SamplerName = "heun",
    steps: int = 18,
    sigma_max: float = 80.0,
    truncated: bool = False,
    batch_size: int = 64,
    average: int = 0,
    device: str = "auto",
    compile: bool = False,
    overwrite: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Draws samples with the averaged weights of a checkpoint.

    Writes every sample as PNG, a picture of all of them (grid.png) and the samples as floats on the scale of [-1, 1]
    (samples.npz); models of data that are not of 8 bits also write each sample as TIFF, in the data's own units and
    type. A sample depends on the seed and its number, not on the batch it is made in.

    Args:
        ckpt_path: The checkpoint.
        out: Folder for the results; it must be empty.
        num: How many samples.
        seed: Seed of the samples.
        sampler: Solver of the reverse process.
        steps: Number of noise levels.
        sigma_max: The first of them. A distilled generator wants its sigma_init here, and one step.
        truncated: Stop at the noise level of the training data: blurred, but right without any training below it.
        batch_size: Samples made at once; changes the memory needed, not the samples.
        average: Which weight average, in the order of ema.half_lives: 0 is the first.
        device: auto, cpu, cuda, cuda:1, ...
        compile: Compile the network first, which takes a minute or more and pays for thousands of samples. On a GPU an
            evaluation is then replayed as one CUDA graph.
        overwrite: Replace files of an earlier call; all of its numbered PNGs and TIFFs go.
        allow: Packages whose network classes the checkpoint may use, besides this library: their code is run.

    Raises:
        UserError: A setting or the checkpoint is wrong.
    """
    if num < 1 or batch_size < 1:
        raise UserError(f"num = {num} and batch_size = {batch_size} must be at least 1")
    import numpy as np
    import torch
    from tqdm import tqdm

    from lightning_tweedie import sampling
    from lightning_tweedie.checkpoint import load_denoiser
    from lightning_tweedie.compiler import check_compiler
    from lightning_tweedie.files import write_whole

    where = choose_device(device)
    trained = load_denoiser(ckpt_path, allow or [], where, average)
    if compile:
        check_compiler(where, "compile")
        trained.denoiser.compile(mode="reduce-overhead")
    solver = make_sampler(sampler, steps, sigma_max)
    folder = output_folder(out, overwrite)
    batches = []
    with tqdm(total=num, desc="sampling", unit="sample") as bar:
        for start in range(0, num, batch_size):
            indices = range(start, min(start + batch_size, num))
            batch = sampling.sample(
                trained.denoiser,
                (len(indices), *trained.shape),
                solver,
                seed=seed,
                indices=indices,
                truncate_at=trained.sigma_n if truncated else None,
            )
            batches.append(batch.cpu())
            bar.update(len(indices))
    samples = torch.cat(batches)
    _remove_earlier(folder)
    content = io.BytesIO()
    np.savez(content, samples=samples.numpy())
    write_whole(folder / "samples.npz", content.getbuffer())
    _draw(samples, folder)
    if trained.scale is not None and len(trained.shape) == 3:
        _write_own_units(samples, trained.scale, folder)
    print(f"Wrote {num} samples to {folder}")


def _remove_earlier(folder: Path) -> None:
    """Removes the pictures of an earlier call, of which there may be more than now."""
    if (folder / "samples.npz").is_file():
        for path in folder.iterdir():
            if re.fullmatch(r"[0-9]{4,}\.(png|tif)", path.name):
                path.unlink()


def _draw(samples: "Tensor", folder: Path) -> None:
    """PNGs of what can be drawn."""
    from lightning_tweedie.pictures import can_be_drawn, grid, panel

    if not can_be_drawn(samples.shape[1:]):
        return
    if samples.ndim == 2:
        write_picture(panel([("samples", samples)]), folder / "grid.png")
        return
    for number, image in enumerate(samples):
        write_picture(grid(image[None], per_row=1, side=1), folder / f"{_name(number, len(samples))}.png")
    shown = samples[:LARGEST_GRID]
    write_picture(grid(shown, per_row=math.ceil(math.sqrt(len(shown)))), folder / "grid.png")


def _write_own_units(samples: "Tensor", content: dict[str, Any], folder: Path) -> None:
    """Samples in the units and the type of the data, unless these are what the PNGs have."""
    from lightning_tweedie.data.formats.layout import Layout
    from lightning_tweedie.data.formats.stored import Stored
    from lightning_tweedie.data.formats.tiff_file import TiffFile
    from lightning_tweedie.data.scale import DataScale
    from lightning_tweedie.files import write_whole

    scale = DataScale.from_dict(content)
    if scale.dtype == "uint8":
        return
    channels, height, width = samples.shape[1:]
    axes = {1: "YX", 3: "YXC"}.get(channels, "CYX")
    sizes = {"C": channels, "Y": height, "X": width}
    layout = Layout(tuple(sizes[axis] for axis in axes), axes)
    for number, image in enumerate(samples):
        array = layout.join([scale.restored(image)])
        path = folder / f"{_name(number, len(samples))}.tif"
        write_whole(path, TiffFile().write(array, Stored.whole(array, axes)))


def _name(number: int, count: int) -> str:
    return f"{number:0{max(4, len(str(count - 1)))}}"


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie sample``."""
    call_with(sample, argv)
