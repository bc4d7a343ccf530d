"""Full precision whatever has been chosen for training, and that choice afterwards as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import generator
from torch import nn

from lightning_tweedie.precision import full_precision

BACKENDS: Any = torch.backends

PLACES = {
    "cuda.matmul": BACKENDS.cuda.matmul,
    "cudnn.conv": BACKENDS.cudnn.conv,
    "cudnn.rnn": BACKENDS.cudnn.rnn,
    "mkldnn.matmul": BACKENDS.mkldnn.matmul,
    "mkldnn.conv": BACKENDS.mkldnn.conv,
    "mkldnn.rnn": BACKENDS.mkldnn.rnn,
}


def old_switches() -> list[Any]:
    """Settings of the older kind; None where PyTorch finds them at odds with the newer ones."""
    found: list[Any] = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        lambda: BACKENDS.cudnn.allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


def settings() -> list[Any]:
    """All that there is."""
    return [place.fp32_precision for place in (BACKENDS, BACKENDS.cudnn, *PLACES.values())] + old_switches()


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Puts PyTorch's settings back to those that it starts with."""
    yield
    BACKENDS.fp32_precision = BACKENDS.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for name, place in PLACES.items():
        place.fp32_precision = "tf32" if name.startswith("cudnn") else "none"


def choose(name: str) -> None:
    """What users write to make training faster."""
    if name == "cudnn off":
        BACKENDS.cudnn.allow_tf32 = False
    elif name == "allow_tf32":
        BACKENDS.cuda.matmul.allow_tf32 = True
    elif name in ("high", "medium"):
        torch.set_float32_matmul_precision(name)
    elif name == "everything":
        BACKENDS.fp32_precision = "tf32"
    elif name == "cudnn":
        BACKENDS.cudnn.fp32_precision = "tf32"
    elif name in PLACES:
        PLACES[name].fp32_precision = "tf32" if name.startswith("cu") else "bf16"


CHOICES = ("nothing", "cudnn off", "allow_tf32", "high", "medium", "everything", "cudnn", *PLACES)


@pytest.mark.parametrize("name", CHOICES)
def test_no_shortcut_is_left_and_all_is_restored(name: str) -> None:
    choose(name)
    before = settings()
    with full_precision("cpu"):
        inside = {place.fp32_precision for place in PLACES.values()}
        assert inside <= {"none", "ieee"}
        matmul, tf32, convolutions = old_switches()
        # Where the old switches are at odds with the new ones they were before: what the user has done is not mixed.
        assert matmul in ("highest", None) and not tf32 and not convolutions
        assert (matmul is None) <= (before[-3] is None)
        with full_precision("cpu"):
            assert {place.fp32_precision for place in PLACES.values()} == inside
    assert settings() == before


def test_a_wider_setting_still_decides_afterwards() -> None:
    choose("everything")
    with full_precision("cpu"):
        pass
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == BACKENDS.mkldnn.conv.fp32_precision == "ieee"


def test_settings_are_restored_after_an_error() -> None:
    choose("high")
    before = settings()
    with pytest.raises(ZeroDivisionError), full_precision("cpu"):
        raise ZeroDivisionError
    assert settings() == before


def test_autocast_is_off_inside() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with full_precision("cpu"):
            assert layer(x).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("name", ("nothing", "high", "everything"))
def test_a_gpu_rounds_as_a_processor_does(name: str) -> None:
    choose(name)
    layer, x = nn.Conv2d(64, 64, 3), torch.randn(8, 64, 32, 32, generator=generator())
    weights = torch.randn(512, 512, generator=generator(1))
    exact = layer.double()(x.double()), weights.double() @ weights.double()

    def errors() -> list[float]:
        there = layer.float().cuda()(x.cuda()), weights.cuda() @ weights.cuda()
        return [float((a.cpu().double() - b).abs().max() / b.std()) for a, b in zip(there, exact, strict=True)]

    with torch.no_grad():
        with full_precision("cuda"):
            # Sums of about 500 products, each rounded at 2**-24 of it.
            assert max(errors()) < 2e-5
        if torch.cuda.get_device_capability() >= (8, 0):
            assert errors()[0] > 1e-4  # the control: TF32 rounds at 2**-11
