"""`denoise`: noisy images restored with a checkpoint alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.output import check_apart, choose_device, write_picture
from lightning_tweedie.commands.restoration_levels import RestorationLevels
from lightning_tweedie.commands.restored_files import RestoredFiles
from lightning_tweedie.commands.samplers import make_sampler
from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_tweedie.checkpoint import TrainedDenoiser
    from lightning_tweedie.data.images import ImageFiles
    from lightning_tweedie.data.scale import DataScale

__all__ = ["denoise", "main"]

SHOWN, SIDE = 8, 256
"""So many images are shown in the overview, of large ones the middle of so many pixels."""


def denoise(
    ckpt_path: str,
    input: str,  # noqa: A002 - the option's name
    out: str,
    sigma: float | str | None = None,
    sigma_units: Literal["scaled", "data"] = "scaled",
    draws: int = 0,
    steps: int = 18,
    seed: int = 0,
    batch_size: int = 16,
    range: list[float] | None = None,  # noqa: A002
    key: str | None = None,
    average: int = 0,
    device: str = "auto",
    allow: list[str] | None = None,
) -> None:
    """Restores noisy images with the averaged weights of a checkpoint.

    Writes for every image the estimate of least squared error (one_step/); with --draws also draws of what the clean
    image may have been (draws/0/, draws/1/, ...), their mean (mean/) and their standard deviation pixel by pixel
    (std/). They have the name, the format, the size, the type and the units of the input; deviations are floats.
    overview.png shows the first images. Large images are restored in overlapping tiles of the size of the training.

    The same command goes on where it was interrupted. Nothing is overwritten.

    Args:
        ckpt_path: The checkpoint.
        input: Folder of noisy images, or one file of them: PNG, JPEG, TIFF, NPY, NPZ, HDF5, FITS; or a tar or zip
            archive.
        out: Folder for the results: a new one, or that of the same command.
        sigma: Standard deviation of the noise: a number, or a table of the levels of all images, a folder of maps, or
            a function, as in training; the level of the training data when left out.
        sigma_units: The units of sigma: those of data in [-1, 1] (scaled), or those of the images (data).
        draws: Draws from the posterior per image.
        steps: Noise levels per draw.
        seed: Seed of the draws; a draw depends on it and on the image's name.
        batch_size: Images, or tiles, restored at once.
        range: Which values of the images, [low, high], the network knows as [-1, 1]; as in training when left out.
        key: Which array of a file, where there may be several: a name in NPZ and HDF5, a unit (HDU) in FITS.
        average: Which weight average, in the order of ema.half_lives: 0 is the first.
        device: auto, cpu, cuda, cuda:1, ...
        allow: Packages whose network classes the checkpoint may use, besides this library: their code is run.

    Raises:
        UserError: A setting, the checkpoint or an image is wrong.
    """
    if draws < 0 or batch_size < 1:
        raise UserError(f"draws = {draws} must be at least 0 and batch_size = {batch_size} at least 1")
    from tqdm import tqdm

    from lightning_tweedie.checkpoint import load_denoiser
    from lightning_tweedie.data.images import open_files
    from lightning_tweedie.evaluation.store import conditions
    from lightning_tweedie.kernels import raise_to_white
    from lightning_tweedie.randomness import SampleNoise, name_number
    from lightning_tweedie.sampling import one_step, posterior_samples
    from lightning_tweedie.tiling import TiledDenoiser

    trained = load_denoiser(ckpt_path, allow or [], choose_device(device), average)
    if len(trained.shape) != 3:
        raise UserError(f"the checkpoint is about data of shape {trained.shape}, not about images: use `sample`")
    images = open_files(input, channels=trained.shape[0], key=key, convert=False)
    check_apart(out, input)
    scale = _find_scale(trained, images, range)
    levels = RestorationLevels(trained, sigma, images.names, scale.unit if sigma_units == "data" else 1.0)
    shapes = _check(images, scale)
    solver = make_sampler("sde-dpmsolver++", steps)
    tiled = TiledDenoiser(trained.denoiser, trained.shape[1:], batch_size=batch_size).eval()
    made_with = conditions(
        trained.denoiser,
        trained.shape,
        solver,
        seed,
        sigma=levels.told,
        draws=draws,
        range=[scale.low, scale.high],
        key=key,
        input=str(Path(input).expanduser().resolve()),
    )
    files = RestoredFiles(out, images, scale, draws, made_with)
    pending = files.pending
    looks = 1 + draws * solver.evaluations(steps)
    total = looks * sum(tiled.count(shapes[index]) for index in pending)
    with tqdm(total=total, desc="denoising", unit="tile") as bar:
        trained.denoiser.register_forward_hook(lambda module, inputs, answer: bar.update(len(answer)) and None)
        for indices in _batches(pending, shapes, trained.shape, batch_size):
            batch = _stack(images, indices)
            place = trained.denoiser.sigma_data.device
            numbers = [name_number(images.names[index]) for index in indices]
            x_n, sigma_n = batch.to(place), levels.of(indices, batch).to(place)
            x, level = raise_to_white(x_n, sigma_n, trained.correlation, SampleNoise(seed, numbers, place, "white"))
            results = {"one_step": one_step(tiled, x, level).cpu()}  # type: ignore[arg-type]
            if draws:
                drawn = posterior_samples(tiled, x, level, draws, solver, seed=seed, indices=numbers).cpu()  # type: ignore[arg-type]
                results |= {"mean": drawn.mean(0), "std": drawn.std(0, correction=min(1, draws - 1))}
                results |= {f"draws/{k}": draw for k, draw in enumerate(drawn)}
            for row, index in enumerate(indices):
                files.add(index, {kind: result[row] for kind, result in results.items()})
    files.clear()
    if not (files.folder / "overview.png").exists():
        _draw(images, files, levels)
    before = len(images) - len(pending)
    print(f"Wrote {len(pending)} restored images to {files.folder}{f', beside {before} of before' if before else ''}")


def _find_scale(trained: "TrainedDenoiser", images: "ImageFiles", limits: list[float] | None) -> "DataScale":
    """How the values of the images become what the network knows as [-1, 1]."""
    from lightning_tweedie.data.scale import DataScale

    if limits is not None:
        scale: DataScale | None = DataScale.declared(limits, images.dtype, "range")
    elif trained.scale is not None:
        scale = DataScale.from_dict(trained.scale).for_dtype(images.dtype)
    else:
        scale = DataScale.natural(images.dtype)
    if scale is None:
        raise UserError(
            f"{images.describe(0)} holds {images.dtype}, and the checkpoint does not say which of its values are to be "
            "[-1, 1]: say it with --range, for example --range [0,4095]"
        )
    images.scale = scale
    return scale


def _check(images: "ImageFiles", scale: "DataScale") -> list[tuple[int, ...]]:
    """Reads every image once, so that what is wrong with one shows before any work.

    Returns:
        The shape of each.
    """
    from tqdm import tqdm

    from lightning_tweedie.noise.sigma import LARGEST_SIGMA

    shapes: list[tuple[int, ...]] = []
    errors: list[UserError] = []
    low, high = float("inf"), -float("inf")
    for index in tqdm(range(len(images)), desc="checking", unit="image"):
        try:
            image = images.raw(index)
        except UserError as error:
            errors.append(error)
            continue
        shapes.append(image.shape)
        low, high = min(low, float(image.min())), max(high, float(image.max()))
    if errors:
        more = f" ({len(errors) - 1} more images are bad too)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}")
    far = (1 + 10 * LARGEST_SIGMA) * scale.unit
    middle = (scale.low + scale.high) / 2
    # Floats that are to be on [-1, 1] and never below the middle are most likely on another scale.
    doubtful = scale.is_natural and images.dtype.kind == "f" and low >= 0
    if doubtful or low < middle - far or high > middle + far:
        raise UserError(
            f"the images have values from {low:.4g} to {high:.4g}, but the network knows [{scale.low:g}, "
            f"{scale.high:g}] as [-1, 1]: say with --range which values of these images are to be that"
        )
    return shapes


def _batches(
    pending: list[int], shapes: list[tuple[int, ...]], tile: tuple[int, ...], batch_size: int
) -> Iterator[list[int]]:
    """Successive images of the same size, at most ``batch_size`` at once; those that are tiled one by one."""
    batch: list[int] = []
    for index in pending:
        size = batch_size if shapes[index] == tile else 1
        if batch and (len(batch) >= size or shapes[index] != shapes[batch[0]]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _stack(images: "ImageFiles", indices: list[int]) -> "Tensor":
    import torch

    return torch.stack([images[index] for index in indices])


def _draw(images: "ImageFiles", files: RestoredFiles, levels: RestorationLevels) -> None:
    """Shows the first images of the size of the very first."""
    import torch

    from lightning_tweedie.pictures import panel, stretch

    first = images.raw(0).shape
    shown = [index for index in range(min(SHOWN, len(images))) if images.raw(index).shape == first]

    def column(results: "list[Tensor]") -> "Tensor":
        top, left = (max(0, (size - SIDE) // 2) for size in first[1:])
        # Of other numbers of channels than grey and colour the first one.
        seen = first[0] if first[0] in (1, 3) else 1
        return torch.stack([x[:seen, top : top + SIDE, left : left + SIDE] for x in results])

    sigma = levels.of(shown, _stack(images, shown)).reshape(len(shown), -1).amax(1)
    noisy = column([images[i] for i in shown])
    columns = [(f"noisy, sigma {float(sigma.max()):.3g}", noisy)]
    columns.append(("one-step estimate", column([files.read("one_step", i) for i in shown])))
    draws = sum(kind.startswith("draws/") for kind in files.kinds)
    if draws:
        columns.append((f"mean of {draws} draws", column([files.read("mean", i) for i in shown])))
        columns.append(("one draw", column([files.read("draws/0", i) for i in shown])))
    columns = [(title, stretch(x, noisy)) for title, x in columns]
    if draws:
        deviations = column([files.read("std", i) for i in shown])
        deviations = deviations.square().mean(1, keepdim=True).sqrt() / sigma.clamp(min=1e-6)[:, None, None, None]
        columns.append(("std (white: sigma)", deviations * 2 - 1))
    write_picture(panel(columns), files.folder / "overview.png")


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie denoise``."""
    call_with(denoise, argv)
