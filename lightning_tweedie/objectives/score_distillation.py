"""Score distillation: a generator of one step from a teacher that knows the levels above the noise."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import perturb
from lightning_tweedie.levels import LevelDistribution, LogUniform
from lightning_tweedie.objectives.objective import Losses, Objective
from lightning_tweedie.objectives.stable_target import stable_target
from lightning_tweedie.objectives.term import Step
from lightning_tweedie.preconditioning import edm_weight

__all__ = ["ScoreDistillation"]


class ScoreDistillation(Objective):
    """Teaches a generator ``x_g = G(sigma_init z, sigma_init)`` the law of the clean data.

    The denoiser being trained is the generator. Its samples, raised to ``sigma_t``, must be distributed as data at that
    level. ``E[x_0 | x_t]`` of the data is the teacher's answer ``T``; ``E[x_g | x_t]`` of the samples is learnt beside
    the generator by ``fake``, ``F``, with ordinary score matching. A sample is moved by their difference, weighed like
    the denoisers' own losses: the gradient is that of ``<x_g, lambda(sigma_t) (F(x_t) - T(x_t))>`` with the right side
    held fixed, which descends the Kullback-Leibler divergence of the noisy laws (2305.18455; from teachers of noisy
    data 2503.07578). It vanishes where both agree, and two laws that agree with noise of one
    level agree without noise. So no level up to ``sigma_n`` is asked for, and ambient score matching is enough of a
    teacher.

    Args:
        teacher: The denoiser to learn from, exact above ``sigma_n``. It is copied and never changed.
        sigma_init: Level at which the generator is evaluated, ``> 0``, on the scale of the data.
        levels: Distribution of ``sigma_t``, truncated above each item's ``sigma_n``; log-uniform up to 5 when absent.
        stable: Let the fake regress onto the mean of the batch's samples that could have led to a point (2302.00670):
            less noise in the gradient where data have few dimensions.

    Raises:
        UserError: ``sigma_init`` is not positive.
    """

    def __init__(
        self,
        teacher: Denoiser,
        sigma_init: float = 2.5,
        levels: LevelDistribution | None = None,
        stable: bool = False,
    ) -> None:
        super().__init__()
        if not sigma_init > 0:
            raise UserError(
                f"sigma_init = {sigma_init:g} must be a positive number, the level of the noise that the generator "
                "turns into a sample: try 2.5"
            )
        # Its two losses take the place of terms.
        self.terms = nn.ModuleDict()
        # Neither drops units: the teacher because it is one, the fake because it must be right about it.
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.fake = copy.deepcopy(teacher).eval().requires_grad_(True)
        self.sigma_init = sigma_init
        self.levels = LogUniform(0.002, 5.0) if levels is None else levels
        self.stable = stable

    @property
    def sigma_max(self) -> float:
        """Largest level at which teacher and fake are compared."""
        return self.levels.sigma_max

    def forward(
        self,
        denoiser: Denoiser,
        x_n: Tensor,
        sigma_n: Tensor,
        *,
        correlation: Correlation | None = None,
        teacher: nn.Module | None = None,
        progress: float = 1.0,
        passes: float = 0.0,
        generator: torch.Generator | None = None,
        least: float = 0.0,
    ) -> Losses:
        """Both losses, on as many samples as there are items.

        Args:
            denoiser: The generator.
            x_n: Noisy data ``(B, *shape)``, of which only the shape is used.
            sigma_n: Their noise level on the scale of the data, ``(B,)`` or ``(B, *shape)``.
            correlation: That of the noise: samples are compared at levels that cover it.
            teacher: Not used: the teacher is the one given at the start.
            progress: Not used: nothing waits.
            passes: Not used: the items are not looked at.
            generator: Source of the step's random numbers, on the data's device; torch's global state when absent.
            least: Not used: clean items are treated as noisy ones.

        Returns:
            The losses. ``fake`` is that of its score matching and ``distance`` the mean of
            ``lambda(sigma_t) |F(x_t) - T(x_t)|^2``, by which to watch the generator: its own loss has a gradient but
            no meaning. Each network is reached by the gradient of its own loss alone.
        """
        if correlation is not None:
            sigma_n = correlation.levels(sigma_n, x_n)
        step = Step(x_n, sigma_n, self.teacher, self.teacher.sigma_data, generator)
        x_g = denoiser(self.sigma_init * step.noise(x_n), torch.full_like(step.item_level, self.sigma_init))
        made = x_g.detach()
        sigma_t = self.levels.sample(step.item_level, generator=generator)
        x_t = perturb(made, 0.0, sigma_t, step.noise)
        own = self.fake(x_t, sigma_t)
        with torch.no_grad():
            gap = own - self.teacher(x_t, sigma_t)
        target = made
        if self.stable:
            any_of_them = torch.ones(len(made), len(made), dtype=torch.bool, device=made.device)
            target = stable_target(x_t, sigma_t**2, made, any_of_them)
        weight = edm_weight(sigma_t, step.sigma_data)

        def mean(error: Tensor) -> Tensor:
            return weight * error.flatten(1).mean(1)

        fake = mean((own - target).square())
        per_item = {"fake": fake.detach(), "distance": mean(gap.square())}
        return Losses(
            fake.mean() + mean(gap * x_g).mean(),
            {name: loss.mean() for name, loss in per_item.items()},
            {name: (sigma_t, loss) for name, loss in per_item.items()},
        )
