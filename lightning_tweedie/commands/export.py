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
    num: int = 16,
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
        num: How many samples are drawn for the picture, if the data can be drawn; 0: no picture.
        average: Which weight average, in the order of ema.half_lives: 0 is the first.
        device: Where samples are drawn: auto, cpu, cuda, cuda:1, ...
        allow: Packages whose network classes the checkpoint may use, besides this library: their code is run.

    Raises:
        UserError: A setting or the checkpoint is wrong, or the folder cannot be written.
    """
    if num < 0:
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
    config = {
        "library": f"lightning_tweedie {__version__}",
        **checkpoint[CHECKPOINT_KEY],
        "half_lives": None if trained.half_life is None else [trained.half_life],
        "step": trained.step,
        "data": data,
    }
    with new_folder(Path(out)) as folder:
        shown = num if can_be_drawn(trained.shape) else 0
        if shown:
            _draw(trained, shown, folder / "samples.png")
        write_model_folder(folder, config, trained.denoiser.state_dict())
        card = model_card(PurePath(out).name, trained, checkpoint, data, shown)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"Wrote the model to {out}: complete README.md before you give it away")


def _data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the data module said of itself, by the name of its class; of a file only its name, not its place."""
    found = {}
    for name, state in checkpoint.items():
        if isinstance(state, dict) and isinstance(state.get("noise"), dict):
            sigma = state["noise"].get("sigma")
            told = {"sigma": PurePath(sigma).name} if isinstance(sigma, str) else {}
            found[name] = {**state, "noise": {**state["noise"], **told}}
    return found


def _draw(trained: "TrainedDenoiser", count: int, path: Path) -> None:
    """The first samples that `sample` would make."""
    import math

    import torch
    from tqdm import tqdm

    from lightning_tweedie.pictures import grid, panel, save
    from lightning_tweedie.sampling import sample

    made = []
    with tqdm(total=count, desc="sampling", unit="sample") as bar:
        for start in range(0, count, 4):
            indices = range(start, min(start + 4, count))
            made.append(sample(trained.denoiser, (len(indices), *trained.shape), indices=indices).cpu())
            bar.update(len(indices))
    samples = torch.cat(made)
    points = samples.ndim == 2
    save(panel([("samples", samples)]) if points else grid(samples, math.ceil(math.sqrt(count))), path)


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie export``."""
    call_with(export, argv)
