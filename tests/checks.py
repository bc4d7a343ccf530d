"""What tests share; above all assertions about laws, with tolerances from standard errors, never from taste."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Z = 5.0
"""Standard errors that a correct mean may be off: by chance once in two million times."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def awake(network: nn.Module) -> nn.Module:
    """Branches that start at zero are given small random weights, so that they take part."""
    source = generator()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=source))
    return network


def assert_mean(draws: Tensor, expected: Tensor | float) -> None:
    """Independent draws ``(N, ...)`` have the expected mean ``(...)``."""
    standard_error = draws.std(0) / len(draws) ** 0.5
    off = (draws.mean(0) - expected).abs() / standard_error
    assert off.max() < Z, (
        f"mean {draws.mean(0)} +- {standard_error} is not {expected}: {off.max():.1f} standard errors off"
    )


def assert_law(draws: Tensor, mean: Tensor, cov: Tensor) -> None:
    """Independent draws ``(N, D)`` have the expected mean and covariance."""
    assert_mean(draws, mean)
    centred = draws - mean
    assert_mean(centred[:, :, None] * centred[:, None, :], cov)


class Exact(nn.Module):
    """A known denoiser in the clothes of a learnt one, plus, on demand, a known error."""

    has_sigma_data = True

    def __init__(self, denoise: Callable[[Tensor, Tensor], Tensor], sigma_data: float = 0.5) -> None:
        super().__init__()
        self.denoise = denoise
        self.register_buffer("sigma_data", torch.tensor(sigma_data, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoise(x, sigma)
