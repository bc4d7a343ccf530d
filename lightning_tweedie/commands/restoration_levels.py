"""How noisy the images are that a command restores."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_tweedie.checkpoint import TrainedDenoiser

__all__ = ["levels_of"]


def levels_of(
    trained: "TrainedDenoiser", sigma: float | str | None, names: Sequence[str]
) -> Callable[[Sequence[int], "Tensor"], "Tensor"]:
    """Finds the noise level of each image.

    Args:
        trained: The denoiser, whose training data decide where nothing is said.
        sigma: A level, the path of a table, or of a folder of maps.
        names: The images' files.

    Returns:
        A function of the numbers of some images of one size and the images themselves, ``(B, C, H, W)``. It gives their
        levels ``(B,)``, or maps of them ``(B, C, H, W)``.

    Raises:
        UserError: A level is missing or wrong, or there is nothing to restore.
    """
    import torch

    from lightning_tweedie.noise.level_maps import LevelMaps
    from lightning_tweedie.noise.sigma import item_sigmas

    if sigma is None and trained.maps:
        raise UserError(
            "the noise of the training data differed from pixel to pixel, so that no one level can stand for it: give "
            "with --sigma the folder of the maps that belong to these images"
        )
    if trained.correlation is not None:
        default = trained.sigma_n / trained.correlation.largest(trained.shape)
    else:
        default = trained.sigma_n
    levels = item_sigmas(default if sigma is None else sigma, len(names), seed=0, names=names, name="sigma")
    if isinstance(levels, LevelMaps):
        if trained.correlation is not None:
            raise UserError(
                f"sigma = {sigma!r} is a folder of maps, and the checkpoint is about correlated noise: give one level"
            )
        maps = levels
        return lambda indices, images: torch.stack([maps.read(i, images.shape[1:]) for i in indices])
    if not levels.any():
        raise UserError("sigma = 0 leaves nothing to restore: give the noise level of the images with --sigma")
    given = levels
    return lambda indices, images: given[list(indices)]
