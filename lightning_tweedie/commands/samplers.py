"""Solvers by the names that the command line knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning_tweedie.sampling import Sampler

__all__ = ["SamplerName", "make_sampler"]

SamplerName = Literal["heun", "euler", "dpmsolver++", "deis", "ancestral", "sde-dpmsolver++"]


def make_sampler(name: SamplerName, steps: int, sigma_max: float = 80.0) -> Sampler:
    """The solver of that name with so many noise levels from ``sigma_max`` down."""
    from lightning_tweedie.sampling import DEIS, Ancestral, DPMSolverPP2M, Euler, Heun, SDEDPMSolverPP2M

    solvers: dict[SamplerName, type[Sampler]] = {
        "heun": Heun,
        "euler": Euler,
        "dpmsolver++": DPMSolverPP2M,
        "deis": DEIS,
        "ancestral": Ancestral,
        "sde-dpmsolver++": SDEDPMSolverPP2M,
    }
    return solvers[name](steps=steps, sigma_max=sigma_max)
