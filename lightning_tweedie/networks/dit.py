"""A transformer of the DiT family, sized by its settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_tweedie.errors import UserError
from lightning_tweedie.networks.embedding import LevelEmbedding

__all__ = ["DiT"]


def _linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A layer in Glorot's start, as transformers have it, without a bias at first; silent if ``gain`` is 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _norm(width: int) -> nn.LayerNorm:
    """Without weights: the noise level scales and shifts."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


def sines_of_places(height: int, width: int, dim: int, like: Tensor) -> Tensor:
    """What tells the places of a grid apart: sines and cosines of the row, then of the column (1706.03762, 2-D).

    The product of two of them depends on the way from one place to the other only, whatever the size of the grid.

    Args:
        height: Rows.
        width: Columns.
        dim: Numbers for each place, a multiple of 4.
        like: Says where, and in which dtype.

    Returns:
        One vector for each place, row by row, ``(height * width, dim)``.
    """
    # Exponents in float32: in half precision neighbouring frequencies would fall together.
    steps = torch.arange(dim // 4, device=like.device, dtype=torch.float32) / (dim // 4)
    frequencies = 10_000.0**-steps

    def sines(count: int) -> Tensor:
        angles = torch.arange(count, device=like.device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = sines(height)[:, None].expand(height, width, dim // 2)
    columns = sines(width)[None].expand(height, width, dim // 2)
    return torch.cat([rows, columns], dim=2).reshape(height * width, dim).to(like.dtype)


class _Attention(nn.Module):
    """Self-attention between patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.out = _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class _Block(nn.Module):
    """Attention, then a small network at each patch; the noise level modulates what enters and gates what leaves."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.modulation = _linear(width, 6 * width, gain=0.0)  # both branches are silent at first (adaLN-Zero)
        self.norm_attention = _norm(width)
        self.attention = _Attention(width, heads)
        self.norm_net = _norm(width)
        self.net = nn.Sequential(
            _linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Dropout(dropout), _linear(4 * width, width)
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale_a, shift_a, gate_a, scale_n, shift_n, gate_n = self.modulation(level)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, gate_a, self.attention(_modulated(self.norm_attention(x), scale_a, shift_a)))
        return torch.addcmul(x, gate_n, self.net(_modulated(self.norm_net(x), scale_n, shift_n)))


class DiT(nn.Module):
    """Diffusion transformer (2212.09748): attention between the patches of an image, modulated by the noise level.

    Each patch is a token, and sines of its row and column say where it is, so one network takes images of any size
    that the patch divides. It has about ``18 depth width^2`` parameters, whatever the patch. A pass over ``n`` patches
    costs ``24 n depth width^2`` operations and ``4 n^2 depth width`` more for the attention: half the patch, four times
    the cost and more.

    The published sizes are S (``width`` 384, ``depth`` 12, ``heads`` 6; 33 million parameters), B (768, 12, 12; 130),
    L (1024, 24, 16; 458) and XL (1152, 28, 16; 675).

    Args:
        channels: Channels of the images.
        patch: Side of a patch; image sides must be multiples of it.
        width: Channels of a token, a multiple of 4 and of ``heads``.
        depth: Number of blocks.
        heads: Heads of the attention.
        dropout: Share of activations dropped in each block.
        gradient_checkpointing: Keep what enters each block and compute the rest a second time on the way back: a third
            more time for a fraction of the memory, and the same gradients.

    Raises:
        UserError: if a setting makes no network.
    """

    def __init__(
        self,
        channels: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if patch < 1 or depth < 1 or heads < 1:
            raise UserError(
                f"DiT needs patch >= 1, depth >= 1 and heads >= 1, not patch = {patch}, depth = {depth}, "
                f"heads = {heads}"
            )
        if width < 1 or width % 4 or width % heads:
            raise UserError(f"DiT width = {width} must be a positive multiple of 4 and of heads = {heads}")
        self.channels = channels
        self.patch = patch
        self.width = width
        self.depth = depth
        self.heads = heads
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing

        self.level = LevelEmbedding(width)
        self.enter = _linear(channels * patch**2, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.modulation = _linear(width, 2 * width, gain=0.0)
        self.norm = _norm(width)
        self.leave = _linear(width, channels * patch**2, gain=0.0)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Maps images ``(B, C, H, W)`` and levels ``c_noise`` ``(B,)`` to ``(B, C, H, W)``."""
        if x.shape[1] != self.channels:
            raise UserError(
                f"the DiT was built for {self.channels} channel(s) but the data have {x.shape[1]}: "
                f"set its `channels` to {x.shape[1]}"
            )
        if x.shape[-1] % self.patch or x.shape[-2] % self.patch:
            raise UserError(
                f"images of {x.shape[-2]} x {x.shape[-1]} cannot be cut into patches of {self.patch}: "
                "choose a `patch` that divides both sides, or resize"
            )
        level = self.level(c_noise)
        folded = F.pixel_unshuffle(x, self.patch)
        rows, columns = folded.shape[-2:]
        h = self.enter(folded.flatten(2).transpose(1, 2))
        h = h + sines_of_places(rows, columns, self.width, h)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, level, use_reentrant=False)
            else:
                h = block(h, level)
        scale, shift = self.modulation(level)[:, None].chunk(2, dim=2)
        h = self.leave(_modulated(self.norm(h), scale, shift))
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)
