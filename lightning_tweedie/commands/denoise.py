"""`denoise`: noisy images restored with a checkpoint alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.output import choose_device, output_folder, write_picture
from lightning_tweedie.commands.restoration_levels import levels_of
from lightning_tweedie.commands.samplers import make_sampler
from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_tweedie.data.images import ImageFolder

__all__ = ["denoise", "main"]

SHOWN = 8
"""So many images are shown in the overview."""


def denoise(
    ckpt_path: str,
    input: str,  # noqa: A002 - the option's name
    out: str,
    sigma: float | str | None = None,
    draws: int = 0,
    steps: int = 18,
    seed: int = 0,
    batch_size: int = 16,
    average: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Restores noisy images with the averaged weights of a checkpoint.

    Writes for every image the estimate of least squared error (one_step/); with --draws also draws of what the clean
    image may have been (draws/), their mean (mean/) and their standard deviation pixel by pixel (std/, where white is
    the noise level). Everything is in arrays/ as floats too, and overview.png shows the first images.

    Args:
        ckpt_path: The checkpoint.
        input: Folder of noisy images: PNG, JPEG, TIFF, ... on a scale that is mapped to [-1, 1], or NPY with floats
            (C, H, W) on that very scale, which are not clipped.
        out: Folder for the results; it must be empty.
        sigma: Standard deviation of the noise on the scale [-1, 1] (that of 8-bit values divided by 127.5): a number,
            or a table of the levels of all images, or a folder of maps, as in training; the level of the training data
            when left out.
        draws: Draws from the posterior per image.
        steps: Noise levels per draw.
        seed: Seed of the draws.
        batch_size: Images restored at once.
        average: Which weight average, in the order of ema.half_lives: 0 is the first.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: Replace files of an earlier call.
        allow: Packages whose network classes the checkpoint may use, besides this library: their code is run.

    Raises:
        UserError: A setting, the checkpoint or an image is wrong.
    """
    if draws < 0 or batch_size < 1:
        raise UserError(f"draws = {draws} must be at least 0 and batch_size = {batch_size} at least 1")
    import torch
    from tqdm import tqdm

    from lightning_tweedie.checkpoint import load_denoiser
    from lightning_tweedie.data.images import ImageFolder
    from lightning_tweedie.kernels import raise_to_white
    from lightning_tweedie.pictures import panel
    from lightning_tweedie.randomness import SampleNoise
    from lightning_tweedie.sampling import one_step, posterior_samples

    trained = load_denoiser(ckpt_path, allow or [], choose_device(device), average)
    if len(trained.shape) != 3:
        raise UserError(f"the checkpoint is about data of shape {trained.shape}, not about images: use `sample`")
    images = ImageFolder(input, channels=trained.shape[0])
    level_of = levels_of(trained, sigma, images.names)
    solver = make_sampler("sde-dpmsolver++", steps)
    folder = output_folder(out, overwrite)
    overview: list[dict[str, Any]] = []
    with tqdm(total=len(images), desc="denoising", unit="image") as bar:
        for indices, batch in _batches(images, batch_size):
            place = trained.denoiser.sigma_data.device
            x_n, sigma_n = batch.to(place), level_of(indices, batch).to(place)
            x, level = raise_to_white(x_n, sigma_n, trained.correlation, SampleNoise(seed, indices, place, "white"))
            results = {"one_step": one_step(trained.denoiser, x, level).cpu()}
            if draws:
                drawn = posterior_samples(trained.denoiser, x, level, draws, solver, seed=seed, indices=indices).cpu()
                results |= {
                    "mean": drawn.mean(0),
                    "std": drawn.std(0, correction=min(1, draws - 1)),
                    "draws": drawn.transpose(0, 1),
                }
            for row, index in enumerate(indices):
                item = {key: value[row] for key, value in results.items()}
                white = max(float(level[row]), 1e-6)
                _write(item, white, images.names[index], folder)
                if len(overview) < SHOWN and (not overview or overview[0]["noisy"].shape == batch[row].shape):
                    overview.append({"noisy": batch[row], "level": white, "sigma": float(sigma_n[row].max()), **item})
            bar.update(len(indices))
    columns = [(f"noisy, sigma {max(o['sigma'] for o in overview):.3g}", torch.stack([o["noisy"] for o in overview]))]
    columns.append(("one-step estimate", torch.stack([o["one_step"] for o in overview])))
    if draws:
        columns.append((f"mean of {draws} draws", torch.stack([o["mean"] for o in overview])))
        columns.append(("one draw", torch.stack([o["draws"][0] for o in overview])))
        columns.append(("std (white: sigma)", torch.stack([_std_picture(o["std"], o["level"]) for o in overview])))
    write_picture(panel(columns), folder / "overview.png")
    print(f"Wrote {len(images)} restored images to {folder}")


def _batches(images: "ImageFolder", batch_size: int) -> Iterator[tuple[list[int], "Tensor"]]:
    """Successive images of the same size, at most ``batch_size`` at once, with their numbers."""
    import torch

    indices: list[int] = []
    batch: list[Tensor] = []
    for index in range(len(images)):
        image = images[index]
        if batch and (len(batch) == batch_size or image.shape != batch[0].shape):
            yield indices, torch.stack(batch)
            indices, batch = [], []
        indices.append(index)
        batch.append(image)
    yield indices, torch.stack(batch)


def _std_picture(std: "Tensor", level: float) -> "Tensor":
    """Standard deviation, averaged over the channels: black is 0, white the noise level, in [-1, 1] for a picture."""
    return std.square().mean(0, keepdim=True).sqrt().expand_as(std) / level * 2 - 1


def _write(item: dict[str, "Tensor"], level: float, name: str, folder: Path) -> None:
    """All files of one image; folders below the input stay folders below the output."""
    import numpy as np

    from lightning_tweedie.pictures import grid

    # The ending stays part of the name: a.png and a.jpg are different images.
    arrays = folder / "arrays" / f"{name}.npz"
    arrays.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arrays, **{key: value.numpy() for key, value in item.items()})  # type: ignore[arg-type]
    pictures = {f"{key}/{name}": item[key] for key in ("one_step", "mean") if key in item}
    if "draws" in item:
        pictures[f"std/{name}"] = _std_picture(item["std"], level)
        pictures |= {f"draws/{name}_{number}": draw for number, draw in enumerate(item["draws"])}
    for path, image in pictures.items():
        path = path if path.lower().endswith(".png") else f"{path}.png"
        write_picture(grid(image[None], per_row=1, side=1), folder / path)


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie denoise``."""
    call_with(denoise, argv)
