"""The data set that training sees: noisy items with their levels, already in batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.augmentation import Augmentation
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.data.sampler import Draw
from lightning_tweedie.data.scaled_images import ScaledImages
from lightning_tweedie.errors import UserError
from lightning_tweedie.noise.injection import inject as inject_noise
from lightning_tweedie.noise.level_maps import LevelMaps
from lightning_tweedie.noise.sigma import LARGEST_SIGMA

__all__ = ["ItemSet", "NoisyDataset", "collate"]

#: Clean images may leave [-1, 1] by the rounding of an interpolation, not by more.
_SLACK = 1e-3
#: Ten standard deviations of the largest noise: what lies beyond is on another scale.
_BEYOND = 1 + 10 * LARGEST_SIGMA
#: Items that are read at once where order and batches do not matter, and values in them.
_CHUNK, _VALUES = 256, 1 << 24


class ItemSet(Protocol):
    """A map-style data set: what ``train_set()`` of a data module gives back."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - an item, or a tuple that starts with one
        """An item, or a tuple that starts with one."""
        ...


def collate(items: NoisyBatch | Sequence[NoisyBatch]) -> NoisyBatch:
    """Makes a batch of single items; passes on what is a batch already.

    A ``DataLoader`` hands the indices of a batch to :class:`NoisyDataset` at once and gets the whole batch.
    """
    if isinstance(items, NoisyBatch):
        return items._replace(least=float(items.sigma_n.min()))
    x_n, sigma_n, index, x_0, correlation, _ = zip(*items, strict=True)
    clean = None if x_0[0] is None else torch.stack(x_0)
    batch = NoisyBatch(torch.stack(x_n), torch.stack(sigma_n), torch.stack(index), clean, correlation[0])
    return collate(batch)


class NoisyDataset(Dataset[NoisyBatch]):
    """Noisy items, each with its level, made of a set of clean ones or read from a set of noisy ones.

    The noise of an item is the same whenever and wherever it is read; the global random state is neither used nor
    changed. Read whole batches with a ``DataLoader`` and :func:`collate`.

    Args:
        base: The items: float tensors or arrays ``(*shape)``, clean images in [-1, 1]; of an item that is a tuple
            only the first part counts, unless ``sigma_n`` is None.
        sigma_n: Level of each item of ``base``, ``(len(base),)``, ``>= 0``, or a map for each; None if the items are
            pairs ``(x_n, sigma_n)`` of data that are noisy by nature, ``sigma_n`` a float or a map with the item's
            shape.
        correlation: That of the noise; none when None.
        inject: Put the noise in; if False the items hold it already.
        seed: The user's seed.
        stream: Keeps the noise of different sets (training, test) apart.
        places: Which items of ``base`` belong to this set; default: all, in order.
        with_clean: Give back ``x_0`` too, for evaluation.
        transform: From one item to another, deterministic, before the noise.
        augmentation: After the noise, different in every epoch. If it takes parts, items may be of different sizes.

    Raises:
        UserError: On reading: items of different shapes, on a wrong scale, of a wrong type, or not finite.
    """

    def __init__(
        self,
        base: ItemSet,
        sigma_n: Tensor | LevelMaps | None,
        *,
        correlation: Correlation | None = None,
        inject: bool = True,
        seed: int = 0,
        stream: str = "noise",
        places: Sequence[int] | NDArray[np.int_] | None = None,
        with_clean: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        if inject and sigma_n is None:
            raise UserError("data.sigma is not set, so there is no noise to inject: set it, or data.inject to false")
        self.base = base
        self.sigma_n = sigma_n
        self.correlation = correlation
        self.inject = inject
        self.seed = seed
        self.stream = stream
        self.places = torch.arange(len(base)) if places is None else torch.as_tensor(places, dtype=torch.int64)
        self.with_clean = with_clean and inject
        self.transform = transform
        self.augmentation = augmentation or Augmentation([], seed)
        self._any_size = self.augmentation.crops and not isinstance(base, ArrayDataset)
        self._kept: tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]] | None = None
        self._item_shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item, as it comes out."""
        return self.augmentation.check(self._shape_before())

    @property
    def chunk(self) -> int:
        """How many items are best read at once; fewer where they are large."""
        return min(_CHUNK, max(1, _VALUES // math.prod(self._shape_before())))

    def _shape_before(self) -> tuple[int, ...]:
        if self._item_shape is None:
            # Only now is there a shape to compare others with.
            self._item_shape = tuple(self._read([int(self.places[0])])[0].shape[1:])
        return self._item_shape

    def __getitem__(self, key: int | Draw) -> NoisyBatch:
        """One item, without a batch dimension."""
        batch = self.__getitems__([key])
        x_0 = None if batch.x_0 is None else batch.x_0[0]
        return NoisyBatch(batch.x_n[0], batch.sigma_n[0], batch.index[0], x_0, batch.correlation)

    def __getitems__(self, keys: Sequence[int | Draw]) -> NoisyBatch:
        """A batch.

        Args:
            keys: The items' places in this set; with the epoch, if there is augmentation.
        """
        draws = [key if isinstance(key, Draw) else Draw(int(key), 0) for key in keys]
        if self._any_size and len(draws) > 1:
            return collate([self[draw] for draw in draws])
        places, epochs = zip(*draws, strict=True)
        rows = torch.tensor(places)
        index = self.places[rows]
        x_0 = None
        if self._kept is not None:
            # index_select is five times as fast as indexing.
            x_n, sigma_n = (
                k.index_select(0, rows) if isinstance(k, Tensor) else k[places[0]][None] for k in self._kept
            )
        else:
            x_n, sigma_n, x_0 = self._make(index.tolist())
        x_0 = x_0 if self.with_clean else None
        # A map of the level and the clean image move with the pixels; a level per item does not.
        parts = [part for part in (x_n, sigma_n, x_0) if part is not None and part.ndim > 1]
        parts = self.augmentation(parts, index.tolist(), epochs)
        x_n = parts.pop(0)
        sigma_n = parts.pop(0) if sigma_n.ndim > 1 else sigma_n
        return NoisyBatch(x_n, sigma_n, index, parts.pop(0) if x_0 is not None else None, self.correlation)

    def clean(self, rows: Sequence[int]) -> Tensor:
        """Clean items ``(B, *shape)``, for evaluation only; a crop is the one of epoch 0."""
        if self._any_size and len(rows) > 1:
            return torch.cat([self.clean([row]) for row in rows])
        index = self.places[torch.as_tensor(rows)].tolist()
        return self.augmentation.for_evaluation()([self._read(index)[0]], index, [0] * len(index))[0]

    def scan(self, rank: int = 0, ranks: int = 1) -> float:
        """Reads every item once, so that what is wrong with one of them shows before training begins.

        Args:
            rank: Reads every ``ranks``-th item, from this one on.
            ranks: Number of processes that share the work.

        Returns:
            The largest level that was read.

        Raises:
            UserError: Something is wrong; the message names the first bad item and counts the others.
        """
        self._shape_before()
        # White noise goes with any item, so there is no need to make it.
        read = self._read if self.correlation is None else self._make
        return max(self._each(range(rank, len(self), ranks), lambda rows, index: float(read(index)[1].max())))

    def keep(self) -> float:
        """As :meth:`scan`, and keeps the noisy items in memory: from then on reading is a copy."""
        if self._any_size:
            return self._keep_any_size()
        x_n = torch.empty(len(self), *self._shape_before())
        first = self._read([int(self.places[0])])[1]
        sigma_n = torch.empty(len(self), *first.shape[1:])

        def store(rows: range, index: list[int]) -> float:
            x, sigma, _ = self._make(index)
            x_n[rows.start : rows.stop] = x
            sigma_n[rows.start : rows.stop] = sigma
            return float(sigma.max())

        largest = max(self._each(range(len(self)), store))
        self._kept = x_n, sigma_n
        return largest

    def _keep_any_size(self) -> float:
        x_n, sigma_n = ([torch.empty(0)] * len(self) for _ in range(2))

        def store(rows: range, index: list[int]) -> float:
            x, sigma, _ = self._make(index)
            x_n[rows[0]], sigma_n[rows[0]] = x[0], sigma[0]
            return float(sigma.max())

        self._shape_before()
        largest = max(self._each(range(len(self)), store))
        self._kept = x_n, sigma_n
        return largest

    def _each(self, rows: range, use: Callable[[range, list[int]], float]) -> list[float]:
        """Reads all items in chunks, with threads where that helps, and gathers what is wrong."""

        def work(chunk: range) -> tuple[float, list[UserError]]:
            places = self.places[chunk.start : chunk.stop : chunk.step].tolist()
            try:
                return use(chunk, places), []
            except UserError as error:
                return 0.0, self._errors(places) or [error]

        size = 1 if self._any_size else self.chunk
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            results = list(pool.map(work, chunks))
        errors = [error for _, some in results for error in some]
        if errors:
            more = f" ({len(errors) - 1} more items are bad too)" if len(errors) > 1 else ""
            raise UserError(f"{errors[0]}{more}")
        return [value for value, _ in results] or [0.0]

    def _errors(self, places: Iterable[int]) -> list[UserError]:
        errors = []
        for place in places:
            try:
                self._read([place])
            except UserError as error:
                errors.append(error)
        return errors

    def _make(self, index: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy items, their levels, and the items before the noise."""
        items, sigma_n = self._read(index)
        if not self.inject:
            return items, sigma_n, items
        return inject_noise(items, sigma_n, index, self.seed, self.stream, self.correlation), sigma_n, items

    def _read(self, index: list[int]) -> tuple[Tensor, Tensor]:
        """Items as they are before the noise, and their levels."""
        levels: list[Tensor] | Tensor = []
        # Where noise is in the data, all that comes before it only moves pixels, and those of maps too.
        move = None if self.inject else self.transform
        several = self.base.take(index) if isinstance(self.base, ScaledImages) and self.sigma_n is not None else None
        if isinstance(self.base, ArrayDataset):
            items: Sequence[Tensor] | Tensor = self.base.take(index)
            if self.sigma_n is None:
                if self.base.sigma_n is None:
                    raise self._no_level(index[0])
                levels = self.base.sigma_n[index]
        elif several is not None:
            items = several
        else:
            found = [self.base[i] for i in index]
            items = [self._as_tensor(i, item) for i, item in zip(index, found, strict=True)]
            if self.sigma_n is None:
                levels = [self._level(i, item) for i, item in zip(index, found, strict=True)]
                levels = [level if move is None or level.ndim < 3 else move(level) for level in levels]
        if self.transform is not None:
            items = [self.transform(item) for item in items]
        stacked = items if isinstance(items, Tensor) else self._stack(index, items)
        if self._any_size:
            self._check_crop(index[0], tuple(stacked.shape[1:]))
        self._check(index, stacked)
        if isinstance(self.sigma_n, LevelMaps):
            levels = [self.sigma_n.read(i, stacked.shape[1:], move) for i in index]
        if isinstance(self.sigma_n, Tensor):
            return stacked, self.sigma_n[index]  # these were checked when they were read
        if not isinstance(levels, Tensor):
            self._check_level_shapes(index, levels, stacked)
            levels = torch.stack(levels)
        self._check_levels(index, levels, stacked)
        return stacked, levels

    def _name(self, index: int) -> str:
        names = getattr(self.base, "names", None)
        return f"item {index}" if names is None else f"item {index} ({names[index]})"

    def _as_tensor(self, index: int, item: Any) -> Tensor:  # noqa: ANN401
        item = item[0] if isinstance(item, (tuple, list)) else item
        if isinstance(item, np.ndarray) and item.dtype != object:
            item = torch.from_numpy(np.ascontiguousarray(item))
        if not isinstance(item, Tensor) or not item.is_floating_point():
            kind = item.dtype if isinstance(item, Tensor) else type(item).__name__
            raise UserError(
                f"{self._name(index)} of the data is of type {str(kind).removeprefix('torch.')}: give float tensors, "
                "images as (C, H, W) in [-1, 1] (of 8-bit values v that is v / 127.5 - 1)"
            )
        return item.float()

    def _no_level(self, index: int) -> UserError:
        return UserError(
            f"data.sigma is not set and {self._name(index)} of the data is not a pair (x_n, sigma_n) with a float "
            "sigma_n: set data.sigma to the level of the noise, or give such pairs"
        )

    def _level(self, index: int, item: Any) -> Tensor:  # noqa: ANN401
        level = item[1] if isinstance(item, (tuple, list)) and len(item) == 2 else None
        level = torch.from_numpy(level) if isinstance(level, np.ndarray) and level.dtype != object else level
        # An integer is most likely a class label, and must not pass for a noise level.
        if isinstance(level, (float, np.floating)) or (isinstance(level, Tensor) and level.is_floating_point()):
            return torch.as_tensor(level, dtype=torch.float32)
        raise self._no_level(index)

    def _stack(self, index: list[int], items: Sequence[Tensor]) -> Tensor:
        shape = tuple(items[0].shape) if self._any_size else self._item_shape or tuple(items[0].shape)
        for i, item in zip(index, items, strict=True):
            if tuple(item.shape) != shape:
                raise UserError(
                    f"{self._name(i)} has shape {tuple(item.shape)} but others have {shape}: bring all images to one "
                    "size with data.transform, for example SmallestMaxSize and CenterCrop, or cut parts of one size "
                    "out of them with data.augment, for example crop:64"
                )
        return torch.stack(list(items))

    def _check_crop(self, index: int, shape: tuple[int, ...]) -> None:
        try:
            self.augmentation.check(shape)
        except UserError as error:
            raise UserError(f"{self._name(index)}: {error}") from None

    def _check(self, index: list[int], items: Tensor) -> None:
        flat = items.flatten(1)
        is_image = self.inject and items.ndim >= 4
        limit = 1 + _SLACK if is_image else _BEYOND
        # Written so that NaN fails too.
        bad = ~(flat.abs().amax(dim=1) <= limit)
        if bad.any():
            k = int(bad.nonzero()[0])
            low, high = flat[k].min().item(), flat[k].max().item()
            must = "clean images must be in [-1, 1]" if is_image else "data must be finite and on the scale of [-1, 1]"
            remedy = "scale the data, for example 8-bit values v to v / 127.5 - 1"
            if isinstance(self.base, ScaledImages):
                remedy = "set data.range to the range of the data in their own units, or data.sigma_units to data"
            raise UserError(f"{self._name(index[k])} has values from {low:.4g} to {high:.4g}, but {must}: {remedy}")

    def _check_level_shapes(self, index: list[int], levels: Sequence[Tensor], items: Tensor) -> None:
        for i, level in zip(index, levels, strict=True):
            if level.shape != levels[0].shape or (level.ndim > 0 and level.shape != items.shape[1:]):
                raise UserError(
                    f"{self._name(i)} has a sigma_n of shape {tuple(level.shape)}: give a number for every item, or a "
                    f"map with the item's shape {tuple(items.shape[1:])}"
                )

    def _check_levels(self, index: list[int], levels: Tensor, items: Tensor) -> None:
        if levels.ndim > 1:
            self._check_level_shapes(index, list(levels), items)
        if levels.ndim > 1 and self.correlation is not None:
            raise UserError(
                f"{self._name(index[0])} has a map of the level and data.correlation is set: noise either differs "
                "between pixels or is correlated, so leave one out"
            )
        flat = levels.reshape(len(levels), -1)
        bad = ~((flat >= 0) & (flat <= LARGEST_SIGMA)).all(dim=1)
        if bad.any():
            k = int(bad.nonzero()[0])
            worst = flat[k][~((flat[k] >= 0) & (flat[k] <= LARGEST_SIGMA))][0].item()
            raise UserError(
                f"{self._name(index[k])} has sigma_n = {worst:g}: give a standard deviation >= 0 on the scale of data "
                "in [-1, 1] (8-bit units divided by 127.5)"
            )
