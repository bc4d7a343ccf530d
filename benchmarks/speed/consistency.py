"""The consistency term as published against ours, at equal pairs.

As published (2302.09057, 2404.10177) the term is a computation of its own beside ambient score matching: the denoiser
is asked once more at ``x_t``, with gradient; each of the two draws ``x_s`` begins with an answer of its own; and each
is put through the network by itself. Ours asks the teacher once at ``x_t``, for the target and for both draws, and puts
both draws and the ambient points through the network in one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from objectives import SIGMA_N, make_denoiser
from pairs import Row, alternate, device, ratios
from torch import Tensor

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.kernels import perturb, reverse_chain
from lightning_tweedie.levels import edm_levels
from lightning_tweedie.objectives import AmbientScoreMatching, Consistency, Objective
from lightning_tweedie.objectives.term import Step
from lightning_tweedie.preconditioning import edm_weight

__all__ = ["published_loss", "rows"]


def published_loss(
    denoiser: Denoiser, teacher: Denoiser, ambient: AmbientScoreMatching, term: Consistency, step: Step, pairs: int
) -> Tensor:
    """Ambient score matching on all items for which there is room, and consistency on the first ones.

    Args:
        denoiser: What is trained.
        teacher: Makes the draws.
        ambient: First term.
        term: Settings of the second: levels, chain, jump and weight.
        step: The data.
        pairs: Number of points ``x_t`` with two draws each.
    """
    query = ambient.query(step)
    loss = query.loss(denoiser(query.x, query.sigma)).mean()

    level_n = step.item_level[:pairs]
    sigma_s = term.levels.sample(
        torch.full_like(level_n, term.levels.sigma_min), upper=level_n, generator=step.generator
    )
    sigma_t = sigma_s / term.jump
    first = level_n.maximum(sigma_t)
    x = perturb(step.x_n[:pairs], level_n, first, step.noise)
    x_t = reverse_chain(teacher, x, edm_levels(term.chain + 1, sigma_t, first), step.noise)
    x0_t = denoiser(x_t, sigma_t)
    differences = []
    for _ in range(2):
        x_s = reverse_chain(teacher, x_t, edm_levels(2, sigma_s, sigma_t), step.noise)
        differences.append(denoiser(x_s, sigma_s) - x0_t)
    product = (differences[0] * differences[1]).flatten(1).mean(1)
    return loss + term.weight * (edm_weight(sigma_s, step.sigma_data) * product).mean()


class Counted:
    """Counts the points at which networks are asked."""

    def __init__(self) -> None:
        self.points = {"with_gradient": 0, "without": 0}
        self.passes = 0

    @contextmanager
    def asked(self, *denoisers: Denoiser) -> Iterator[None]:
        """While this lasts."""

        def count(_: object, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
            self.points["with_gradient" if answer.requires_grad else "without"] += len(inputs[0])
            self.passes += 1

        handles = [denoiser.register_forward_hook(count) for denoiser in denoisers]
        yield
        for handle in handles:
            handle.remove()


def _step(denoiser: Denoiser, loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.Adam(denoiser.parameters(), fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rows(quick: bool = False) -> list[Row]:
    """At equal pairs and ambient points, and at equal pairs in whole steps of one batch."""
    batch, pairs = (8, 2) if quick else (64, 16)
    denoiser = make_denoiser(quick)
    teacher = copy.deepcopy(denoiser).eval().requires_grad_(False)
    x_n = 0.5 * torch.randn(batch, 1, 28, 28, device=device())
    sigma_n = torch.full((batch,), SIGMA_N, device=device())
    generator = torch.Generator(device()).manual_seed(0)
    term = Consistency(weight=0.3, start=0.0, ramp=0.0, share=pairs / batch, origin="x_n", chain=2)
    ambient = AmbientScoreMatching()
    objective = Objective(ambient, term)

    def published(room: int) -> Callable[[], Tensor]:
        step = Step(x_n, sigma_n, teacher, denoiser.sigma_data, generator, room=room)
        return lambda: published_loss(denoiser, teacher, ambient, term, step, pairs)

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: objective(denoiser, x_n, sigma_n, teacher=teacher, generator=generator).total,
        "as published, equal ambient points": published(batch - 2 * pairs),
        "as published, a batch of its own": published(batch),
    }
    counts: dict[str, dict[str, int]] = {}
    for name, loss in ways.items():
        counted = Counted()
        with counted.asked(denoiser, teacher):
            loss()
        counts[name] = {**counted.points, "passes": counted.passes}
    options = dict(pairs=1, seconds=0.0, warmup=1) if quick else dict(pairs=9, seconds=1.0, warmup=2)
    times = alternate({name: _step(denoiser, loss) for name, loss in ways.items()}, **options)  # type: ignore[arg-type]
    found = []
    for against in list(ways)[1:]:
        details = {"batch": batch, "x_t": pairs, **counts["ours"]}
        details |= {f"{key}_against": value for key, value in counts[against].items()}
        both = {name: times[name] for name in ("ours", against)}
        found += ratios("consistency", both, against, "steps/s", faster=True, details={"ours": details})
    return found
