"""How far one reverse step with the estimate plugged in is from a martingale: the table in docs/mathematics.md."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_tweedie.kernels import reverse_step
from lightning_tweedie.oracles import MixtureOracle

PAGE = (Path(__file__).resolve().parent.parent / "docs/mathematics.md").read_text()


def table() -> list[tuple[float, str]]:
    ratios, errors = (
        re.findall(r"[\d.]+", re.search(rf"^\| {name} \|(.*)$", PAGE, re.MULTILINE)[1])
        for name in (re.escape(r"$\sigma_s / \sigma_t$"), "off by")
    )
    return list(zip(map(float, ratios), errors, strict=True))


@pytest.mark.parametrize(("ratio", "printed"), table())
def test_the_table_of_the_mathematics_page(ratio: float, printed: str) -> None:
    oracle = MixtureOracle(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.tensor([0.1, 0.1]))
    # The law of x_t at sigma_t = 1 on a grid, and Gauss-Hermite nodes for the fresh noise: no Monte Carlo.
    x_t = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]
    density = sum(torch.exp(-((x_t - mode) ** 2) / (2 * (1 + 0.1**2))) for mode in (-1, 1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    here = oracle(x_t, 1.0)
    ahead = torch.zeros_like(here)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        x_s = reverse_step(x_t, here, 1.0, ratio, lambda x, node=node: torch.full_like(x, node))
        ahead += weight * oracle(x_s, ratio)
    off = float((density * (ahead - here) ** 2).sum() / density.sum()) ** 0.5
    assert f"{off:.{len(printed) - 2}f}" == printed
