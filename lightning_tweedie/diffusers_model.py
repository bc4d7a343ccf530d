"""A trained network as a model of Hugging Face's diffusers, for its EDM schedulers.

diffusers' own ``UNet2DModel`` cannot hold :class:`~lightning_tweedie.networks.UNet`: its residual sums are not brought
back to unit variance, all its norms have the same number of groups, and its level embedding is half as wide. So the
network stays what it is, in the clothes of a diffusers model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.serialization import from_config, to_config

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput
except ImportError as error:
    raise ImportError(f"diffusers cannot be imported ({error}): `pip install lightning_tweedie[diffusers]`") from None

__all__ = ["TweedieModel"]


class TweedieModel(ModelMixin, ConfigMixin):
    """The raw network of a denoiser of images, which answers what EDM schedulers of diffusers expect as ``epsilon``.

    They do the preconditioning themselves (2206.00364, table 1), for which they need ``config.sigma_data``:
    ``EDMEulerScheduler(sigma_data=model.config.sigma_data)``.

    Args:
        backbone: The network, ``{"class_path": ..., "init_args": {...}}``, of a class of this library.
        sigma_data: Standard deviation of the clean data, on their scale in [-1, 1].
        sample_size: Side of an image, or its height and width; pipelines of diffusers ask for it.
        in_channels: Channels of an image, and so for the next.
        out_channels: The same.
        num_class_embeds: None: there are no classes.
    """

    @register_to_config
    def __init__(
        self,
        backbone: dict[str, Any],
        sigma_data: float,
        sample_size: int | Sequence[int],
        in_channels: int,
        out_channels: int,
        num_class_embeds: None = None,
    ) -> None:
        super().__init__()
        self.network = from_config(backbone)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **kwargs: Any) -> TweedieModel:
        """Loads what ``lightning_tweedie export`` wrote, through the same door as everything else here.

        Args:
            folder: A local folder, or a checkpoint.
            kwargs: None of diffusers' further options is known.

        Raises:
            UserError: It cannot be loaded, see :func:`~lightning_tweedie.checkpoint.load_denoiser`, or is not about
                images.
        """
        if kwargs:
            raise UserError(f"{', '.join(kwargs)} cannot be given here: load the model and change it, as with .to(...)")
        trained = load_denoiser(folder)
        if len(trained.shape) != 3:
            raise UserError(f"{trained.path!r} is about data of shape {trained.shape}: diffusers is for images")
        channels, height, width = trained.shape
        backbone, size = trained.denoiser.backbone, height if height == width else (height, width)
        model = cls(to_config(backbone), float(trained.denoiser.sigma_data), size, channels, channels)
        model.network.load_state_dict(backbone.state_dict())
        return model.eval().requires_grad_(False)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: :meth:`from_pretrained` has taken the model from the folder that is to be handed on."""
        raise UserError("a TweedieModel is not saved: hand on the folder that it came from")

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """One pass.

        Args:
            sample: Images ``(B, C, H, W)`` from the scheduler's ``scale_model_input``, of unit variance.
            timestep: The scheduler's, ``ln(sigma) / 4``, a number or ``(B,)``.
            class_labels: None: there are no classes.
            return_dict: Whether the answer is an output object of diffusers, or a tuple.
        """
        level = torch.as_tensor(timestep, dtype=sample.dtype, device=sample.device).expand(len(sample))
        answer = self.network(sample, level)
        return UNet2DOutput(sample=answer) if return_dict else (answer,)
