"""What callbacks that measure quality have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_tweedie.digests import file_digest
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.results import Row, append_to_run
from lightning_tweedie.evaluation.work import Work

__all__ = ["QualityCallback"]


class QualityCallback(Callback):
    """Measures after validation and in tests: into the log, and into the run's ``quality.jsonl`` and ``quality.csv``.

    Args:
        every_n_validations: Only after every so many validations.
        batch_size: Images in one pass, on each process.
        seed: Of all that is drawn or chosen.
        cache_dir: Where features of training images are kept; that of the user when None.
    """

    def __init__(self, every_n_validations: int, batch_size: int, seed: int, cache_dir: str | None = None) -> None:
        super().__init__()
        self.require(every_n_validations=(every_n_validations, 1), batch_size=(batch_size, 1))
        self.every_n_validations = every_n_validations
        self.batch_size = batch_size
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._validations = 0

    def require(self, **settings: tuple[int, int]) -> None:
        """Refuses settings that are too small.

        Args:
            settings: Values and their lower bounds.
        """
        for name, (value, least) in settings.items():
            if value < least:
                raise UserError(f"{type(self).__name__}.{name} = {value} is too small: give at least {least}")

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule, work: Work, facts: dict[str, Any]) -> list[Row]:
        """Measures and logs.

        Args:
            trainer: The trainer.
            pl_module: The module.
            work: Who does it, and where.
            facts: Fields of the rows that say what is measured; ``subject`` is ``val`` or ``test``.

        Returns:
            The rows, on every process.
        """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures if its turn has come."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures."""
        self._evaluate(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """How often there was a validation."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._validations = state_dict["validations"]

    def refuse_old_values(self, trainer: Trainer, is_ours: Callable[[str], bool]) -> None:
        """The log keeps a value until the next one: a checkpoint saved in between would get that of other weights.

        Args:
            trainer: The trainer, whose callbacks may go by a value.
            is_ours: Whether this callback logs under a name.

        Raises:
            UserError: One goes by a value that is not measured after every validation.
        """
        for other in trainer.callbacks if self.every_n_validations > 1 else []:  # type: ignore[attr-defined]
            monitor = getattr(other, "monitor", None)
            if monitor is not None and is_ours(monitor):
                raise UserError(
                    f"{type(other).__name__} goes by {monitor!r}, which is measured after every "
                    f"{self.every_n_validations} validations only, and would take its old value for that of new "
                    f"weights: set {type(self).__name__}.every_n_validations to 1, and make validations rarer if need "
                    "be"
                )

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        work = Work(
            processes=Processes(),
            device=pl_module.device,
            seed=self.seed,
            batch_size=self.batch_size,
            cache_dir=self.cache_dir,
            shown=trainer.progress_bar_callback is not None,
        )
        # Lightning validates in inference mode, and tensors made there cannot be used elsewhere.
        with torch.inference_mode(False), torch.no_grad():
            rows = self.measure(trainer, pl_module, work, {"subject": stage} | _weights(trainer, pl_module))
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if work.processes.is_first and not trial:
            append_to_run(rows, folder)


def _weights(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Which weights are measured: fields of a row."""
    ema: Any = pl_module.ema
    path = None if trainer.state.fn == TrainerFn.FITTING else trainer.ckpt_path
    here = path is not None and Path(path).is_file() and trainer.is_global_zero
    return {
        "ema_half_life": ema.half_lives[0],
        "checkpoint": None if path is None else str(path),
        "checkpoint_digest": file_digest(path) if here and path is not None else None,
        "step": ema.steps,  # the trainer counts from 0 when it tests a checkpoint
    }
