"""EDM's preconditioning, and the denoiser around a raw network."""

import pytest
import torch
from checks import assert_mean, awake, generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.networks import MLP
from lightning_tweedie.preconditioning import edm_preconditioning, edm_weight

positive = st.floats(0.01, 50.0)


class Silent(nn.Module):
    """A network that says nothing, and remembers what it heard."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.heard = x, c_noise
        return torch.zeros_like(x)


@given(sigma=positive, sigma_data=positive)
def test_a_silent_network_gives_the_best_linear_estimate(sigma, sigma_data):
    """``c_skip`` is the gain of a Gaussian with the data's spread, ``c_out^2`` the error that gain leaves."""
    c = edm_preconditioning(torch.tensor(sigma, dtype=torch.float64), sigma_data)
    gain = sigma_data**2 / (sigma_data**2 + sigma**2)
    error = (1 - gain) ** 2 * sigma_data**2 + gain**2 * sigma**2
    assert c.c_skip.item() == pytest.approx(gain)
    assert c.c_out.item() ** 2 == pytest.approx(error)
    assert c.c_in.item() ** 2 * (sigma_data**2 + sigma**2) == pytest.approx(1)
    assert edm_weight(torch.tensor(sigma, dtype=torch.float64), sigma_data).item() * error == pytest.approx(1)


def test_the_network_hears_unit_variance_and_its_target_has_it():
    n, sigma_data = 20_000, 0.3
    x0 = sigma_data * torch.randn(n, 1, generator=generator(), dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.3, 5.0]).double().repeat_interleave(n)
    x0 = x0.repeat(3, 1)
    x = x0 + sigma[:, None] * torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
    denoiser = Denoiser(Silent().double(), sigma_data).double()
    c = edm_preconditioning(sigma[:, None], sigma_data)
    target = (x0 - denoiser(x, sigma)) / c.c_out
    heard, c_noise = denoiser.backbone.heard
    torch.testing.assert_close(c_noise, sigma.log() / 4)
    for level in range(3):
        rows = slice(level * n, (level + 1) * n)
        assert_mean(heard[rows] ** 2, 1.0)
        assert_mean(target[rows] ** 2, 1.0)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 4, 4), (1, 2, 3, 4)], ids=["vector", "signal", "image", "volume"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_rank_and_either_precision(shape, dtype):
    x = torch.randn(2, *shape, dtype=dtype, generator=generator())
    denoiser = Denoiser(Silent(), sigma_data=1.0)
    at_levels = denoiser(x, torch.tensor([1.0, 3.0]))
    assert at_levels.dtype == dtype
    torch.testing.assert_close(at_levels, torch.stack([x[0] / 2, x[1] / 10]))
    torch.testing.assert_close(denoiser(x, 3.0), x / 10)


def test_autocast_reaches_the_backbone_alone():
    denoiser, x = Denoiser(awake(MLP(2, width=8)), sigma_data=0.5), torch.randn(4, 2, generator=generator())
    kinds = []
    denoiser.backbone.net[-1].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    exact = denoiser(x, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = denoiser(x, 1e-3)
    assert kinds == [torch.float32, torch.bfloat16]
    assert rough.dtype == torch.float32
    # c_out is 1e-3 here: an error of the network in bfloat16 (1 in 256) shrinks to at most that share of it.
    assert (rough - exact).abs().max() < 1e-3 / 50


def test_sigma_data_is_filled_in_once_known():
    denoiser = Denoiser(Silent())
    assert not denoiser.has_sigma_data
    denoiser.set_sigma_data(0.25)
    assert denoiser.has_sigma_data and denoiser.state_dict()["sigma_data"] == 0.25
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="positive"):
            denoiser.set_sigma_data(wrong)
