"""The transformer: silent at first, of the published sizes, and attention is all that joins its patches."""

from functools import partial
from pathlib import Path

import pytest
import torch
from checks import awake, generator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.model_folder import write_model_folder
from lightning_tweedie.networks import DiT
from lightning_tweedie.networks import dit as dit_module
from lightning_tweedie.networks.dit import sines_of_places
from lightning_tweedie.objectives import AmbientScoreMatching, Objective
from lightning_tweedie.serialization import to_config

LEVEL = torch.tensor([-1.0, 0.5])
small = partial(DiT, width=16, depth=2, heads=2)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator())


def test_a_new_dit_is_silent_and_all_of_it_learns_from_its_fourth_step_on():
    """The denoiser starts as the best linear one; what is gated at first follows when its gate has opened."""
    network, x = small(1), images(2, 1, 8, 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    start = {name: p.clone() for name, p in network.named_parameters()}
    assert not network(x, LEVEL).any()
    for _ in range(4):
        optimizer.zero_grad()
        ((network(x, LEVEL) - x.roll(1, -1)) ** 2).sum().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if torch.equal(p, start[name])] == []


@pytest.mark.parametrize(
    "settings, millions, gigaflops",
    [
        (dict(width=384, depth=12, heads=6), 33, 6.06),
        (dict(width=768, depth=12, heads=12), 130, 23.01),
        (dict(width=1024, depth=24, heads=16), 458, 80.71),
        (dict(width=1152, depth=28, heads=16), 675, 118.64),
    ],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_it_has_the_published_sizes(settings, millions, gigaflops):
    """Parameters and multiply-adds of 2212.09748, tables 1 and 4, where the position takes no part in either."""
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network = DiT(4, patch=2, **settings)
        network(torch.empty(1, 4, 32, 32), torch.empty(1))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions
    assert counter.get_total_flops() / 2e9 == pytest.approx(gigaflops, rel=1e-3)


def reach(network: DiT) -> Tensor:
    """Which pixels of a 6 x 8 image the answer at (2, 3) depends on."""
    x = images(1, 1, 6, 8).requires_grad_()
    network(x, LEVEL[:1])[0, 0, 2, 3].backward()
    return x.grad[0, 0] != 0


def test_attention_is_all_that_joins_patches():
    network = awake(small(1))
    assert reach(network).all()
    for block in network.blocks:
        block.attention.out.weight.data.zero_()
    own = torch.zeros(6, 8, dtype=torch.bool)
    own[2:4, 2:4] = True
    assert torch.equal(reach(network), own)


def test_without_places_patches_have_no_order(monkeypatch):
    """Attention does not know where a patch is: moved patches give moved answers, unless their places are told."""
    network, x = awake(small(2)), images(2, 2, 8, 6)
    moved = partial(torch.roll, shifts=(2, 4), dims=(-2, -1))
    assert (network(moved(x), LEVEL) - moved(network(x, LEVEL))).abs().max() > 0.01
    monkeypatch.setattr(dit_module, "sines_of_places", lambda h, w, dim, like: like.new_zeros(h * w, dim))
    torch.testing.assert_close(network(moved(x), LEVEL), moved(network(x, LEVEL)), rtol=1e-4, atol=1e-5)


def test_products_of_places_are_functions_of_the_way_between_them():
    """So they are in every part of a grid and in grids of every size; no two places look alike."""
    like = torch.zeros((), dtype=torch.float64)
    small_grid = sines_of_places(3, 5, 16, like)
    large_grid = sines_of_places(7, 6, 16, like).reshape(7, 6, 16)
    products = small_grid @ small_grid.T
    for rows, columns in [(0, 0), (4, 1), (2, 0)]:
        window = large_grid[rows : rows + 3, columns : columns + 5].reshape(15, 16)
        torch.testing.assert_close(window @ window.T, products, rtol=0, atol=1e-5)
    alike = products - torch.diag(products.diag())
    assert alike.max() < products.diag().min() - 0.1


@pytest.mark.parametrize("size", [(8, 8), (4, 10)])
def test_gradients_reach_every_parameter_at_every_size(size):
    network, x = awake(small(3, patch=2, dropout=0.1)), images(2, 3, *size)
    answer = network(x, LEVEL)
    assert answer.shape == x.shape
    (answer * x.roll(1, 0)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_item_and_every_level_is_answered_on_its_own():
    network, x = awake(small(2)), images(4, 2, 4, 6)
    level = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    torch.testing.assert_close(network(x, level)[2:3], network(x[2:3], level[2:3]), rtol=1e-4, atol=1e-5)
    answers = network(x[:1].expand(4, -1, -1, -1), level).flatten(1)
    assert torch.cdist(answers, answers).add(torch.eye(4)).min() > 0.01


def test_a_patch_of_one_pixel_is_space_to_depth_by_hand():
    folded, network = awake(small(4, patch=1)), awake(small(1, patch=2))
    network.load_state_dict(folded.state_dict())
    x = images(2, 1, 8, 6)
    by_hand = x.reshape(2, 4, 2, 3, 2).permute(0, 2, 4, 1, 3).reshape(2, 4, 4, 3)
    back = folded(by_hand, LEVEL).reshape(2, 2, 2, 4, 3).permute(0, 3, 1, 4, 2).reshape(2, 1, 8, 6)
    torch.testing.assert_close(network(x, LEVEL), back)


def step(network: DiT, x: Tensor) -> tuple[list[Tensor], int]:
    """Gradients of one step with dropout, and the bytes that were kept for the way back."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(x, LEVEL).square().sum()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    loss.backward()
    size = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    return [p.grad for p in network.parameters()], size


def test_gradient_checkpointing_keeps_the_gradients_and_little_else():
    networks = [awake(small(1, depth=6, dropout=0.3, gradient_checkpointing=yes)) for yes in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    (plain, much), (checkpointed, little) = (step(network, images(2, 1, 16, 16)) for network in networks)
    for a, b in zip(plain, checkpointed, strict=True):
        assert torch.equal(a, b)
    assert little < 0.2 * much


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(width=18), "multiple of 4"),
        (dict(width=16, heads=3), "of heads = 3"),
        (dict(patch=0), "patch >= 1"),
        (dict(depth=0), "depth >= 1"),
        (dict(heads=0), "heads >= 1"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DiT(1, **settings)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="set its `channels` to 3"):
        small(1)(images(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(UserError, match="patches of 4"):
        small(1, patch=4)(images(1, 1, 8, 10), torch.zeros(1))


def test_an_exported_dit_comes_back(tmp_path: Path):
    denoiser = Denoiser(awake(small(2, gradient_checkpointing=True)), 0.3).eval()
    content = {"denoiser": to_config(denoiser), "shape": [2, 8, 8], "sigma_n": 0.3}
    (tmp_path / "model").mkdir()
    write_model_folder(tmp_path / "model", content, denoiser.state_dict())
    loaded = load_denoiser(tmp_path / "model").denoiser
    x = images(2, 2, 8, 8)
    assert torch.equal(loaded(x, 0.5), denoiser(x, 0.5))


def test_it_learns_from_noisy_images_which_pixels_belong_together():
    """Constant images and their noise: the network must average over patches, as attention can, and no patch alone."""
    source, sigma_n = generator(), 0.5
    clean = torch.randn(512, 1, 1, 1, generator=source).expand(-1, 1, 4, 4)
    x_n = clean + sigma_n * torch.randn(clean.shape, generator=source)
    torch.manual_seed(0)
    denoiser = Denoiser(small(1, width=32), 1.0)
    objective = Objective(AmbientScoreMatching())
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        rows = torch.randint(512, (64,), generator=source)
        objective(denoiser, x_n[rows], torch.full((64,), sigma_n), generator=source).total.backward()
        optimizer.step()
    fresh = torch.randn(512, 1, 1, 1, generator=source).expand(-1, 1, 4, 4)
    with torch.no_grad():
        error = (denoiser(fresh + torch.randn(fresh.shape, generator=source), 1.0) - fresh).square().mean()
    # The best for a pixel, for a patch of four, and for all sixteen: 1 / (1 + n).
    assert 1 / 17 < error < 0.75 / 5
