"""Networks as plain data, and back."""

import json

import pytest
import torch
from checks import awake, generator
from torch import nn

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.networks import MLP, DiT, UNet
from lightning_tweedie.serialization import from_config, to_config


class Forgetful(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()


class Strange(nn.Module):
    def __init__(self, choice: object) -> None:
        super().__init__()
        self.choice = choice


@pytest.mark.parametrize("sigma_data", [0.3, None])
@pytest.mark.parametrize(
    "backbone, shape",
    [
        (UNet(2, width=8, multipliers=(1, 3), blocks=1, attention=(0,), patch=2, dropout=0.1), (3, 2, 8, 8)),
        (DiT(2, width=8, depth=2, heads=2, dropout=0.1, gradient_checkpointing=True), (3, 2, 8, 8)),
        (MLP(4, depth=2), (3, 4)),
    ],
    ids=["UNet", "DiT", "MLP"],
)
def test_there_and_back_through_json(backbone, shape, sigma_data):
    original = Denoiser(awake(backbone), sigma_data).eval()
    rebuilt = from_config(json.loads(json.dumps(to_config(original)))).eval()
    assert to_config(rebuilt) == to_config(original)
    assert rebuilt.has_sigma_data == original.has_sigma_data
    rebuilt.load_state_dict(original.state_dict())
    x, sigma = torch.randn(shape, generator=generator()), torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(rebuilt(x, sigma), original(x, sigma), rtol=0, atol=0, equal_nan=True)


def test_what_cannot_be_described_is_refused():
    with pytest.raises(UserError, match="does not keep its argument `dim`"):
        to_config(Forgetful(3))
    with pytest.raises(UserError, match="Strange.choice is a set"):
        to_config(Strange({1}))


@pytest.mark.parametrize(
    "path, message",
    [
        ("os.system", "not one of this library's"),
        ("lightning_tweedie.networks_evil.Net", "not one of this library's"),
        ("lightning_tweedie.networks.unet.Nothing", "cannot be imported"),
        ("lightning_tweedie.networks.unet.UserError", "is not a network"),
    ],
)
def test_only_known_networks_are_built(path, message):
    with pytest.raises(UserError, match=message):
        from_config({"class_path": path, "init_args": {}})


def test_other_packages_are_built_when_allowed():
    config = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}
    with pytest.raises(UserError, match="--allow torch"):
        from_config(config)
    assert from_config(config, allow=["torch"]).weight.shape == (3, 2)
