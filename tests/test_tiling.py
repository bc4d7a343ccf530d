"""A tiled denoiser answers as the denoiser itself where that looks at small neighbourhoods, and leaves no seams."""

import pytest
import torch
from checks import Exact, awake, generator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.networks import UNet
from lightning_tweedie.oracles import MixtureOracle
from lightning_tweedie.sampling import one_step, posterior_samples
from lightning_tweedie.tiling import TiledDenoiser


def per_pixel(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of independent pixels that are -0.5 or 0.5, give or take 0.1."""
    oracle = MixtureOracle(torch.tensor([[-0.5], [0.5]]).to(x), torch.tensor([0.1, 0.1]).to(x))
    levels = sigma.reshape(-1, 1, 1, 1).expand_as(x).reshape(-1)
    return oracle(x.reshape(-1, 1), levels).reshape(x.shape)


def neighbourhood(x: Tensor, sigma: Tensor) -> Tensor:
    """A mean of 5 x 5 pixels whose weight depends on the level; at the edge of what it sees it lacks pixels."""
    mean = F.avg_pool2d(x, 5, stride=1, padding=2)
    return x + (mean - x) * (sigma / (1 + sigma)).reshape(-1, 1, 1, 1)


def noisy(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (40, 61), (100, 33), (9, 50), (5, 3)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_a_pixelwise_denoiser_is_the_same_in_tiles(size: tuple[int, int], overlap: float) -> None:
    exact = Exact(per_pixel)
    x, sigma = noisy(3, 2, *size), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    tiled = TiledDenoiser(exact, (16, 16), overlap, batch_size=7)
    torch.testing.assert_close(tiled(x, sigma), exact(x, sigma))
    draws = [posterior_samples(d, x, sigma, 2, seed=1) for d in (tiled, exact)]  # type: ignore[arg-type]
    torch.testing.assert_close(*draws)


def test_what_a_tile_does_not_see_does_not_show() -> None:
    """The denoiser looks two pixels far; tiles lack them at their edges, where they have no weight."""
    exact = Exact(neighbourhood)
    x = noisy(1, 1, 70, 90)
    whole = exact(x, torch.tensor([0.7], dtype=torch.float64))
    tiled = TiledDenoiser(exact, (32, 32))(x, 0.7)
    assert float((tiled - whole).abs().max()) < 1e-4
    # With an overlap that is too small for that the seams are there.
    seams = TiledDenoiser(exact, (32, 32), overlap=1 / 32)(x, 0.7)
    assert float((seams - whole).abs().max()) > 0.05


def test_every_item_has_its_own_level_and_place() -> None:
    exact = Exact(neighbourhood)
    x, sigma = noisy(3, 1, 40, 40), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    tiled = TiledDenoiser(exact, (24, 16), batch_size=5)
    together = tiled(x, sigma)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], tiled(x[i : i + 1], sigma[i : i + 1]))
    assert tiled.count((1, 40, 40)) == 3 * 4
    torch.testing.assert_close(tiled(x[..., :24, :16], sigma), exact(x[..., :24, :16], sigma))  # one tile


def levelled(x: Tensor, sigma: Tensor) -> Tensor:
    """Answers that depend on all that is seen, as those of a network with normalisation do."""
    return x - 0.5 * x.mean((1, 2, 3), keepdim=True)


def jump(x: Tensor, lines: list[int]) -> float:
    """The largest step in the slope across some columns, relative to the largest elsewhere."""
    second = (x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]).abs().amax((0, 1, 2))
    at = torch.zeros(len(second), dtype=torch.bool)
    at[[line + offset - 1 for line in lines for offset in (-1, 0)]] = True
    return float(second[at].max() / second[~at].max())


def test_neighbours_that_disagree_leave_no_seam() -> None:
    exact = Exact(levelled)
    x = F.interpolate(noisy(1, 1, 6, 8), (96, 128), mode="bicubic")
    tiled = TiledDenoiser(exact, (32, 32))
    starts = tiled.starts(128, 32)
    edges = [*starts[1:], *(start + 32 for start in starts[:-1])]
    assert jump(tiled(x, 0.2), edges) < 1
    # The same tiles side by side, each restored for itself, have seams that show.
    apart = torch.cat([exact(part, torch.tensor([0.2])) for part in x[..., :32, :].split(32, dim=-1)], dim=-1)
    assert jump(apart, [32, 64, 96]) > 3


def test_a_network_sees_what_it_was_trained_on() -> None:
    """A network that takes one size only restores any other."""
    torch.manual_seed(0)
    net = awake(UNet(channels=1, width=8, multipliers=[1, 2], blocks=1, attention=[1], patch=4))
    denoiser = Denoiser(net, sigma_data=0.5).eval()
    x = noisy(1, 1, 45, 27).float()
    with pytest.raises(UserError, match="cannot be folded into patches of 4"):
        one_step(denoiser, x, 0.2)
    seen: list[torch.Size] = []
    denoiser.register_forward_hook(lambda module, inputs, answer: seen.append(answer.shape))
    tiled = TiledDenoiser(denoiser, (16, 16), batch_size=4)
    assert one_step(tiled, x, 0.2).shape == x.shape  # type: ignore[arg-type]
    assert {shape[1:] for shape in seen} == {torch.Size((1, 16, 16))}
    assert sum(shape[0] for shape in seen) == tiled.count((1, 45, 27)) and max(shape[0] for shape in seen) == 4


def test_an_overlap_is_needed() -> None:
    for overlap in (0.0, 1.0):
        with pytest.raises(UserError, match="overlap ="):
            TiledDenoiser(Exact(per_pixel), (8, 8), overlap)
