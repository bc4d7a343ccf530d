"""A term of the objective: the mirror image of a datum is as likely as the datum itself."""

import torch
from torch import Tensor

from lightning_tweedie.kernels import perturb
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.preconditioning import edm_weight


class Mirror(Term):
    """``|D(Mx) - M D(x)|^2`` with ``M`` the mirror along the last axis, at the data's own level.

    White noise has no side. If the clean data have none either, the exact denoiser makes this zero; so the term changes
    nothing of what is learnt, but lets each datum teach what its mirror image would.
    """

    name = "mirror"

    def query(self, step: Step) -> Query | None:
        noisy = (step.item_level > 0).nonzero()[: max(1, len(step.x_n) // 8), 0]
        if len(noisy) == 0:
            return None
        sigma = step.item_level[noisy]
        # To one level per item, where the noise differs between pixels.
        x = perturb(step.x_n[noisy], step.sigma_n[noisy], sigma, step.noise)

        def loss(x0: Tensor) -> Tensor:
            plain, mirrored = x0.chunk(2)
            return edm_weight(sigma, step.sigma_data) * (mirrored - plain.flip(-1)).square().flatten(1).mean(1)

        return Query(torch.cat([x, x.flip(-1)]), torch.cat([sigma, sigma]), loss, sigma)
