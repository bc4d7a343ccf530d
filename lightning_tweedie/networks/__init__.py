"""Backbones: raw networks that a Denoiser preconditions."""

from lightning_tweedie.networks.dit import DiT
from lightning_tweedie.networks.mlp import MLP
from lightning_tweedie.networks.unet import UNet

__all__ = ["DiT", "MLP", "UNet"]
