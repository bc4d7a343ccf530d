"""Backbones: every part is used, every size fits, every level is told apart."""

import pytest
import torch
from checks import awake, generator
from torch import nn
from torch.nn import functional as F

from lightning_tweedie.errors import UserError
from lightning_tweedie.levels import edm_levels
from lightning_tweedie.networks import MLP, UNet
from lightning_tweedie.networks.embedding import LevelEmbedding


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator())


@pytest.mark.parametrize(
    "settings, size",
    [
        (dict(multipliers=[1, 2, 2], patch=2), 28),
        (dict(multipliers=[1, 2, 3], attention=[1, 2]), 13),
        (dict(multipliers=[1], blocks=1, attention=[0]), 5),
        (dict(width=4, multipliers=[1, 49], blocks=1, attention=[1]), 6),
    ],
    ids=["28 / 2 -> 14, 7, 4", "13, 7, 4", "one level", "196 channels in four heads"],
)
def test_gradients_reach_every_parameter_at_odd_sizes_too(settings, size):
    network = awake(UNet(1, **{"width": 8, **settings}))
    x = images(2, 1, size, size)
    answer = network(x, torch.tensor([-1.0, 0.5]))
    assert answer.shape == x.shape
    (answer * images(2, 1, size, size).roll(1, 0)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_new_unet_is_silent_and_learns_from_its_second_step_on():
    """The last convolution starts at zero, so that the denoiser starts as the best linear one."""
    network, x = UNet(1, width=8), images(2, 1, 8, 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    start = {name: p.clone() for name, p in network.named_parameters()}
    assert not network(x, torch.zeros(2)).any()
    for _ in range(3):
        optimizer.zero_grad()
        ((network(x, torch.zeros(2)) - 1) ** 2).sum().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if torch.equal(p, start[name])] == []


def test_attention_mixes_all_pixels():
    """Through 3x3 convolutions alone a pixel of a single-level network sees few neighbours; with attention all."""

    def reach(attention: list[int]) -> int:
        network = awake(UNet(1, width=8, multipliers=[1], blocks=1, attention=attention)).double()
        for norm in network.modules():
            if isinstance(norm, nn.GroupNorm):  # its averages see every pixel too
                norm.forward = lambda x: x
        x = images(1, 1, 33, 33).double().requires_grad_()
        network(x, torch.zeros(1).double())[0, 0, 16, 16].backward()
        return int((x.grad != 0).sum())

    assert reach([]) < 33 * 33
    assert reach([0]) == 33 * 33


def as_written(network: UNet, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    """What the network computes, in the plainest way: every pixel of every layer, one operation at a time."""

    def attended(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q, k, v = layer.qkv(layer.norm(x)).flatten(2).unflatten(1, (3, layer.heads, -1)).unbind(1)
        shares = torch.einsum("bhcq,bhck->bhqk", q, k).div(q.shape[2] ** 0.5).softmax(-1)
        return (x + layer.out(torch.einsum("bhqk,bhck->bhcq", shares, v).reshape(x.shape))) / 2**0.5

    def passed(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = block.conv_in(F.silu(block.norm_in(x)))
        scale, shift = block.modulation(level)[:, :, None, None].chunk(2, dim=1)
        h = block.conv_out(F.silu(block.norm_out(h) * (1 + scale) + shift))
        x = (block.skip(x) + h) / 2**0.5
        return x if isinstance(block.attention, nn.Identity) else attended(block.attention, x)

    level = network.level(c_noise)
    h = network.enter(x)
    skips = [h]
    for i, stage in enumerate(network.encoder):
        for block in stage:
            h = passed(block, h)
            skips.append(h)
        if i < len(network.down):
            h = network.down[i](h)
            skips.append(h)
    for block in network.middle:
        h = passed(block, h)
    for i, stage in enumerate(network.decoder):
        for block in stage:
            h = passed(block, torch.cat([h, skips.pop()], 1))
        if i < len(network.up):
            rows, columns = (torch.arange(side) // 2 for side in skips[-1].shape[-2:])
            h = F.conv2d(h[:, :, rows][:, :, :, columns], network.up[i].weight, network.up[i].bias, padding=1)
    return network.leave(h)


def gradients(network: nn.Module, answer: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad((answer * images(*answer.shape).to(answer)).sum(), list(network.parameters())))


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (12, 7)], ids=["even", "odd", "both"])
def test_what_is_fast_is_what_is_written(size):
    network = awake(UNet(2, width=8, multipliers=[1, 2, 9], blocks=1, attention=[1, 2])).double()
    x, level = images(3, 2, *size).double(), torch.tensor([-1.0, 0.0, 0.5]).double()
    fast, plain = network(x, level), as_written(network, x, level)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(gradients(network, fast), gradients(network, plain))
    with torch.no_grad():  # an image that is enlarged about another pixel is another one
        network.up[0].weight.copy_(network.up[0].weight.flip(-1))
    assert (network(x, level) - plain).abs().max() > 1e-3


def test_gradients_are_the_same_where_activations_are_computed_twice():
    settings = dict(width=8, multipliers=[1, 2], blocks=1, attention=[1], dropout=0.3)
    kept, again = awake(UNet(1, **settings)), awake(UNet(1, **settings, gradient_checkpointing=True))
    again.load_state_dict(kept.state_dict())
    x, level = images(4, 1, 8, 8), torch.zeros(4)
    found, sizes = [], []
    for network in (kept, again, kept):
        held = []
        with (
            torch.random.fork_rng(),
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, held=held: held.append(tensor.numel()) or tensor, lambda tensor: tensor
            ),
        ):
            torch.manual_seed(len(found) // 2)
            answer = network(x, level)
        found.append([answer, *gradients(network, answer)])
        sizes.append(sum(held))
    assert all(map(torch.equal, *found[:2]))
    assert not torch.equal(found[0][0], found[2][0])  # another seed drops others
    assert sizes[1] < 0.3 * sizes[0]


def test_patches_are_space_to_depth():
    """Folding ``p x p`` patches into channels by hand, then a network without patches, is the same."""
    folded, network = awake(UNet(4, width=8)), awake(UNet(1, width=8, patch=2))
    network.load_state_dict(folded.state_dict())
    x, level = images(2, 1, 8, 8), torch.zeros(2)
    by_hand = x.reshape(2, 4, 2, 4, 2).permute(0, 2, 4, 1, 3).reshape(2, 4, 4, 4)
    back = folded(by_hand, level).reshape(2, 2, 2, 4, 4).permute(0, 3, 1, 4, 2).reshape(2, 1, 8, 8)
    torch.testing.assert_close(network(x, level), back)


def test_dropout_is_for_training():
    network, x = awake(UNet(1, width=8, dropout=0.5)), images(1, 1, 8, 8)
    assert not torch.equal(network(x, torch.zeros(1)), network(x, torch.zeros(1)))
    network.eval()
    assert torch.equal(network(x, torch.zeros(1)), network(x, torch.zeros(1)))


def test_levels_that_look_alike_are_neighbours():
    """Of EDM's 18 sampling levels the one that most resembles another in its embedding is next to it."""
    c_noise = edm_levels(18, 0.002, 80.0).float().log() / 4
    angles = c_noise[:, None] * LevelEmbedding(64).frequencies
    features = torch.cat([angles.sin(), angles.cos()], 1)
    nearest = (torch.cdist(features, features) + 100 * torch.eye(18)).argmin(1)
    assert ((nearest - torch.arange(18)).abs() == 1).all()
    for network, shape in [(awake(UNet(1, width=8)), (18, 1, 8, 8)), (awake(MLP(3)), (18, 3))]:
        answers = network(torch.ones(shape), c_noise).flatten(1)
        assert len(answers.unique(dim=0)) == 18


def test_every_item_is_answered_on_its_own():
    for network, x in [(awake(UNet(2, width=8)), images(4, 2, 7, 9)), (awake(MLP(3)), images(4, 3))]:
        level = torch.tensor([-1.0, 0.0, 0.5, 1.0])
        torch.testing.assert_close(network(x, level)[2:3], network(x[2:3], level[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(width=10), "multiple of 4"),
        (dict(attention=[16]), "not resolutions"),
        (dict(blocks=0), "blocks >= 1"),
        (dict(patch=0), "patch >= 1"),
        (dict(multipliers=[], attention=[]), "multipliers"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        UNet(1, **settings)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="set its `channels` to 3"):
        UNet(1, width=8)(images(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(UserError, match="patches of 4"):
        UNet(1, width=8, patch=4)(images(1, 1, 8, 10), torch.zeros(1))
