"""The LightningModule: denoiser, objective, EMA, optimiser and learning rate in one training loop."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_tweedie.checkpoint import CHECKPOINT_KEY
from lightning_tweedie.compiler import check_compiler
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import DenoiserLike, raise_to_white
from lightning_tweedie.lr_schedule import WarmupCosine
from lightning_tweedie.metrics.restoration import psnr
from lightning_tweedie.objectives import Losses, Objective
from lightning_tweedie.objectives.term import Step, Term
from lightning_tweedie.randomness import SampleNoise, step_generator
from lightning_tweedie.sampling import one_step
from lightning_tweedie.serialization import to_config

__all__ = ["TweedieModule"]

BAND_EDGES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Noise levels that separate the bands in which losses are logged."""


class TweedieModule(LightningModule):
    """Trains a denoiser of clean data from noisy data.

    Every random number of a step is a function of the seed, the rank, the step and the batch, so an
    interrupted run continues bitwise. All passes through the network happen inside ``training_step``.

    Args:
        denoiser: The network with its preconditioning. Its ``sigma_data`` is filled in from the data
            module unless it was given.
        objective: What is minimised; ambient score matching alone when absent.
        ema: Weight averages; one with a half-life of 1000 steps when absent.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the learning-rate schedule, stepped once per optimiser step; constant when
            absent.
        seed: Seed of the training noise.
        compile: Compile the backbones of the denoiser and of its averages with ``torch.compile``: a start that is
            slower by about a minute, and then faster steps. Needs a C++ compiler; what is compiled, and how often, is
            told at :meth:`Denoiser.compile`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective | None = None,
        ema: EMA | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # Under the command line this records the plain configuration. Built in Python, the arguments
        # are live objects, which do not belong into a checkpoint.
        self.save_hyperparameters(logger=False)
        for name, value in list(self.hparams.items()):
            if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
                del self.hparams[name]
        self.denoiser = denoiser
        self.objective = Objective() if objective is None else objective
        self.ema = EMA() if ema is None else ema
        self.ema.attach(denoiser)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.seed = seed
        self._compile = compile
        self.metrics = nn.ModuleDict(
            {f"{stage}/{name}": MeanMetric() for stage in ("val", "test") for name in ("psnr_noisy", "psnr_one_step")}
        )
        self._given_sigma_data = float(denoiser.sigma_data) if denoiser.has_sigma_data else None
        self._data: dict[str, Any] = {}
        self._unchecked: tuple[_Finite, Losses, NoisyBatch] | None = None
        self._optimizer_settings: list[dict[str, Any]] = []

    @property
    def eval_denoiser(self) -> Denoiser:
        """The denoiser that samples, metrics and pictures use: the first EMA."""
        return self.ema.denoiser

    @property
    def sigma_max(self) -> float:
        """Largest training level."""
        return self.objective.sigma_max

    def setup(self, stage: str) -> None:
        """Learns from the data module what the network must know, and refuses what cannot work."""
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise UserError(
                f"trainer.strategy is {type(self.trainer.strategy).__name__}, which splits the weights among the "
                "processes, where the averages of the weights could not follow: use ddp"
            )
        to_config(self.denoiser)  # what checkpoints cannot describe is refused now, not at the first checkpoint
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "sigma_data"):
            self._learn_from(data)
        if self._compile and not self.denoiser.is_compiled:
            check_compiler(self.trainer.strategy.root_device, "model.compile")
            for denoiser in self.modules():
                if isinstance(denoiser, Denoiser):
                    denoiser.compile()

    def _learn_from(self, data: Any) -> None:  # noqa: ANN401 - any data module that tells as much
        if not self.denoiser.has_sigma_data:
            for denoiser in (self.denoiser, *self.ema.averages):
                denoiser.set_sigma_data(data.sigma_data)
        self._data = {"shape": list(data.shape), "sigma_n": float(data.sigma_n), **getattr(data, "noise_kind", {})}
        if (scale := getattr(data, "data_scale", None)) is not None:
            self._data["scale"] = scale.as_dict()
        if data.sigma_n >= self.sigma_max:
            raise UserError(
                f"data.sigma = {data.sigma_n:.4g} is not below sigma_max = {self.sigma_max:.4g}, the largest training "
                "level: data are expected in [-1, 1], so divide a sigma of 8-bit data by 127.5"
            )
        if not self.denoiser.is_compiled:  # nothing is compiled for one item alone
            self._probe(tuple(data.shape))

    def _probe(self, shape: tuple[int, ...]) -> None:
        """Passes one item through the network, so that a network that does not fit fails here."""
        probe = self.eval_denoiser
        x = torch.zeros(1, *shape, device=self.device)
        try:
            with torch.no_grad():
                answer = probe(x, 1.0)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the network does not take data of shape {shape} ({reason}): adapt its settings"
            ) from error
        if answer.shape != x.shape:
            raise UserError(f"the network turns shape {shape} into {tuple(answer.shape[1:])}: they must be equal")

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """The optimiser over the live denoiser and what the objective learns beside it, with its schedule."""
        beside = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        optimizer = self.optimizer([*self.denoiser.parameters(), *beside])
        self._optimizer_settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            total = self.trainer.estimated_stepping_batches
            scheduler.total_steps = int(total) if math.isfinite(total) else None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        total = self.trainer.estimated_stepping_batches
        return min(1.0, self.trainer.global_step / total)

    @property
    def passes(self) -> float:
        """How often the training has seen each item so far, on average; 0 where the loader does not tell its length."""
        loader = self.trainer.train_dataloader
        try:
            batches = len(loader)  # type: ignore[arg-type]
        except TypeError:
            return 0.0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches / batches

    def on_fit_start(self) -> None:
        """Refuses an endless run when a term waits for a share of it."""
        waiting = [name for name, term in self.objective.terms.items() if term.start > 0]  # type: ignore[operator]
        if waiting and not math.isfinite(self.trainer.estimated_stepping_batches):
            raise UserError(
                f"the term `{waiting[0]}` starts after a share of the training, which has no end: set "
                "trainer.max_steps or trainer.max_epochs"
            )

    def on_train_start(self) -> None:
        """A resumed optimiser keeps its state, but its settings are those of the configuration."""
        for optimizer in self.trainer.optimizers:
            for group, settings in zip(optimizer.param_groups, self._optimizer_settings, strict=True):
                # The rate of a schedule is its own affair.
                keep = {"lr"} if self.lr_scheduler else set()
                group.update({k: v for k, v in settings.items() if k not in keep})
                for parameter in group["params"] if settings.get("fused") else ():
                    # Fused optimisers count their steps on the device, others beside it.
                    if "step" in (state := optimizer.state.get(parameter, {})):
                        state["step"] = state["step"].to(parameter.device)
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupCosine):
                for group, lr in zip(config.scheduler.optimizer.param_groups, config.scheduler.get_lr(), strict=True):
                    group["lr"] = lr

    def training_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
        """The objective on one batch, with an EMA as teacher."""
        generator = step_generator(
            self.seed,
            rank=self.global_rank,
            step=self.trainer.global_step,
            micro_batch=batch_idx,
            device=self.device,
        )
        # Dropout draws from torch's global state: for the time of the step that is a function of the same key.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            # torch.manual_seed also looks for every kind of device that there is not, which takes longer than the fork.
            torch.default_generator.manual_seed(generator.initial_seed())
            if self.device.type == "cuda":
                torch.cuda.manual_seed(generator.initial_seed())
            losses: Losses = self.objective(
                self.denoiser,
                batch.x_n,
                batch.sigma_n,
                correlation=batch.correlation,
                teacher=self.ema.teacher,
                progress=self.progress,
                passes=self.passes,
                generator=generator,
                least=batch.least,
            )
        self._unchecked = _Finite(losses.total), losses, batch
        # Between processes gradients are exchanged in the backward pass: a loss that is not finite must not get there.
        if self.trainer.world_size > 1:
            self.on_after_backward()
        if self._logs_this_step:
            self._log_losses(losses, len(batch.x_n))
        return losses.total

    def on_after_backward(self) -> None:
        """Stops at a loss that is not finite, before it spoils a weight.

        The device is not waited for: it told the answer at the end of the forward pass, and works on the backward pass.

        Raises:
            FloatingPointError: With the term, the levels and the batch's statistics.
        """
        unchecked, self._unchecked = self._unchecked, None
        if unchecked is not None and not unchecked[0]:
            raise FloatingPointError(_diagnosis(*unchecked[1:], self.trainer.global_step))

    @property
    def _logs_this_step(self) -> bool:
        # Lightning takes a millisecond for each `self.log`, and forgets what it does not write.
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (step == 0 or (step + 1) % every == 0)

    def _log_losses(self, losses: Losses, batch_size: int) -> None:
        self.log("train/loss", losses.total.detach(), prog_bar=True, batch_size=batch_size)
        for name, value in losses.terms.items():
            self.log(f"train/{name}", value, batch_size=batch_size)
        if self.trainer.global_step or self.trainer.log_every_n_steps == 1:  # type: ignore[attr-defined]
            for name, (level, loss) in losses.per_item.items():
                on_cpu = by_band(level.cpu(), loss.cpu())  # where one can be read after the other without waiting
                bands = {f"train/{name}/{band}": float(value) for band, value in on_cpu.items()}
                # Straight to the loggers: self.log would repeat the last value of a band that is empty this time.
                for logger in self.loggers:
                    logger.log_metrics(bands, step=self.trainer.global_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """One optimiser step, after which the averages move (accumulated batches count once)."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.denoiser)

    def validation_step(self, batch: NoisyBatch, batch_idx: int) -> None:
        """Loss on held-out noisy data and, where clean references exist, PSNR of the one-step estimate."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: NoisyBatch, batch_idx: int) -> None:
        """As in validation, on the test set."""
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: NoisyBatch, batch_idx: int) -> None:
        # The same noise in every validation: the curve shows the network, not the draw.
        generator = step_generator(self.seed, rank=self.global_rank, step=-1, micro_batch=batch_idx, device=self.device)
        denoiser = self.eval_denoiser
        asked: DenoiserLike = denoiser
        x_n, sigma_n = batch.x_n, batch.sigma_n
        if batch.correlation is not None:
            x_n, sigma_n = batch.correlation.hartley(x_n), batch.correlation.levels(sigma_n, x_n)
            asked = batch.correlation.around(asked)
        step = Step(x_n, sigma_n, asked, denoiser.sigma_data, generator)
        term = next(iter(self.objective.terms.values()))
        assert isinstance(term, Term)
        query = term.query(step)
        assert query is not None
        loss = query.loss(asked(query.x, query.sigma)).mean()
        self.log(f"{stage}/loss", loss, batch_size=len(batch.x_n), sync_dist=True, prog_bar=True)
        if batch.x_0 is not None and self._data.get("sigma_n", 1.0) > 0:
            noisy = (batch.sigma_n.reshape(len(batch.sigma_n), -1) > 0).any(1)
            x_0 = batch.x_0[noisy]
            for name, images in (("psnr_noisy", batch.x_n), ("psnr_one_step", self._estimate(batch))):
                # A metric, not a number: a process whose items are all clean still takes part in the mean.
                metric = cast(MeanMetric, self.metrics[f"{stage}/{name}"])
                metric.update(psnr(images[noisy], x_0))
                self.log(f"{stage}/{name}", metric, on_epoch=True, prog_bar=name == "psnr_one_step")

    def _estimate(self, batch: NoisyBatch) -> Tensor:
        noise = SampleNoise(self.seed, batch.index.tolist(), batch.x_n.device, "white")
        return one_step(self.eval_denoiser, *raise_to_white(batch.x_n, batch.sigma_n, batch.correlation, noise))

    def predict_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
        """The one-step estimate ``E[x_0 | x_n]`` of every item, its noise first raised to white noise if it is not."""
        return self._estimate(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what sampling and restoration need, in plain types."""
        checkpoint[CHECKPOINT_KEY] = {
            "format": 1,
            "denoiser": to_config(self.denoiser),
            "half_lives": list(self.ema.half_lives),
            **self._data,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another network with one sentence instead of a list of tensors."""
        content, ours = checkpoint.get(CHECKPOINT_KEY, {}).get("denoiser"), to_config(self.denoiser)
        if content is None:
            raise UserError("the checkpoint was not made by this library's TweedieModule: give one that was")
        theirs, ours = _settings(content), _settings(ours)
        # Where activations are kept changes nothing about the network, so a run may go on with less memory.
        for key in sorted({*theirs, *ours} - {"sigma_data", "gradient_checkpointing"}):
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"the checkpoint holds another network: its {key} is {theirs.get(key)}, here it is "
                    f"{ours.get(key)}; use the configuration of the run that made it"
                )
        given = self._given_sigma_data
        if given is not None and not math.isclose(given, theirs["sigma_data"], rel_tol=1e-6):
            raise UserError(
                f"sigma_data = {given:g} differs from {theirs['sigma_data']} in the checkpoint, which scales its "
                "network: leave it out"
            )
        state = checkpoint["state_dict"]
        averages = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("ema.averages."))
        if averages != len(self.ema.half_lives):
            raise UserError(
                f"ema.half_lives = {self.ema.half_lives} names another number of averages than the {averages} in the "
                "checkpoint: give as many"
            )
        # Terms may come and go between runs: one that is new starts with an empty buffer.
        ours_state = self.objective.state_dict(prefix="objective.")
        for key in [key for key in state if key.startswith("objective.") and key not in ours_state]:
            del state[key]
        for key, value in ours_state.items():
            state.setdefault(key, value)


class _Finite:
    """Whether a loss is finite, written by its device when it gets there."""

    def __init__(self, loss: Tensor) -> None:
        self._answer = loss.detach().isfinite().to("cpu", non_blocking=True)
        self._there = torch.cuda.Event() if loss.is_cuda else None
        if self._there is not None:
            self._there.record()

    def __bool__(self) -> bool:
        if self._there is not None:
            self._there.synchronize()
        return bool(self._answer)


def _settings(denoiser: dict[str, Any]) -> dict[str, Any]:
    """Settings of a denoiser and its backbone, flat."""
    backbone, sigma_data = denoiser["init_args"]["backbone"], denoiser["init_args"]["sigma_data"]
    return {"class_path": backbone["class_path"], **backbone["init_args"], "sigma_data": sigma_data}


def by_band(level: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Mean loss in each band of noise levels that has items.

    Args:
        level: Levels ``(K,)``.
        loss: Losses ``(K,)``.

    Returns:
        For example ``{"sigma_0.2-0.5": ...}``.
    """
    edges = torch.tensor(BAND_EDGES, device=level.device)
    band = torch.bucketize(level, edges)
    names = ("0", *(f"{e:g}" for e in BAND_EDGES), "inf")
    return {f"sigma_{names[i]}-{names[i + 1]}": loss[band == i].mean() for i in band.unique().tolist()}


def _diagnosis(losses: Losses, batch: NoisyBatch, step: int) -> str:
    """What went wrong, where, and on which data."""
    parts = []
    for name, (level, loss) in losses.per_item.items():
        bad = ~torch.isfinite(loss)
        if bad.any():
            worst = level[bad]
            if level.isnan().any():
                parts.append(f"{name} has no level to train {int(level.isnan().sum())} items at, below sigma_max")
            parts.append(
                f"{name} is {losses.terms[name].item():g} for {int(bad.sum())} of {len(bad)} items at sigma "
                f"{worst.min().item():.4g} to {worst.max().item():.4g}"
            )
    x, sigma_n = batch.x_n, batch.sigma_n
    return (
        f"the loss is not finite at step {step}: {'; '.join(parts) or 'the sum of the terms overflowed'}; the "
        f"batch has mean {x.mean():.4g}, std {x.std():.4g}, min {x.min():.4g}, max {x.max():.4g}, sigma_n "
        f"{sigma_n.min():.4g} to {sigma_n.max():.4g}: lower the learning rate, clip gradients "
        "(trainer.gradient_clip_val) or look at these data"
    )
