"""The network in the hands of diffusers: its EDM schedulers draw what our samplers draw."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import awake, generator
from diffusers import ConsistencyModelPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.diffusers_model import TweedieModel
from lightning_tweedie.errors import UserError
from lightning_tweedie.model_folder import write_model_folder
from lightning_tweedie.networks import MLP, UNet
from lightning_tweedie.sampling import DPMSolverPP2M, Euler, Sampler
from lightning_tweedie.serialization import to_config

STEPS = 6


def write(folder: Path, denoiser: Denoiser, shape: list[int]) -> Path:
    folder.mkdir()
    write_model_folder(folder, {"denoiser": to_config(denoiser), "shape": shape, "sigma_n": 0.3}, denoiser.state_dict())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = awake(UNet(3, width=8, multipliers=(1, 2), blocks=1, attention=(1,), patch=2))
    return write(tmp_path_factory.mktemp("model") / "folder", Denoiser(network, 0.3).eval(), [3, 8, 8])


def ours(folder: Path, sampler: Sampler, x: Tensor) -> Tensor:
    return sampler(load_denoiser(folder).denoiser, x, sampler.levels(), torch.zeros_like)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheduler", "sampler"), [(EDMEulerScheduler, Euler), (EDMDPMSolverMultistepScheduler, DPMSolverPP2M)]
)
def test_the_schedulers_of_diffusers_draw_what_our_samplers_draw(
    folder: Path, scheduler: type, sampler: type[Sampler]
) -> None:
    model = TweedieModel.from_pretrained(folder)
    start = 80 * torch.randn(4, 3, 8, 8, generator=generator())

    def theirs(sigma_data: float) -> Tensor:
        solver, x = scheduler(sigma_data=sigma_data), start
        solver.set_timesteps(STEPS)
        for t in solver.timesteps:
            x = solver.step(model(solver.scale_model_input(x, t), t).sample, t, x).prev_sample
        return x

    expected = ours(folder, sampler(STEPS), start)
    # Both compute in float32, from points of the order of 80.
    torch.testing.assert_close(theirs(model.config.sigma_data), expected, rtol=0, atol=80 * 1e-5)
    assert (theirs(0.5) - expected).abs().max() > 0.1, "the schedulers do not need to know sigma_data"


def test_a_pipeline_of_diffusers_draws_images(folder: Path) -> None:
    model = TweedieModel.from_pretrained(folder)
    scheduler = EDMEulerScheduler(sigma_data=model.config.sigma_data)
    pipeline = ConsistencyModelPipeline(unet=model, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 3, 8, 8, generator=generator())
    images = pipeline(batch_size=2, num_inference_steps=STEPS, latents=noise, output_type="np").images
    expected = ours(folder, Euler(STEPS), noise * scheduler.init_noise_sigma)
    np.testing.assert_allclose(images, (expected.clamp(-1, 1).permute(0, 2, 3, 1) + 1) / 2, atol=80 * 1e-5)
    assert images.std() > 0.05, "images of one value would agree with anything"


def test_it_takes_no_more_than_the_folder(folder: Path, tmp_path: Path) -> None:
    model = TweedieModel.from_pretrained(folder)
    assert (model.config.sample_size, model.config.in_channels, model.training) == (8, 3, False)
    with pytest.raises(UserError, match="torch_dtype cannot be given"):
        TweedieModel.from_pretrained(folder, torch_dtype=torch.float16)
    with pytest.raises(UserError, match="hand on the folder"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="diffusers is for images"):
        TweedieModel.from_pretrained(write(tmp_path / "points", Denoiser(MLP(2, width=8), 0.5), [2]))
    config = json.loads((folder / "config.json").read_text())
    config["denoiser"]["init_args"]["backbone"]["class_path"] = "os.system"
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (hostile / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="os.system is not one of this library's"):
        TweedieModel.from_pretrained(hostile)
