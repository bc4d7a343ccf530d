"""Exact denoisers of known distributions, at every noise level.

They say what a trained network should have learnt: in the tests, in the benchmarks (excess risk by
level) and in the docs. Each is called like a denoiser, ``oracle(x, sigma)``, and can be sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EmpiricalOracle", "GaussianOracle", "MixtureOracle"]


class GaussianOracle:
    """Clean data ``N(mean, cov)``: ``D(x) = m + C (C + sigma^2 I)^-1 (x - m)``.

    Args:
        mean: ``(D,)``.
        cov: Symmetric, positive semi-definite, ``(D, D)``.
    """

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.mean = mean
        self.variances, self.axes = torch.linalg.eigh(cov)
        self.variances = self.variances.clamp(min=0)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """``E[x_0 | x]`` for ``x`` of shape ``(B, D)`` at levels ``sigma``, a number or ``(B,)``."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
        gain = self.variances / (self.variances + sigma**2)
        return self.mean + ((x - self.mean) @ self.axes * gain) @ self.axes.T

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` clean draws, ``(n, D)``."""
        z = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + (z * self.variances.sqrt()) @ self.axes.T


class MixtureOracle:
    """Clean data from a mixture of isotropic Gaussians.

    The posterior over components is a softmax of log-densities at variance ``s_k^2 + sigma^2``; each
    component then shrinks towards its own mean.

    Args:
        means: ``(K, *shape)``.
        stds: Standard deviation of each component, ``(K,)``, ``>= 0``.
        weights: Probability of each component, ``(K,)``; equal when absent.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        self.shape = means.shape[1:]
        self.means = means.flatten(1)
        self.stds = stds.to(means.dtype)
        weights = torch.ones(len(means), dtype=means.dtype) if weights is None else weights.to(means.dtype)
        self.weights = weights / weights.sum()

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """``E[x_0 | x]`` for ``x`` of shape ``(B, *shape)`` at levels ``sigma``, a number or ``(B,)``."""
        flat = x.flatten(1)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
        variance = self.stds**2 + sigma**2
        log_density = (
            self.weights.log()
            - 0.5 * torch.cdist(flat, self.means, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / variance
            - 0.5 * flat.shape[1] * variance.log()
        )
        responsibility = log_density.softmax(dim=1)
        gain = self.stds**2 / variance
        shrunk = (responsibility * gain).sum(1, keepdim=True) * flat + (responsibility * (1 - gain)) @ self.means
        return shrunk.reshape(x.shape)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` clean draws, ``(n, *shape)``."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return (self.means[k] + self.stds[k, None] * z).reshape(n, *self.shape)


class EmpiricalOracle(MixtureOracle):
    """Clean data uniform on a finite set: the denoiser that has memorised its training set.

    Args:
        data: The set, ``(N, *shape)``.
    """

    def __init__(self, data: Tensor) -> None:
        super().__init__(data, torch.zeros(len(data), dtype=data.dtype))
