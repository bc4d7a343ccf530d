"""Backbones: raw networks that a Denoiser preconditions."""

from lightning_tweedie.networks.mlp import MLP
from lightning_tweedie.networks.unet import UNet

__all__ = ["MLP", "UNet"]
