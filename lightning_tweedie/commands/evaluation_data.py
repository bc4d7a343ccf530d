"""What samples and restorations are compared with: folders and files, stored statistics, the data of a data module.

Lightning is loaded only for a data module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from lightning_tweedie.data.batch import NoisyBatch
    from lightning_tweedie.datamodules import NoisyDataModule
    from lightning_tweedie.evaluation.noisy_images import NoisyImages
    from lightning_tweedie.evaluation.processes import Processes
    from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
    from lightning_tweedie.metrics.features import FeatureExtractor

__all__ = [
    "Reference",
    "check_training",
    "find_extractor",
    "held_out",
    "open_data_module",
    "open_generated",
    "open_noisy",
    "open_reference",
    "pick",
]


def open_data_module(path: str, processes: Processes, setting: str = "data") -> NoisyDataModule:
    """Makes the data module that a configuration describes, and opens its data. Every process must ask.

    Args:
        path: A YAML file: a data module's own (``class_path`` and ``init_args``), or one of a run or an experiment,
            whose ``data`` is used.
        processes: Of these the first downloads what is missing, if the configuration allows it.
        setting: The option that gave the path, for messages.

    Raises:
        UserError: The file is missing or no such configuration, or a setting in it is wrong.
    """
    try:
        module = None
        with processes.together():
            module = _make_data_module(Path(path).expanduser())
            if processes.is_first:
                module.prepare_data()
        assert module is not None
        with processes.together():
            module.setup("test")
        return module
    except UserError as error:
        raise UserError(f"{setting} = {path!r}: {error}") from None


def _make_data_module(path: Path) -> NoisyDataModule:
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    from lightning_tweedie.commands.parse_error import one_sentence, user_error_in
    from lightning_tweedie.datamodules import NoisyDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(NoisyDataModule, "data", required=True)
    try:
        return parser.instantiate(parser.parse_object({"data": _read_settings(path)}))["data"]
    except ArgumentError as error:
        raise UserError(one_sentence(str(error))) from None
    except ValueError as error:
        raise (user_error_in(error) or error) from None


def _read_settings(path: Path) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of the data module."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the YAML file of a data module or of a run, such as "
            "runs/.../config.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"this is not YAML: {error}") from None
    content = content.get("data", content) if isinstance(content, dict) else content
    if isinstance(content, str) and content.endswith((".yaml", ".yml")):
        return _read_settings(path.parent / content)  # as the configurations of experiments name it
    if not isinstance(content, dict) or "class_path" not in content:
        raise UserError(
            "this describes no data module; give a YAML file with class_path and init_args, or one with `data:`, such "
            "as a run's config.yaml"
        )
    return content


def find_extractor(name: str, processes: Processes) -> FeatureExtractor:
    """The network of the features. Every process must ask.

    Args:
        name: See ``lightning_tweedie.metrics.features.resolve_extractor``.
        processes: Of these the first downloads its weights, if need be.

    Raises:
        UserError: It cannot be had.
    """
    from lightning_tweedie.metrics.features import resolve_extractor

    found = None
    with processes.together():
        found = resolve_extractor(name) if processes.is_first else None
    with processes.together():
        found = found or resolve_extractor(name)
    return found


def _open(path: str, setting: str, noisy: bool = False) -> Dataset[Tensor]:
    """The images at a place that an option gave."""
    from lightning_tweedie.data.image_source import open_images

    if not Path(path).expanduser().exists():
        raise UserError(
            f"{setting} = {path!r} does not exist: give a folder or an archive of images, or a file .npz or .npy"
        )
    return open_images(path, noisy)


def pick(total: int, count: int | None, seed: int, stream: str, setting: str) -> list[int]:
    """Numbers of ``count`` items out of ``total``, chosen by the seed, ascending.

    Args:
        total: Number of items.
        count: How many are wanted; all when None.
        seed: Decides which.
        stream: What the items are: choices among different things are independent.
        setting: The option that gave ``count``, for messages.

    Raises:
        UserError: There are not so many.
    """
    from lightning_tweedie.randomness import item_generator

    if count is None or count == total:
        return list(range(total))
    if count > total:
        raise UserError(f"{setting} = {count} is more than the {total} images there are: give fewer, or leave it out")
    return sorted(item_generator(seed, f"evaluate/{stream}", 0).permutation(total)[:count].tolist())


def open_generated(path: str) -> Dataset[Tensor]:
    """Generated images: a folder (of one from ``sample`` its floats), an archive, an ``.npz`` or ``.npy``.

    Raises:
        UserError: They are not there, or not as they should be.
    """
    from lightning_tweedie.metrics.feature_statistics import FeatureStatistics

    if FeatureStatistics.is_statistics(Path(path).expanduser()):
        raise UserError(f"generated = {path!r} holds statistics, not images: give the images themselves")
    return _open(path, "generated")


@dataclass(frozen=True)
class Reference:
    """Clean images, or statistics that were made of such.

    Args:
        name: What messages call them.
        images: The images; None if there are only statistics.
        indices: Numbers of those that are used.
        statistics: Statistics made earlier; None if there are only images. Beside images they are those of others, a
            mean and a covariance, perhaps of more images than these.
    """

    name: str
    images: Dataset[Tensor] | None
    indices: list[int]
    statistics: FeatureStatistics | None = None

    @property
    def n(self) -> int | None:
        """How many images, where that is known."""
        if self.images is not None or self.statistics is None:
            return len(self.indices)
        return self.statistics.n

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first image."""
        assert self.images is not None
        return tuple(self.images[self.indices[0]].shape)


def open_reference(
    path: str | None,
    data: NoisyDataModule | None,
    count: int | None,
    seed: int,
    settings: tuple[str, str] = ("reference", "num_reference"),
) -> Reference:
    """What generated images are compared with.

    Args:
        path: A folder, an archive or a file of images, of statistics, or, as ADM's, of both; None: the clean images of
            the data module.
        data: A data module whose data are open.
        count: How many images; all when None.
        seed: Decides which.
        settings: The options that gave ``path`` and ``count``, for messages.

    Raises:
        UserError: They are not there, or not as they should be.
    """
    from lightning_tweedie.data.image_source import holds_images
    from lightning_tweedie.metrics.feature_statistics import FeatureStatistics

    statistics = None
    if path is not None and FeatureStatistics.is_statistics(Path(path).expanduser()):
        statistics = FeatureStatistics.load(Path(path).expanduser())
    if path is None:
        assert data is not None
        images, name = data.reference_set(), "the training images of --data"
        if images is None:
            raise UserError(
                "the data module's data are noisy by nature (inject is false), so there are no clean images to compare "
                "with: give some with --reference, or ask for proximal_fid and proximal_kid, which need none"
            )
    elif statistics is not None and not holds_images(path):
        if count is not None:
            raise UserError(
                f"{settings[1]} = {count} chooses images, and {settings[0]} = {path!r} holds statistics: leave it out"
            )
        return Reference(path, None, [], statistics)
    else:
        images, name = _open(path, settings[0]), path
    picked = pick(len(images), count, seed, "reference", settings[1])  # type: ignore[arg-type]
    return Reference(name, images, picked, statistics)


def open_noisy(
    path: str | None, sigma: float | None, data: NoisyDataModule | None, count: int | None, seed: int
) -> NoisyImages:
    """Noisy training images.

    Args:
        path: A folder, an archive or a file of images; None: the noisy training set of the data module.
        sigma: Their noise level, on the scale of data in [-1, 1]; that of each item of a data module is known.
        data: A data module whose data are open.
        count: How many; all when None.
        seed: Decides which.

    Raises:
        UserError: They are not there, or not as they should be.
    """
    import torch

    from lightning_tweedie.evaluation.noisy_images import NoisyImages, NoisyView
    from lightning_tweedie.noise.sigma import parse_sigma

    images: Any
    level: Callable[[int], Tensor]
    correlation = None
    if path is None:
        assert data is not None
        view = NoisyView(data.noisy_set())
        images, level, largest, correlation = view, view.level, data.sigma_n, view.noisy.correlation
    else:
        largest = parse_sigma(sigma, "sigma")  # type: ignore[assignment, arg-type]
        images, constant = _open(path, "noisy", noisy=True), torch.tensor(largest)
        level = lambda index: constant  # noqa: E731
    if largest == 0:
        raise UserError("proximal measures put the noise of the data into samples, and sigma is 0: leave them out")
    few = [images[i] for i in range(min(len(images), 8))]
    grey = all(image.shape[0] == 1 or bool((image == image[:1]).all()) for image in few)
    chosen = pick(len(images), count, seed, "noisy", "num_reference")
    return NoisyImages(images, chosen, level, largest, grey, correlation)


def check_training(path: str, data: NoisyDataModule, restoring: bool, processes: Processes) -> None:
    """Compares the settings of a data module with those that a checkpoint was trained with, where it knows them.

    Args:
        path: The checkpoint.
        data: A data module whose data are open.
        restoring: Whether items are to be restored that the training has not seen.
        processes: Of these the first warns of another noise.

    Raises:
        UserError: Items that would be restored were trained on.
    """
    from lightning_tweedie.checkpoint import data_settings

    # A class of another name has other data.
    state = data_settings(path, type(data).__qualname__)
    settings = state.get("noise") if isinstance(state, dict) else None
    if not isinstance(settings, dict):
        return
    if restoring and _kept_out_of_training(data):
        for name, now in (("seed", data.seed), ("holdout", data.holdout)):
            # The seed puts all items in an order, of which the first ones are kept out.
            if settings.get(name) is None or now == settings[name] or (name == "holdout" and now < settings[name]):
                continue
            raise UserError(
                f"data.{name} = {now} was {settings[name]} when {path!r} was trained, so that the held-out items of "
                f"--data are in part those of its training: set data.{name} to {settings[name]}, or leave restoration "
                "out of --metrics"
            )
    for name in ("sigma", "correlation", "clean_fraction"):
        now = getattr(data, name)
        if name in settings and settings[name] != now and processes.is_first:
            print(
                f"warning: data.{name} = {now} was {settings[name]} when {path!r} was trained: proximal distances "
                "and restorations are about another noise than that of the training",
                file=sys.stderr,
            )


def _kept_out_of_training(data: NoisyDataModule) -> bool:
    """Whether the items that are restored come from the training set, of which they have been kept out."""
    loader: Any = data.test_dataloader()
    return bool(loader) and loader.dataset.base is data.noisy_set().base


def held_out(data: NoisyDataModule, count: int, seed: int) -> NoisyBatch:
    """Noisy items that no training has seen, with the clean ones, chosen by the seed.

    Args:
        data: A data module whose data are open. Its test set is used, or the held-out items if it has none.
        count: How many; fewer if there are not so many.
        seed: Decides which.

    Raises:
        UserError: There are none, or their clean versions are not known.
    """
    from torch import Tensor
    from torch.utils.data import DataLoader

    from lightning_tweedie.randomness import item_generator

    loader = data.test_dataloader()
    if not isinstance(loader, DataLoader):
        raise UserError(
            "restoration needs items that were not trained on, and the data module keeps none: set data.holdout above "
            "0, or give it a test set"
        )
    items: Any = loader.dataset
    if not items.with_clean:
        raise UserError(
            "restoration compares with clean images, and the data are noisy by nature (data.inject is false): leave "
            "`restoration` out of --metrics"
        )
    order = item_generator(seed, "evaluate/restoration", 0).permutation(len(items))
    if isinstance(items.sigma_n, Tensor):
        order = order[(items.sigma_n[items.places[order]] > 0).numpy()]
    if not len(order):
        raise UserError("restoration needs noisy items, and those of the data module are all clean: set data.sigma")
    return items.__getitems__(order[:count].tolist())
