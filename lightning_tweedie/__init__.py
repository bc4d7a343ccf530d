"""Diffusion models learnt from noisy data, with PyTorch Lightning.

Importing this package is quick: it loads neither torch nor Lightning. Import what you need from its
modules; everything below ``lightning_tweedie.datamodules`` on the floor plan in
``docs/architecture.md`` is plain PyTorch.
"""

from lightning_tweedie import _torchvision

__version__ = "0.1.0"

_torchvision.watch()
