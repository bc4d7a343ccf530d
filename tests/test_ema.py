"""Averages of the weights, against the closed form."""

import math

import pytest
import torch
from checks import generator
from torch import Tensor, nn

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.errors import UserError


class OneWeight(nn.Module):
    """``w x``, with dropout."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.dropout(self.weight * x)


def follow(ema: EMA, path: list[float], start: float = 0.0) -> list[float]:
    """The averages after the live weight went along ``path``."""
    denoiser = Denoiser(OneWeight(start), sigma_data=0.5)
    ema.attach(denoiser)
    for weight in path:
        denoiser.backbone.weight.data.fill_(weight)
        ema.update(denoiser)
    return [average.backbone.weight.item() for average in ema.averages]


def test_recursion_equals_the_closed_form():
    """``e_n = d^n w_0 + (1 - d) sum_k d^(n-k) w_k`` with ``d = 2^(-1 / half-life)``, for each half-life."""
    path, half_lives = torch.randn(50, generator=generator(), dtype=torch.float64), [3.0, 20.0]
    averages = follow(EMA(half_lives, ramp_up=math.inf), path.tolist(), start=1.0)
    for average, half_life in zip(averages, half_lives, strict=True):
        d = 0.5 ** (1 / half_life)
        ages = torch.arange(49, -1, -1, dtype=torch.float64)
        assert average == pytest.approx(d**50 + ((1 - d) * d**ages * path).sum().item(), rel=1e-12)


def test_after_a_half_life_half_is_left():
    assert follow(EMA([10.0], ramp_up=math.inf), [0.0] * 10, start=1.0) == [pytest.approx(0.5)]


def test_the_shortest_average_teaches_and_the_first_one_samples():
    ema = EMA([20.0, 3.0, 5.0])
    follow(ema, [1.0, 2.0])
    assert ema.teacher is ema.averages[1] and ema.denoiser is ema.averages[0]


def test_ramp_up_forgets_the_initial_weights():
    """With the half-life at 5 % of the steps, 100 steps leave nothing of the start, though 1000 was asked for."""
    path = [float(k) for k in range(1, 101)]
    (average,) = follow(EMA([1000.0]), path, start=1e6)
    weights = [1.0]
    for k in range(1, 101):
        d = 0.5 ** (1 / min(1000.0, 0.05 * k))
        weights = [d * w for w in weights] + [1 - d]
    assert sum(weights) == pytest.approx(1)
    assert average == pytest.approx(sum(w * p for w, p in zip(weights, [1e6, *path], strict=True)))
    assert weights[0] < 1e-12 and 90 < average < 100


def test_an_interrupted_average_goes_on_as_if_nothing_happened():
    path = torch.randn(40, generator=generator(), dtype=torch.float64).tolist()
    whole = follow(EMA([5.0]), path)
    first, second = EMA([5.0]), EMA([5.0])
    follow(first, path[:17])
    denoiser = Denoiser(OneWeight(), sigma_data=0.5)
    second.attach(denoiser)
    second.load_state_dict(first.state_dict())
    assert second.steps == 17
    for weight in path[17:]:
        denoiser.backbone.weight.data.fill_(weight)
        second.update(denoiser)
    assert second.denoiser.backbone.weight.item() == whole[0]


def test_averages_have_no_dropout_no_gradient_and_the_same_buffers():
    denoiser, ema = Denoiser(OneWeight(1.0)).train(), EMA()
    ema.attach(denoiser)
    ema.train()
    denoiser.set_sigma_data(0.25)
    ema.update(denoiser)
    assert ema.denoiser.sigma_data == 0.25
    assert not any(p.requires_grad for p in ema.parameters())
    x = torch.ones(100, 1, dtype=torch.float64)
    assert ema(x, 1.0).unique().numel() == 1
    assert denoiser(x, 1.0).unique().numel() == 2


def test_settings_without_sense_are_refused():
    for wrong in (dict(half_lives=[]), dict(half_lives=[10.0, 0.0]), dict(ramp_up=0.0)):
        with pytest.raises(UserError, match="half-life"):
            EMA(**wrong)
