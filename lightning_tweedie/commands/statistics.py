"""`statistics`: the features of reference images, computed once and kept."""

from collections.abc import Sequence
from pathlib import Path

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.process_group import joined, told_once
from lightning_tweedie.errors import UserError

__all__ = ["main", "statistics"]


def statistics(
    images: str,
    out: str,
    extractor: str = "inception",
    num: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Computes the features of reference images and keeps them in one file for `evaluate --reference`.

    The file holds the features, their mean and covariance, and what they depend on: how many images, a digest of their
    pixels, the extractor with its digest, the resize and the dtype. `evaluate` refuses it where these do not fit.
    Started with torchrun, several processes share the work.

    Args:
        images: Clean images: a folder, an archive or an .npz; or the YAML file of a data module or a run, whose clean
            training images are taken.
        out: The file, for example stats.npz.
        extractor: Network of the features: inception, efficientnet-lite0, efficientnet-lite0-<resolution>, the path of
            a TorchScript file or the import path of a module.
        num: How many of the images, chosen by the seed; all when left out.
        seed: Decides which.
        batch_size: Images in one pass; changes the memory needed, not the results.
        device: auto, cpu, cuda, cuda:1, ...

    Raises:
        UserError: A setting, an image or a file is wrong.
    """
    if batch_size < 1 or (num is not None and num < 2):
        raise UserError(f"batch_size = {batch_size} must be at least 1 and num = {num} at least 2")
    path = Path(out).expanduser()
    if path.suffix != ".npz":
        raise UserError(f"out = {out!r} is to be a file of arrays: give a path that ends in .npz, such as stats.npz")
    if path.exists():
        raise UserError(f"{out!r} exists already and nothing is overwritten: set --out to another file")
    with joined(device) as (processes, chosen):
        from lightning_tweedie.commands.evaluation_data import find_extractor, open_data_module, open_reference
        from lightning_tweedie.evaluation.extraction import reference_statistics

        described = images.endswith((".yaml", ".yml"))
        data = open_data_module(images, processes, "images") if described else None
        with processes.together():
            reference = open_reference(None if described else images, data, num, seed, ("images", "num"))
            if reference.images is None:
                raise UserError(f"images = {images!r} holds statistics already: give images")
        network = find_extractor(extractor, processes)
        result = reference_statistics(
            reference.images,
            network,
            indices=reference.indices,
            batch_size=batch_size,
            device=chosen,
            processes=processes,
            progress="features",
        )
        with processes.together():
            if processes.is_first:
                result.save(path)
                print(f"Wrote the features of {result.n} images, {network.name}, to {out}")


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie statistics``."""
    with told_once():
        call_with(statistics, argv)
