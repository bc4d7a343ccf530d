"""`evaluate`: the numbers of a paper's table, from images or from checkpoints."""

import difflib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.process_group import joined, told_once
from lightning_tweedie.commands.result_files import ResultFiles
from lightning_tweedie.commands.samplers import SamplerName, make_sampler
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.metric_names import METRICS, PROXIMAL

if TYPE_CHECKING:
    from lightning_tweedie.commands.evaluation_data import Reference
    from lightning_tweedie.commands.subjects import Checkpoint
    from lightning_tweedie.datamodules import NoisyDataModule

__all__ = ["evaluate", "main"]

SAMPLES = 10_000
"""So many samples are made of a checkpoint unless the user says otherwise."""
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
    sigma_max: float = 80.0,
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
            Memorisation always looks through all clean images of --data, or through all of --reference without them.
        sampler: Solvers of the reverse process: heun, euler, dpmsolver++, deis, ancestral,
            sde-dpmsolver++.
        steps: Numbers of noise levels.
        sigma_max: The first of them. A distilled generator wants its sigma_init here, and one step.
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
    wanted = _choices("metrics", metrics, (*METRICS, "restoration"))
    of_features = [metric for metric in wanted if metric in METRICS]
    proximal = [metric for metric in of_features if metric in PROXIMAL]
    clean = [metric for metric in of_features if metric not in PROXIMAL]
    solvers, levels = _choices("sampler", sampler, get_args(SamplerName)), _numbers("steps", steps)
    samplings = _choices("sampling", sampling, SAMPLINGS)
    _check_ranges(
        num=(num, 2),
        num_reference=(num_reference, 2),
        num_restored=(num_restored, 1),
        draws=(draws, 1),
        batch_size=(batch_size, 1),
    )
    sets, paths = _paths(generated), _paths(ckpt_path)
    if not sets and not paths:
        raise UserError("there is nothing to measure: give images with --generated or checkpoints with --ckpt_path")
    if clean and reference is None and data is None:
        raise UserError(
            f"{clean[0]} compares with clean images: give some with --reference, or the data module with --data, or "
            "ask for other --metrics"
        )
    if sets and not of_features:
        raise UserError("restoration measures checkpoints, not images: leave --generated out, or add to --metrics")
    if "restoration" in wanted and (not paths or data is None):
        raise UserError(
            "restoration needs a checkpoint and held-out data: give --ckpt_path and --data, or leave it out of "
            "--metrics"
        )
    _check_noisy(proximal, noisy, sigma, data)
    files = ResultFiles(out, overwrite)
    with joined(device) as (processes, chosen):
        from lightning_tweedie.commands import evaluation_data as opening
        from lightning_tweedie.commands.measurement import Comparisons, Restorations
        from lightning_tweedie.commands.subjects import GeneratedImages, Samples, Subject, short_names
        from lightning_tweedie.evaluation.work import Work

        work = Work(processes, chosen, seed, batch_size, store=files.samples)
        module = None if data is None else opening.open_data_module(data, processes)
        todo: list[Comparisons | Restorations] = []
        with processes.together():
            names = dict(zip([*sets, *paths], short_names([*sets, *paths]), strict=True))
            subjects: list[Subject] = []
            for path in sets:
                images = opening.open_generated(path)
                picked = opening.pick(len(images), num, seed, "generated", "num")  # type: ignore[arg-type]
                subjects.append(GeneratedImages(names[path], images, picked))
            truncated = bool(of_features) and "truncated" in samplings
            checkpoints = [_open_checkpoint(path, names[path], average, allow or [], truncated) for path in paths]
            if module is not None:
                for path in paths:
                    opening.check_training(path, module, "restoration" in wanted, processes)
            subjects += [
                Samples(
                    checkpoint,
                    make_sampler(solver, count, sigma_max),  # type: ignore[arg-type]
                    way == "truncated",
                    SAMPLES if num is None else num,
                )
                for checkpoint in checkpoints
                for solver, count, way in product(solvers, levels, samplings)
            ]
            clean_set, noisy_set = None, None
            if any(metric != "memorisation" for metric in clean):
                clean_set = opening.open_reference(reference, module, num_reference, seed)
            training = _open_training(reference, module, clean_set) if "memorisation" in clean else None
            if proximal:
                noisy_set = opening.open_noisy(noisy, sigma, module, num_reference, seed)
            if "restoration" in wanted:
                assert module is not None
                todo.append(Restorations(checkpoints, opening.held_out(module, num_restored, seed), levels, draws))
        if of_features:
            network = opening.find_extractor(extractor, processes)
            todo.insert(0, Comparisons(of_features, subjects, network, clean_set, training, noisy_set))
        with processes.together():
            for part in todo:
                part.check()
        done = [part.run(work) for part in todo]
        with processes.together():
            if processes.is_first:
                rows = [row for found, _ in done for row in found]
                files.write(rows, {name: picture for _, its in done for name, picture in its.items()})


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


def _check_ranges(**settings: tuple[int | None, int]) -> None:
    """Refuses numbers below their bounds."""
    for name, (value, least) in settings.items():
        if value is not None and value < least:
            raise UserError(f"{name} = {value} is too small: give at least {least}")


def _check_noisy(proximal: list[str], noisy: str | None, sigma: float | None, data: str | None) -> None:
    """Finds what contradicts itself in the options about noisy images."""
    if sigma is not None and noisy is None:
        raise UserError(f"sigma = {sigma:g} is the noise level of --noisy, which is missing: give both")
    if noisy is not None and sigma is None:
        raise UserError(f"noisy = {noisy!r} has a noise level: give it with --sigma, on the scale of [-1, 1]")
    if proximal and noisy is None and data is None:
        raise UserError(
            f"{proximal[0]} compares with noisy training images: give the data module with --data, or images and their "
            "level with --noisy and --sigma"
        )
    if noisy is not None and not proximal:
        raise UserError(f"noisy = {noisy!r} is used by proximal_fid and proximal_kid alone: name them in --metrics")


def _open_checkpoint(path: str, name: str, average: int, allow: Sequence[str], truncated: bool) -> "Checkpoint":
    from lightning_tweedie.checkpoint import load_denoiser
    from lightning_tweedie.commands.subjects import Checkpoint

    trained = load_denoiser(path, allow, average=average)
    if len(trained.shape) != 3 or trained.shape[0] not in (1, 3):
        raise UserError(f"the checkpoint {path!r} is about data of shape {trained.shape}, not about images")
    if truncated and trained.sigma_n == 0:
        raise UserError(
            f"sampling = truncated stops at the noise level of the training data, and those of {path!r} were clean: "
            "leave it out"
        )
    return Checkpoint(name, path, trained, average)


def _open_training(path: str | None, module: "NoisyDataModule | None", reference: "Reference | None") -> "Reference":
    """All images of the training, any of which may have been learnt by heart.

    Args:
        path: What ``--reference`` says.
        module: The data module; its clean images are those of the training, where it knows them.
        reference: What samples are compared with otherwise, which may be the same.
    """
    from lightning_tweedie.commands.evaluation_data import open_reference

    source = path if module is None or module.reference_set() is None else None
    if reference is not None and source == path and len(reference.indices) == len(reference.images or []):  # type: ignore[arg-type]
        return reference
    return open_reference(source, module, None, 0)


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie evaluate``."""
    with told_once():
        call_with(evaluate, argv)
