"""From a denoiser to images: solvers, full and truncated sampling, posterior restoration."""

from lightning_tweedie.sampling.posterior import one_step, posterior_samples
from lightning_tweedie.sampling.sample import sample
from lightning_tweedie.sampling.samplers import DEIS, Ancestral, DPMSolverPP2M, Euler, Heun, Sampler, SDEDPMSolverPP2M

__all__ = [
    "DEIS",
    "Ancestral",
    "DPMSolverPP2M",
    "Euler",
    "Heun",
    "SDEDPMSolverPP2M",
    "Sampler",
    "one_step",
    "posterior_samples",
    "sample",
]
