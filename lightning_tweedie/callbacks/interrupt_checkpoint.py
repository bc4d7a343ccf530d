"""A run that is told to stop saves its state and says with its exit code that it has not finished."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_tweedie.errors import UserError

__all__ = ["InterruptCheckpoint"]

# Asking the other processes is a wait for the device; they are asked after about so many batches, at the end of a step.
_AGREE_EVERY = 10


class InterruptCheckpoint(Callback):
    """Saves a run that is stopped from outside or by an error.

    * SIGTERM (from a cluster that wants its machine back, or ``kill``): the optimiser step is finished, with all the
      batches that it accumulates; all processes agree to stop after the same one, ``interrupted.ckpt`` is written and
      the process exits with status 143. The run continues from that file as if nothing had happened. During validation
      the signal waits for its end.
    * Ctrl-C or an error: ``exception.ckpt`` is written, with the state in which the run was caught, maybe in the
      middle of a step. With several processes it is left out: only one may have failed, and saving waits for all.

    A later interruption of the same run overwrites the file of an earlier one. Lightning's own handling of SIGTERM is
    replaced: it exits with status 0, and with several processes it sends a message between theirs, which now and
    then leaves them waiting for each other.

    Args:
        dirpath: Where to; the folder of the run's other checkpoints when null.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__()
        self.dirpath = dirpath
        self._folder: Path | None = None
        self._signalled = False
        self._agreed = False
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signal over from Lightning, which gives it back when the training ends, before ``on_fit_end``."""
        others = getattr(trainer.checkpoint_callback, "dirpath", None)
        log_dir = trainer.log_dir or trainer.default_root_dir  # asks all processes
        self._folder = Path(self.dirpath or others or Path(log_dir) / "checkpoints")
        # A signal that came at the end of the sanity check is still with Lightning.
        self._signalled, self._agreed = trainer.received_sigterm, False
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._signalled = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops all processes after the same step.

        Raises:
            SIGTERMException: With the exit status, if any process was told to stop.
        """
        if trainer.global_step == self._step:  # gradients that are still being accumulated would be lost
            return
        self._step = trainer.global_step
        every = -(-_AGREE_EVERY // trainer.accumulate_grad_batches)
        if trainer.world_size == 1 or self._step % every == 0:
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Heeds a signal that came in the last validation. From here on there is nothing to save.

        Raises:
            SIGTERMException: With the exit status, if any process was told to stop.
        """
        self._stop_if_told(trainer)
        self._folder = None

    def _stop_if_told(self, trainer: Trainer) -> None:
        self._agreed = trainer.strategy.reduce_boolean_decision(self._signalled, all=False)
        if self._agreed:
            # Not left to on_exception, which forked processes do not call.
            self._save(trainer, "interrupted.ckpt")
            # The first process tells the outside. Another one that failed would have it killed while it tidies up.
            raise SIGTERMException(128 + signal.SIGTERM if trainer.is_global_zero else 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves a training that failed."""
        if self._folder is None or self._agreed:
            return
        if trainer.world_size > 1:
            rank_zero_warn("No checkpoint is made of the error's moment, since other processes may be somewhere else.")
            return
        try:
            self._save(trainer, "exception.ckpt")
        except UserError as error:  # a disk that is full is told once, by what found it first
            if not isinstance(exception, UserError):
                rank_zero_warn(str(error))

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self._folder is not None
        path = self._folder / name
        trainer.save_checkpoint(path, weights_only=False)
        rank_zero_info(f"Saved {path}: continue with --ckpt_path {path}")
