"""Stein's unbiased risk estimate: the denoiser at the data's own noise level."""

from __future__ import annotations

import torch

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import perturb
from lightning_tweedie.objectives.stable_target import target_weights
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.preconditioning import edm_weight

__all__ = ["Sure"]


class Sure(Term):
    """Learns ``E[x_0 | x_n]`` at ``sigma_n`` itself, from single noisy data.

    The squared error of an estimate of ``x_0`` can be known without ``x_0`` (Stein, 1981): its expectation is that of
    ``|D(x_n) - x_n|^2 - d sigma_n^2 + 2 sigma_n^2 div D(x_n)``. The divergence is estimated from random signs
    ``b`` as ``b . (D(x_n + h b) - D(x_n)) / h`` (Ramani et al., 2008), at the cost of a second point.

    The noise of an item is the same whenever it is seen, so from the second look on an estimate can also be met by
    learning it by heart. Therefore an item counts by its first look in full, and by the k-th at one k-th.

    It says nothing of any other level: denoise with it and train on the result, or add it to ambient score matching,
    which says the least there, and where all that is learnt below ``sigma_n`` begins.

    Args:
        weight: Factor of the term once it is fully on.
        start: Share of the training after which it sets in.
        ramp: Share of the training over which the weight then grows.
        step: ``h``, as a share of ``sigma_n``.
        share: Share of the batch, in (0, 1]. The ambient term gets two items less for each.
        stable: Beside ambient targets that are averaged over the batch, divide by the number of items over which the
            average of a point goes, which is how much more they say: many for points in the plane, one for images.
    """

    name = "sure"

    def __init__(
        self,
        weight: float = 1.0,
        start: float = 0.0,
        ramp: float = 0.0,
        step: float = 0.01,
        share: float = 0.25,
        stable: bool = False,
    ) -> None:
        super().__init__(weight, start, ramp)
        if step <= 0 or not 0 < share <= 1:
            raise UserError(f"Sure needs step > 0 and share in (0, 1], not step = {step}, share = {share}")
        self.step = step
        self.share = share
        self.stable = stable

    def query(self, step: Step) -> Query | None:
        """Noisy items at their own level, and a little beside it."""
        noisy = step.noisy(self.share)
        level = step.item_level[noisy]
        if len(level) == 0:
            return None
        # Noise that differs between pixels is first made equal; otherwise this adds nothing.
        x_n = perturb(step.x_n[noisy], step.sigma_n[noisy], level, step.noise)
        h = (self.step * level).reshape(-1, *[1] * (x_n.ndim - 1))
        direction = step.noise(x_n).sign()
        # This term's own looks at each noisy item so far.
        looks = step.passes * len(level) / (step.item_level > 0).sum()
        scale = edm_weight(level, step.sigma_data) / looks.clamp(min=1)
        if self.stable and step.sigma_n.ndim == 1:
            again = perturb(x_n, 0.0, level, step.noise)
            of_same_level = level[:, None] == step.item_level
            scale = scale * target_weights(again, level**2, step.x_n, of_same_level).square().sum(1).mean().to(scale)

        def loss(x0: torch.Tensor) -> torch.Tensor:
            here, beside = x0.chunk(2)
            divergence = (direction * (beside - here) / h).flatten(1).mean(1)
            residual = (here - x_n).square().flatten(1).mean(1)
            return scale * (residual - level**2 + 2 * level**2 * divergence)

        return Query(torch.cat([x_n, x_n + h * direction]), torch.cat([level, level]), loss, level)
