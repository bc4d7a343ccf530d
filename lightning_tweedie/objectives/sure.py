"""Stein's unbiased risk estimate: the denoiser at the data's own noise level."""

from __future__ import annotations

import torch

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import perturb
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.preconditioning import edm_weight

__all__ = ["Sure"]


class Sure(Term):
    """Learns ``E[x_0 | x_n]`` at ``sigma_n`` itself, from single noisy data.

    The squared error of an estimate of ``x_0`` can be known without ``x_0`` (Stein, 1981): its expectation is that of
    ``|D(x_n) - x_n|^2 - d sigma_n^2 + 2 sigma_n^2 div D(x_n)``. The divergence is estimated from one random direction
    ``b`` as ``b . (D(x_n + h b) - D(x_n)) / h`` (Ramani et al., 2008), at the cost of a second point.

    It says nothing of any other level: denoise with it and train on the result, or add it to ambient score matching,
    which has no weight at ``sigma_n``.

    Args:
        weight: Factor of the term once it is fully on.
        start: Share of the training after which it sets in.
        ramp: Share of the training over which the weight then grows.
        step: ``h``, as a share of ``sigma_n``.
    """

    name = "sure"

    def __init__(self, weight: float = 1.0, start: float = 0.0, ramp: float = 0.0, step: float = 0.01) -> None:
        super().__init__(weight, start, ramp)
        if step <= 0:
            raise UserError(f"Sure needs step > 0, not {step}")
        self.step = step

    def query(self, step: Step) -> Query | None:
        """Every noisy item at its own level, and a little beside it."""
        noisy = (step.item_level > 0).nonzero()[:, 0]
        if len(noisy) == 0:
            return None
        level = step.item_level[noisy]
        # Noise that differs between pixels is first made equal; otherwise this adds nothing.
        x_n = perturb(step.x_n[noisy], step.sigma_n[noisy], level, step.noise)
        h = (self.step * level).reshape(-1, *[1] * (x_n.ndim - 1))
        direction = step.noise(x_n)

        def loss(x0: torch.Tensor) -> torch.Tensor:
            here, beside = x0.chunk(2)
            divergence = (direction * (beside - here) / h).flatten(1).mean(1)
            residual = (here - x_n).square().flatten(1).mean(1)
            return edm_weight(level, step.sigma_data) * (residual - level**2 + 2 * level**2 * divergence)

        return Query(torch.cat([x_n, x_n + h * direction]), torch.cat([level, level]), loss, level)
