"""How noisy the images are that a command restores."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_tweedie.checkpoint import TrainedDenoiser

__all__ = ["RestorationLevels"]


class RestorationLevels:
    """The noise level of each image.

    Args:
        trained: The denoiser, whose training data decide where nothing is said.
        sigma: A level, the path of a table or of a folder of maps, or a function as ``module.function``.
        names: The images' files.
        unit: How much one unit of the scale [-1, 1] is in the units of ``sigma``.

    Raises:
        UserError: A level is missing or wrong, or there is nothing to restore.
    """

    def __init__(
        self, trained: "TrainedDenoiser", sigma: float | str | None, names: Sequence[str], unit: float = 1.0
    ) -> None:
        from lightning_tweedie.noise.level_maps import LevelMaps
        from lightning_tweedie.noise.sigma import item_sigmas

        if sigma is None and trained.maps:
            raise UserError(
                "the noise of the training data differed from pixel to pixel, so that no one level can stand for it: "
                "give with --sigma the folder of the maps that belong to these images"
            )
        if sigma is None:
            # The training's own, which is on the scale of [-1, 1].
            sigma, unit = trained.sigma_n, 1.0
            if trained.correlation is not None:
                sigma /= trained.correlation.largest(trained.shape)
        self._levels = item_sigmas(sigma, len(names), seed=0, names=names, name="sigma", unit=unit)
        if isinstance(self._levels, LevelMaps):
            if trained.correlation is not None:
                raise UserError(
                    f"sigma = {sigma!r} is a folder of maps, and the checkpoint is about correlated noise: give one "
                    "level"
                )
        elif not self._levels.any():
            raise UserError("sigma = 0 leaves nothing to restore: give the noise level of the images with --sigma")
        #: What results depend on, in plain types: the one level, or of many of them a digest, or the maps' folder.
        self.told: float | str
        if isinstance(sigma, (int, float)):
            self.told = sigma / unit
        elif isinstance(self._levels, LevelMaps):
            self.told = sigma
        else:
            self.told = "a table, " + hashlib.sha256(self._levels.numpy().tobytes()).hexdigest()[:16]

    def of(self, indices: Sequence[int], images: "Tensor") -> "Tensor":
        """The levels of some images.

        Args:
            indices: Their numbers.
            images: The images, ``(B, C, H, W)``.

        Returns:
            Levels ``(B,)``, or maps of them ``(B, C, H, W)``, on the scale of [-1, 1].

        Raises:
            UserError: A map is wrong.
        """
        import torch

        from lightning_tweedie.noise.level_maps import LevelMaps

        if isinstance(self._levels, LevelMaps):
            return torch.stack([self._levels.read(index, images.shape[1:]) for index in indices])
        return self._levels[list(indices)]
