"""A configuration that `fit` trains as it is, made for the images at hand."""

from __future__ import annotations

from typing import Any

from lightning_tweedie.inspection.survey import CROP, Survey

__all__ = ["suggest"]

#: An epoch has so many batches at least; where there are few images, by crops.
_BATCHES = 100


def suggest(found: Survey, sigma: float, gpu: bool) -> dict[str, Any]:
    """The whole configuration of a training on noisy images.

    Args:
        found: The images.
        sigma: Noise level, in the unit of the survey.
        gpu: Whether there is one: on processors alone the network is small and the training short.

    Returns:
        What is written as YAML; see ``configs/experiment/folder.yaml`` for one made by hand.
    """
    data, size = _data(found, sigma, gpu)
    # Without a GPU half an hour on a core for crops of 64 x 64.
    steps = 100_000 if gpu else 4000 if min(size) > 40 else 10_000
    names = ("SampleGrid", *(("RestorationGrid",) if data["init_args"]["holdout"] else ()))
    callbacks = [{"class_path": f"lightning_tweedie.callbacks.{name}"} for name in names]
    return {
        "name": "inspected",
        "model": _model(found.channels, size, gpu),
        "data": data,
        "trainer": {
            "max_steps": steps,
            "gradient_clip_val": 1.0,
            "check_val_every_n_epoch": None,
            "val_check_interval": steps // (10 if gpu else 4),
            "log_every_n_steps": 20,
            "callbacks": callbacks if found.channels in (1, 3) else [],
        },
    }


def _data(found: Survey, sigma: float, gpu: bool) -> tuple[dict[str, Any], tuple[int, int]]:
    """The data module, and the height and width of what the network sees."""
    height, width = found.smallest
    settings: dict[str, Any] = {"root": str(found.root), "channels": found.channels, "inject": False}
    settings |= {name: value for name, value in (("range", found.range), ("key", found.key)) if value is not None}
    settings["sigma"] = float(f"{sigma:.4g}")
    if not found.scaled:
        settings["sigma_units"] = "data"  # and the range of the values is measured
    settings["holdout"] = min(500, max(1, found.count // 10), found.count - 1)
    batch, count = 64 if gpu else 16, found.count - settings["holdout"]
    if len(found.sizes) > 1 or max(height, width) > CROP:
        # Whole pixels are cut out; resizing would correlate the noise.
        side = min(height, width, CROP)
        height = width = side - (side % 4 if side >= 16 else 0)
        settings["augment"] = [f"crop:{height}", "hflip"]
        settings["crops"] = max(1, -(-_BATCHES * batch // max(1, count)))
    else:
        batch = max(1, min(batch, count))
    settings["batch_size"] = batch
    return {"class_path": "lightning_tweedie.datamodules.Images", "init_args": settings}, (height, width)


def _model(channels: int, size: tuple[int, int], gpu: bool) -> dict[str, Any]:
    # Folding four pixels into one makes a network four times as fast.
    fold = 2 if all(side % 2 == 0 and side >= (48 if gpu else 24) for side in size) else 1
    deep = min(size) // fold >= 24
    network = {
        "channels": channels,
        "width": 128 if gpu else 32,
        "multipliers": [1, 2, 2] if deep else [1, 2],
        "blocks": 3 if gpu else 1,
        "attention": [1],
        "patch": fold,
    }
    backbone = {"class_path": "lightning_tweedie.networks.UNet", "init_args": network}
    warmup = {"class_path": "lightning_tweedie.lr_schedule.WarmupCosine", "init_args": {"warmup": 2000 if gpu else 300}}
    arguments = {
        "denoiser": {"class_path": "lightning_tweedie.denoiser.Denoiser", "init_args": {"backbone": backbone}},
        "objective": _OBJECTIVE,
        "ema": {"class_path": "lightning_tweedie.ema.EMA", "init_args": {"half_lives": [2000 if gpu else 500]}},
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.0005 if gpu else 0.001}},
        "lr_scheduler": warmup,
    }
    return {"class_path": "lightning_tweedie.module.TweedieModule", "init_args": arguments}


#: That of ``configs/objective/default.yaml``, which says what it is for; a test holds them together.
_OBJECTIVE = {
    "class_path": "lightning_tweedie.objectives.Objective",
    "init_args": {
        "ambient": {
            "class_path": "lightning_tweedie.objectives.AmbientScoreMatching",
            "init_args": {"weight": 2.0, "stable": True},
        },
        "consistency": None,
        "replay": {
            "class_path": "lightning_tweedie.objectives.PosteriorReplay",
            "init_args": {
                **{"start": 0.25, "draw_start": 0.8, "ramp": 0.0},
                **{"share": 0.1875, "refresh": 0.125, "residual": 0.25, "stable": True},
                "sampler": {"class_path": "lightning_tweedie.sampling.DPMSolverPP2M", "init_args": {"steps": 5}},
            },
        },
        "extra": [
            {"class_path": "lightning_tweedie.objectives.Sure", "init_args": {"share": 0.125, "stable": True}},
        ],
    },
}
