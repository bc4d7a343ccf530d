"""`export`: a model to give away, from a checkpoint alone."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.output import choose_device
from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from lightning_tweedie.checkpoint import TrainedDenoiser

__all__ = ["export", "main"]


def export(
    ckpt_path: str,
    out: str,
    num: int | None = None,
    average: int = 0,
    device: str = "auto",
    allow: list[str] | None = None,
) -> None:
    """Makes a folder of a checkpoint, to give away: one weight average, and what is needed to use it.

    Writes the weights (model.safetensors), the description of the network and its data (config.json), a model card to
    complete (README.md) and a few samples (samples.png). `sample`, `denoise` and `evaluate` take the folder like a
    checkpoint.

    Args:
        ckpt_path: The checkpoint.
        out: The folder; there must be nothing of that name yet, or an empty folder.
        num: How many samples are drawn for the picture, if the data can be drawn: 16 images or 1000 points when left
            out; 0: no picture.
        average: Which weight average, in the order of ema.half_lives: 0 is the first.
        device: Where samples are drawn: auto, cpu, cuda, cuda:1, ...
        allow: Packages whose network classes the checkpoint may use, besides this library: their code is run.

    Raises:
        UserError: A setting or the checkpoint is wrong, or the folder cannot be written.
    """
    if num is not None and num < 0:
        raise UserError(f"num = {num} is negative: give the number of samples to draw, or 0")
    from lightning_tweedie import __version__
    from lightning_tweedie.checkpoint import CHECKPOINT_KEY, load_denoiser, read_checkpoint
    from lightning_tweedie.commands.model_card import model_card
    from lightning_tweedie.files import new_folder
    from lightning_tweedie.model_folder import write_model_folder
    from lightning_tweedie.pictures import can_be_drawn

    checkpoint = read_checkpoint(ckpt_path)
    trained = load_denoiser(ckpt_path, allow or [], choose_device(device), average)
    data = _data(checkpoint)
    sigma_init = checkpoint.get("hyper_parameters", {}).get("sigma_init")  # of a DistillationModule
    config = {
        "library": f"lightning_tweedie {__version__}",
        **checkpoint[CHECKPOINT_KEY],
        "half_lives": None if trained.half_life is None else [trained.half_life],
        "step": trained.step,
        "data": data,
    }
    with new_folder(Path(out)) as folder:
        usual = 16 if len(trained.shape) == 3 else 1000
        shown = 0 if not can_be_drawn(trained.shape) else usual if num is None else num
        if shown:
            _draw(trained, sigma_init, shown, folder / "samples.png")
        write_model_folder(folder, config, trained.denoiser.state_dict())
        card = model_card(Path(out).absolute().name, trained, checkpoint, data, shown, sigma_init)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"Wrote the model to {out}: complete README.md before you give it away")


def _data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the data module said of itself, by the name of its class; of a file only its name, not its place."""
    found = {}
    for name, state in checkpoint.items():
        if isinstance(state, dict) and isinstance(state.get("noise"), dict):
            files = {key: state["noise"].get(key) for key in ("sigma", "correlation")}
            told = {key: PurePath(path).name for key, path in files.items() if isinstance(path, str)}
            found[name] = {**state, "noise": {**state["noise"], **told}}
    return found


def _draw(trained: "TrainedDenoiser", sigma_init: float | None, count: int, path: Path) -> None:
    """The first samples that `sample` would make; of a distilled generator in one step from ``sigma_init``."""
    import math

    import torch
    from tqdm import tqdm

    from lightning_tweedie.pictures import grid, panel, save
    from lightning_tweedie.sampling import Heun, sample

    sampler = Heun() if sigma_init is None else Heun(steps=1, sigma_max=sigma_init)
    points = len(trained.shape) == 1
    made, size = [], 1000 if points else 4
    with tqdm(total=count, desc="sampling", unit="sample") as bar:
        for start in range(0, count, size):
            indices = range(start, min(start + size, count))
            made.append(sample(trained.denoiser, (len(indices), *trained.shape), sampler, indices=indices).cpu())
            bar.update(len(indices))
    samples = torch.cat(made)
    save(panel([("samples", samples)]) if points else grid(samples, math.ceil(math.sqrt(count))), path)


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie export``."""
    call_with(export, argv)
