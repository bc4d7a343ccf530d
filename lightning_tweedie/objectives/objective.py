"""The objective: a sum of terms, evaluated with one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import DenoiserLike
from lightning_tweedie.objectives.ambient import AmbientScoreMatching
from lightning_tweedie.objectives.consistency import Consistency
from lightning_tweedie.objectives.replay import PosteriorReplay
from lightning_tweedie.objectives.score_matching import ScoreMatching
from lightning_tweedie.objectives.term import Query, Step, Term

__all__ = ["Losses", "Objective"]


@dataclass
class Losses:
    """What a training step yields.

    Attributes:
        total: The weighted sum, a scalar with gradient.
        terms: Unweighted mean of each term, scalars without gradient.
        per_item: For each term the levels ``(K,)`` and the losses ``(K,)`` of its items, without gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]
    per_item: dict[str, tuple[Tensor, Tensor]]


class Objective(nn.Module):
    """Ambient score matching above the noise level and, optionally, terms that learn the levels below it.

    Terms share the batch: the first one learns from the items that the others leave, counted by the points at which
    they need the denoiser with gradient, though never from less than a quarter. So a step costs one batch through
    the network, whatever the objective, and what the teacher does comes on top.

    Args:
        ambient: Fixes the levels above ``sigma_n``; a :class:`ScoreMatching` here is the naive control.
        consistency: Two-draw consistency, if any.
        replay: Posterior replay, if any.
        extra: Further terms: :class:`~lightning_tweedie.objectives.sure.Sure`, or some of your own.

    Raises:
        UserError: Two terms have the same name.
    """

    def __init__(
        self,
        ambient: AmbientScoreMatching | ScoreMatching | None = None,
        consistency: Consistency | None = None,
        replay: PosteriorReplay | None = None,
        extra: list[Term] | None = None,
    ) -> None:
        super().__init__()
        chosen = (AmbientScoreMatching() if ambient is None else ambient, consistency, replay, *(extra or []))
        self.terms = nn.ModuleDict()
        for term in chosen:
            if term is None:
                continue
            if term.name in self.terms:
                raise UserError(f"the objective has two terms named {term.name}: keep one, or rename one of your own")
            self.terms[term.name] = term

    @property
    def sigma_max(self) -> float:
        """Largest training level."""
        first = next(iter(self.terms.values()))
        assert isinstance(first, AmbientScoreMatching | ScoreMatching)
        return first.levels.sigma_max

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
        """Evaluates every term that is switched on.

        Args:
            denoiser: The network being trained.
            x_n: Noisy data ``(B, *shape)``.
            sigma_n: Their noise level on the scale of the data, ``(B,)`` or ``(B, *shape)``.
            correlation: That of the noise, where it is stationary and not white.
            teacher: Denoiser for draws without gradient, usually the EMA's; ``denoiser`` when absent.
            progress: Share of the training that is done, in [0, 1]; decides which terms are on.
            passes: How often the training has seen each item so far, on average; 0 where that is not known.
            generator: Source of the step's random numbers, on the data's device; torch's global state
                when absent.
            least: A number that no item's level is below, if one is known without asking the data's device.

        Returns:
            The losses; call ``losses.total.backward()``.
        """
        if not denoiser.has_sigma_data:
            raise UserError(
                "the denoiser does not know sigma_data, the standard deviation of the clean data: give "
                "Denoiser(..., sigma_data=...) or train with a data module that estimates it"
            )
        asked: DenoiserLike = denoiser
        drawing: DenoiserLike = denoiser if teacher is None else teacher
        if correlation is not None:
            x_n, sigma_n = correlation.hartley(x_n), correlation.levels(sigma_n, x_n)
            asked, drawing = correlation.around(asked), correlation.around(drawing)
        step = Step(x_n, sigma_n, drawing, denoiser.sigma_data, generator, progress, passes, least=least)
        queries: list[tuple[str, float, Query]] = []
        first, *others = self.terms
        for name in (*others, first):
            term = self.terms[name]
            assert isinstance(term, Term)
            weight = term.weight_at(progress)
            if name == first:
                left = max(len(x_n) - sum(len(query.x) for _, _, query in queries), -(-len(x_n) // 4))
                # Not those of the others, which begin at the other end.
                step = replace(step, x_n=x_n.flip(0), sigma_n=sigma_n.flip(0), room=left)
            if weight > 0 and (query := term.query(step)) is not None:
                queries.append((name, weight, query))

        answers = asked(torch.cat([q.x for _, _, q in queries]), torch.cat([q.sigma for _, _, q in queries]))
        total = answers.new_zeros(())
        terms, per_item = {}, {}
        for (name, weight, query), x0 in zip(queries, answers.split([len(q.x) for _, _, q in queries]), strict=True):
            losses = query.loss(x0)
            total = total + weight * losses.mean()
            terms[name] = losses.detach().mean()
            per_item[name] = (query.level, losses.detach())
        return Losses(total, terms, per_item)
