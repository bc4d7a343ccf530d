"""A U-Net of the DDPM++ / EDM family, sized by its settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_tweedie.errors import UserError
from lightning_tweedie.networks.embedding import LevelEmbedding

__all__ = ["UNet"]


def _zero(module: nn.Conv2d) -> nn.Conv2d:
    """Starts a convolution at zero, so that its branch is silent at first."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def _unit_sum(x: Tensor, y: Tensor) -> Tensor:
    """The sum of two branches of unit variance, brought back to unit variance."""
    return (x + y).mul_(math.sqrt(0.5))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels // 4), channels, eps=1e-5)


class _Block(nn.Module):
    """Residual block: norm, SiLU, 3x3 convolution, twice, modulated by the noise level in between."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm_in = _norm(inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out = _norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = _Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(level)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        h = self.conv_out(self.dropout(h))
        return self.attention(_unit_sum(self.skip(x), h))


class _Attention(nn.Module):
    """Residual self-attention between pixels, in heads of 64 channels or fewer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The fewest equal heads of at most 64 channels.
        self.heads = next(n for n in range(math.ceil(channels / 64), channels + 1) if channels % n == 0)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        # Pixels before channels, as they lie in memory: nothing is copied, and the fused kernels take it.
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(b, height * width, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, height, width, c).permute(0, 3, 1, 2)
        return _unit_sum(x, self.out(h))


class _Up(nn.Conv2d):
    """Twice the size by nearest neighbours, or one less, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:  # type: ignore[override]
        """Maps ``(B, C, H, W)`` to ``(B, C, *size)``."""
        if any(2 * small != large for small, large in zip(x.shape[-2:], size, strict=True)):
            return super().forward(F.interpolate(x, size=size, mode="nearest"))
        # Equal pixels share their products: as a transposed convolution that is 16 products for 4 pixels instead of 36.
        # Its 4x4 weights are sums of those which meet the same pixel of ``x``.
        weight = F.avg_pool2d(self.weight.flip(-1, -2), 2, stride=1, padding=1, divisor_override=1).transpose(0, 1)
        return F.conv_transpose2d(x, weight, self.bias, stride=2, padding=1)


class UNet(nn.Module):
    """Encoder and decoder with skip connections; residual blocks modulated by the noise level.

    Level ``i`` of the pyramid works at ``1 / 2^i`` of the resolution with ``width * multipliers[i]``
    channels. With ``patch = p`` the image is first folded into ``p x p`` patches (space to depth), which
    divides the cost by about ``p^2`` and leaves the number of parameters nearly unchanged.

    Args:
        channels: Channels of the images.
        width: Channels at the first level, a multiple of 4.
        multipliers: Width of each level relative to the first.
        blocks: Residual blocks per level.
        attention: Levels that have self-attention, counted from 0 at the finest.
        patch: Side of the patches folded into channels; image sides must be multiples of it.
        dropout: Share of activations dropped in each block.
        gradient_checkpointing: Compute the activations within blocks a second time in the backward pass instead of
            keeping them: gradients are the same, with dropout too; a step takes about a third more time and less
            memory.

    Raises:
        UserError: if a setting makes no network.
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        patch: int = 1,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if width % 4 or width <= 0:
            raise UserError(f"UNet width = {width} must be a positive multiple of 4")
        if blocks < 1 or patch < 1 or not multipliers or min(multipliers) < 1:
            raise UserError(
                f"UNet needs blocks >= 1, patch >= 1 and multipliers >= 1, not blocks = {blocks}, patch = {patch}, "
                f"multipliers = {list(multipliers)}"
            )
        if any(level not in range(len(multipliers)) for level in attention):
            raise UserError(
                f"UNet attention = {list(attention)} names levels outside 0..{len(multipliers) - 1}: "
                "it lists levels of `multipliers`, not resolutions"
            )
        self.channels = channels
        self.width = width
        self.multipliers = list(multipliers)
        self.blocks = blocks
        self.attention = list(attention)
        self.patch = patch
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing

        embedding = 4 * width
        self.level = LevelEmbedding(embedding)
        self.enter = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        widths = [width * m for m in multipliers]

        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        skips, current = [width], width
        for i, outputs in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(_Block(current, outputs, embedding, dropout, i in attention))
                current = outputs
                skips.append(current)
            self.encoder.append(stage)
            if i + 1 < len(widths):
                self.down.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)

        self.middle = nn.ModuleList(
            [
                _Block(current, current, embedding, dropout, attention=bool(attention)),
                _Block(current, current, embedding, dropout, attention=False),
            ]
        )

        self.decoder = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, outputs in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(_Block(current + skips.pop(), outputs, embedding, dropout, i in attention))
                current = outputs
            self.decoder.append(stage)
            if i > 0:
                self.up.append(_Up(current))

        last = nn.Conv2d(current, channels * patch**2, 3, padding=1)
        self.leave = nn.Sequential(_norm(current), nn.SiLU(), _zero(last))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Maps images ``(B, C, H, W)`` and levels ``c_noise`` ``(B,)`` to ``(B, C, H, W)``."""
        if x.shape[1] != self.channels:
            raise UserError(
                f"the U-Net was built for {self.channels} channel(s) but the data have {x.shape[1]}: "
                f"set its `channels` to {x.shape[1]}"
            )
        if x.shape[-1] % self.patch or x.shape[-2] % self.patch:
            raise UserError(
                f"images of {x.shape[-2]} x {x.shape[-1]} cannot be folded into patches of {self.patch}: "
                "choose a `patch` that divides both sides, or resize"
            )
        recomputed = self.gradient_checkpointing and torch.is_grad_enabled()

        def through(block: nn.Module, x: Tensor) -> Tensor:
            return checkpoint(block, x, level, use_reentrant=False) if recomputed else block(x, level)

        level = self.level(c_noise)
        h = self.enter(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = [h]
        for i, stage in enumerate(self.encoder):
            for block in cast(nn.ModuleList, stage):
                h = through(block, h)
                skips.append(h)
            if i < len(self.down):
                h = self.down[i](h)
                skips.append(h)
        for block in self.middle:
            h = through(block, h)
        for i, stage in enumerate(self.decoder):
            for block in cast(nn.ModuleList, stage):
                h = through(block, torch.cat([h, skips.pop()], dim=1))
            if i < len(self.up):
                # To the size of the skip that comes next: odd sides (7 -> 4) come back exactly.
                h = self.up[i](h, skips[-1].shape[-2:])
        return F.pixel_shuffle(self.leave(h), self.patch)
