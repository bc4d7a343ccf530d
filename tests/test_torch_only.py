"""Plain PyTorch: the README's loop runs where Lightning cannot be imported."""

import subprocess
import sys

TRAINING = """
import sys

for blocked in ("lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics"):
    sys.modules[blocked] = None  # importing it raises ImportError

import torch

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.networks import UNet
from lightning_tweedie.objectives import AmbientScoreMatching, Consistency, Objective, PosteriorReplay
from lightning_tweedie.sampling import Ancestral, Heun, one_step, posterior_samples, sample

torch.manual_seed(0)
denoiser, ema = Denoiser(UNet(channels=1, width=8, multipliers=[1, 2], blocks=1), sigma_data=0.5), EMA([2.0])
ema.attach(denoiser)
objective = Objective(AmbientScoreMatching(), Consistency(start=0.3), PosteriorReplay(start=0.3, sampler=Ancestral(2)))
optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
x_n, sigma_n = torch.randn(8, 1, 8, 8), torch.full((8,), 0.5)
for step in range(4):
    losses = objective(denoiser, x_n, sigma_n, teacher=ema.denoiser, progress=step / 4)
    optimizer.zero_grad()
    losses.total.backward()
    optimizer.step()
    ema.update(denoiser)

assert sorted(losses.terms) == ["ambient", "consistency", "replay"]
images = sample(ema.denoiser, (2, 1, 8, 8), Heun(steps=4), truncate_at=0.5)
draws = posterior_samples(ema.denoiser, x_n, sigma_n, draws=2, sampler=Ancestral(steps=4))
assert all(x.isfinite().all() for x in (images, draws, one_step(ema.denoiser, x_n, sigma_n)))
print("trained", ema.steps, "steps")
"""


def test_a_few_steps_without_lightning():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True)
    assert done.stdout == "trained 4 steps\n", done.stderr
