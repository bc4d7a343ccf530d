"""`evaluate`: the numbers of a paper's table, from images or from checkpoints."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.process_group import joined, told_once
from lightning_tweedie.commands.result_files import ResultFiles
from lightning_tweedie.commands.samplers import SamplerName, make_sampler
from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    import torch

    from lightning_tweedie.commands.measurement import Measurement
    from lightning_tweedie.commands.subjects import Checkpoint, Subject
    from lightning_tweedie.evaluation.processes import Processes

__all__ = ["evaluate", "main"]

SAMPLES = 10_000
"""So many samples are made of a checkpoint unless the user says otherwise."""
METRICS = ("fid", "kid", "prc", "proximal_fid", "proximal_kid", "memorisation", "restoration")
SAMPLINGS = ("full", "truncated")


def evaluate(
    out: str,
    generated: str | None = None,
    ckpt_path: str | None = None,
    reference: str | None = None,
    data: str | None = None,
    noisy: str | None = None,
    sigma: float | None = None,
    metrics: str = "fid,kid,prc",
    extractor: str = "inception",
    num: int | None = None,
    num_reference: int | None = None,
    sampler: str = "heun",
    steps: str = "18",
    sampling: str = "full",
    average: int = 0,
    num_restored: int = 64,
    draws: int = 19,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    overwrite: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Measures generated images, or the samples and restorations of checkpoints.

    Several values of one option are separated by commas: all combinations go into one table. Beside the JSON file are
    written the same values as a CSV table (result.csv) and as a table to read (result.md), a plot if there is
    something to compare (result.png), the closest pairs of samples and training images (result_neighbours.png) and the
    calibration of restorations (result_calibration.png). Samples and features are kept in result_samples/: the same
    command continues after an interruption and a later one finds them again. Started with torchrun, several processes
    share the work.

    Args:
        out: The JSON file with the results, for example result.json.
        generated: Images to measure: folders, archives or .npz files.
        ckpt_path: Checkpoints to measure.
        reference: What images are compared with: a folder, an archive or an .npz of clean images, or statistics of
            such (see `lightning_tweedie statistics`); the clean training images of --data when left out.
        data: YAML file of a data module, or a run's config.yaml: gives clean images, noisy ones and held-out ones.
        noisy: Noisy training images for the proximal measures: a folder, an archive or an .npz; those of --data when
            left out.
        sigma: The noise level of --noisy on the scale [-1, 1] (that of 8-bit values divided by 127.5).
        metrics: What to measure: fid, kid, prc (precision, recall, density, coverage), proximal_fid, proximal_kid,
            memorisation, restoration.
        extractor: Network of the features: inception, efficientnet-lite0, efficientnet-lite0-<resolution>, the path of
            a TorchScript file or the import path of a module.
        num: Samples of a checkpoint, 10000 when left out, or how many of the generated images are used, chosen by the
            seed; all when left out.
        num_reference: How many of the reference images, or noisy ones, are used, chosen by the seed; all when left out.
        sampler: Solvers of the reverse process: heun, euler, dpmsolver++, ancestral.
        steps: Numbers of noise levels.
        sampling: full, or truncated at the noise level of the training data, or both.
        average: Which weight average, in the order of ema.half_lives: 0 is the first.
        num_restored: How many held-out items are restored.
        draws: Posterior draws of each.
        seed: Seed of the samples and of every choice.
        batch_size: Images in one pass; changes the memory needed, not the results.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: Replace the files of an earlier call; its samples are kept.
        allow: Packages whose network classes a checkpoint may use, besides this library: their code is run.

    Raises:
        UserError: A setting, a checkpoint, an image or a file is wrong.
    """
    request = _Request(
        images=_paths(generated),
        checkpoints=_paths(ckpt_path),
        metrics=_choices("metrics", metrics, METRICS),
        samplers=_choices("sampler", sampler, get_args(SamplerName)),
        steps=_numbers("steps", steps),
        samplings=_choices("sampling", sampling, SAMPLINGS),
        reference=reference,
        data=data,
        noisy=noisy,
        sigma=sigma,
        extractor=extractor,
        num=num,
        num_reference=num_reference,
        average=average,
        num_restored=num_restored,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        allow=allow or [],
    )
    request.check()
    files = ResultFiles(out, overwrite)
    with joined(device) as (processes, chosen):
        measurement = request.open(processes, chosen, files.samples)
        rows, pictures = measurement.run()
        with processes.together():
            if processes.is_first:
                files.write(rows, pictures)


def _paths(text: str | None) -> list[str]:
    """Paths between commas; a path that exists as it stands, commas and all, is one."""
    if text is None:
        return []
    return [text] if Path(text).expanduser().exists() else [part.strip() for part in text.split(",") if part.strip()]


def _choices(name: str, text: str, known: Sequence[str]) -> list[str]:
    """Words between commas, all of them known."""
    words = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for word in words:
        if word not in known:
            close = "prc" if word in ("precision", "recall", "density", "coverage") else None
            close = close or next(iter(difflib.get_close_matches(word, known, 1)), None)
            guess = f", did you mean {close}?" if close else ""
            raise UserError(f"{name} = {text!r}: {word!r} is unknown{guess} (there are {', '.join(known)})")
    if not words:
        raise UserError(f"{name} = {text!r} names nothing: give one or more of {', '.join(known)}")
    return words


def _numbers(name: str, text: str) -> list[int]:
    """Whole numbers between commas."""
    try:
        numbers = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{name} = {text!r}: give whole numbers from 1, with commas between them, for example 6,12,18")
    return numbers


@dataclass(frozen=True)
class _Request:
    """What the user asks for."""

    images: list[str]
    checkpoints: list[str]
    metrics: list[str]
    samplers: list[str]
    steps: list[int]
    samplings: list[str]
    reference: str | None
    data: str | None
    noisy: str | None
    sigma: float | None
    extractor: str
    num: int | None
    num_reference: int | None
    average: int
    num_restored: int
    draws: int
    seed: int
    batch_size: int
    allow: list[str]

    @property
    def of_features(self) -> list[str]:
        """The measures of features."""
        return [metric for metric in self.metrics if metric != "restoration"]

    @property
    def proximal(self) -> list[str]:
        """Those of them that need noisy images."""
        return [metric for metric in self.of_features if metric.startswith("proximal_")]

    @property
    def clean(self) -> list[str]:
        """Those of them that need clean images."""
        return [metric for metric in self.of_features if metric not in self.proximal]

    def check(self) -> None:
        """Finds what contradicts itself, without opening anything.

        Raises:
            UserError: Something does.
        """
        for name, value, least in (
            ("num", self.num, 2),
            ("num_reference", self.num_reference, 2),
            ("num_restored", self.num_restored, 1),
            ("draws", self.draws, 1),
            ("batch_size", self.batch_size, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"{name} = {value} is too small: give at least {least}")
        if not self.images and not self.checkpoints:
            raise UserError("there is nothing to measure: give images with --generated or checkpoints with --ckpt_path")
        if self.clean and self.reference is None and self.data is None:
            raise UserError(
                f"{self.clean[0]} compares with clean images: give some with --reference, or the data module with "
                "--data, or ask for other --metrics"
            )
        if self.sigma is not None and self.noisy is None:
            raise UserError(f"sigma = {self.sigma:g} is the noise level of --noisy, which is missing: give both")
        if self.noisy is not None and self.sigma is None:
            raise UserError(f"noisy = {self.noisy!r} has a noise level: give it with --sigma, on the scale of [-1, 1]")
        if self.proximal and self.noisy is None and self.data is None:
            raise UserError(
                f"{self.proximal[0]} compares with noisy training images: give the data module with --data, or images "
                "and their level with --noisy and --sigma"
            )
        if self.noisy is not None and not self.proximal:
            raise UserError(
                f"noisy = {self.noisy!r} is used by proximal_fid and proximal_kid alone: name them in --metrics"
            )
        if self.images and not self.of_features:
            raise UserError("restoration measures checkpoints, not images: leave --generated out, or add to --metrics")
        if "restoration" in self.metrics and (not self.checkpoints or self.data is None):
            raise UserError(
                "restoration needs a checkpoint and held-out data: give --ckpt_path and --data, or leave it out of "
                "--metrics"
            )

    def open(self, processes: "Processes", device: "torch.device", store: Path) -> "Measurement":
        """Opens everything that is needed, before the long work begins. Every process must ask.

        Raises:
            UserError: Something is missing, damaged or does not go with the rest.
        """
        from lightning_tweedie.commands import evaluation_data
        from lightning_tweedie.commands.measurement import Measurement

        module = None if self.data is None else evaluation_data.open_data_module(self.data, processes)
        with processes.together():
            checkpoints, subjects = self._subjects()
            choice = self.num_reference, self.seed
            reference = evaluation_data.open_reference(self.reference, module, *choice) if self.clean else None
            noisy = evaluation_data.open_noisy(self.noisy, self.sigma, module, *choice) if self.proximal else None
            held_out = None
            if "restoration" in self.metrics:
                assert module is not None
                held_out = evaluation_data.held_out(module, self.num_restored, self.seed)
        extractor = evaluation_data.find_extractor(self.extractor, processes) if self.of_features else None
        measurement = Measurement(
            metrics=self.metrics,
            subjects=subjects,
            checkpoints=checkpoints if held_out is not None else [],
            extractor=extractor,
            reference=reference,
            noisy=noisy,
            held_out=held_out,
            steps=self.steps,
            draws=self.draws,
            seed=self.seed,
            batch_size=self.batch_size,
            device=device,
            processes=processes,
            store=store,
        )
        with processes.together():
            measurement.check()
        return measurement

    def _subjects(self) -> "tuple[list[Checkpoint], list[Subject]]":
        """What is measured."""
        from lightning_tweedie.checkpoint import load_denoiser
        from lightning_tweedie.commands.evaluation_data import open_generated, pick
        from lightning_tweedie.commands.subjects import Checkpoint, GeneratedImages, Samples, short_names

        names = dict(zip(paths := [*self.images, *self.checkpoints], short_names(paths), strict=True))
        subjects: list[Subject] = []
        for path in self.images if self.of_features else []:
            images = open_generated(path)
            chosen = pick(len(images), self.num, self.seed, "generated", "num")  # type: ignore[arg-type]
            subjects.append(GeneratedImages(names[path], images, chosen))
        checkpoints = []
        for path in self.checkpoints:
            trained = load_denoiser(path, self.allow, average=self.average)
            if len(trained.shape) != 3 or trained.shape[0] not in (1, 3):
                raise UserError(f"the checkpoint {path!r} is about data of shape {trained.shape}, not about images")
            if "truncated" in self.samplings and trained.sigma_n == 0 and self.of_features:
                raise UserError(
                    f"sampling = truncated stops at the noise level of the training data, and those of {path!r} were "
                    "clean: leave it out"
                )
            checkpoints.append(Checkpoint(names[path], path, trained, self.average))
        if self.of_features:
            count = SAMPLES if self.num is None else self.num
            subjects += [
                Samples(checkpoint, make_sampler(name, steps), sampling == "truncated", count, self.seed)  # type: ignore[arg-type]
                for checkpoint in checkpoints
                for name, steps, sampling in product(self.samplers, self.steps, self.samplings)
            ]
        return checkpoints, subjects


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie evaluate``."""
    with told_once():
        call_with(evaluate, argv)
