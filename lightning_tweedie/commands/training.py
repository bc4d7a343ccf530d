"""`fit`, `validate`, `test` and `predict`: Lightning's command line with a directory of its own for every run."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from lightning_tweedie.callbacks import InterruptCheckpoint, LastCheckpoint, TrainingProgressBar
from lightning_tweedie.checkpoint import read_checkpoint
from lightning_tweedie.commands.parse_error import user_error_in
from lightning_tweedie.commands.resume import differences
from lightning_tweedie.commands.run_directory import discard_if_unused, is_first_process, run_directory
from lightning_tweedie.commands.wandb_logger import log_model, wandb_logger
from lightning_tweedie.commands.whole_checkpoints import WholeCheckpoints
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.errors import UserError
from lightning_tweedie.files import npy_bytes, write_whole
from lightning_tweedie.module import TweedieModule

__all__ = ["main"]

#: Lightning's and torch's remarks that do not concern the user of this command line.
QUIET = (
    "Found .* module.* in eval mode",  # the weight averages, on purpose
    ".*LeafSpec",
    ".*does not have many workers",
    "No seed found",
    "Starting from v1.9.0, `tensorboardX`",
    ".*enable_autolog_hparams",
    "GPU available but not used",  # Apple's, which cannot be, or as the user wants it
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",
    ".*could not find the monitored key",  # no validation yet; after one, Lightning refuses
    ".*ended before the epoch ended and your dataloader is not resumable",  # its order is, and is tested
    ".*The dirpath has changed from",  # a resumed run has its own directory, on purpose
)


class _SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's directory and tells Weights & Biases the settings."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on the first process."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(config)


class TrainingCLI(LightningCLI):
    """Lightning's command line for a :class:`TweedieModule` and a :class:`NoisyDataModule`.

    Args:
        args: The arguments, the command first.
    """

    def __init__(self, args: ArgsType) -> None:
        strict = {"exit_on_error": False, "allow_abbrev": False}
        self.directory: Path | None = None
        self._resumed_at: int | None = None
        super().__init__(
            TweedieModule,
            NoisyDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=_SaveConfig,
            parser_kwargs={**strict, **{name: strict for name in self.subcommands()}},
            auto_configure_optimizers=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """As Lightning's, but ``weights_only`` is not the user's choice: a checkpoint must not run code."""
        return {name: {*skip, "weights_only"} for name, skip in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to a run rather than to the trainer."""
        parser.add_argument("--name", type=str, default="run", help="Name of the experiment.")
        parser.add_argument(
            "--runs",
            type=str,
            default="runs",
            help="Folder of all runs; this one gets <runs>/<name>/<command>_<number>.",
        )
        parser.add_argument(
            "--wandb",
            type=bool,
            default=False,
            help="Log to Weights & Biases too, offline if no API key is set. WANDB_MODE overrules.",
        )
        parser.add_argument("--wandb_project", type=str, default="lightning_tweedie", help="Project there.")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.set_defaults(
            {
                "best_checkpoint.monitor": "val/loss",
                "best_checkpoint.filename": "best",
                # "best.ckpt" is replaced, whatever the monitored value.
                "best_checkpoint.auto_insert_metric_name": False,
                "best_checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments, without Lightning's warning that there is a command line as well."""
        assert isinstance(args, list)
        try:
            self.config = parser.parse_args(args)
        except ArgumentError:
            _check_yaml(args)
            raise

    def _parse_ckpt_path(self) -> None:
        """Opens the checkpoint before anything is built; the configuration is left as the user wrote it.

        Lightning would overwrite the settings of the model by those in the checkpoint, without a word.
        """
        command = self.config["subcommand"]
        config = self.config[command]
        if config.ckpt_path is None:
            if command != "fit":
                raise UserError(f"{command} needs a trained network: give its checkpoint with --ckpt_path")
            return
        checkpoint = read_checkpoint(config.ckpt_path)
        self._resumed_at = checkpoint["global_step"]
        if not is_first_process():
            return
        model = yaml.safe_load(self._parser(command).dump(config, skip_none=False))["model"]
        changed = differences(checkpoint.get("hyper_parameters", {}), model["init_args"])
        state = ", the optimiser's state, the averages and the data order" if command == "fit" else ""
        print(f"The weights{state} are those of {config.ckpt_path}, after {checkpoint['global_step']} steps.")
        print(f"All settings are those of the configuration and the command line{'; changed:' if changed else '.'}")
        for line in changed:
            print(f"  {line}")

    def instantiate_classes(self) -> None:
        """Makes all objects. A mistake in a nested one is told in its own words, not in the parser's around them."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            inner = user_error_in(error)
            if inner is None or inner is error:
                raise
            raise inner from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the run's directory, and a trainer that writes there."""
        trainer = self._get(self.config_init, "trainer")
        if trainer["fast_dev_run"]:
            return self._checked_trainer(**kwargs)
        run = self._get(self.config_init, "runs"), self._get(self.config_init, "name")
        self.directory = run_directory(*run, str(self.subcommand))
        loggers: list[Logger] = []
        if trainer["logger"] is not False:
            # Its place is the run's directory, which callbacks learn from trainer.log_dir.
            place = self.directory.parent
            loggers.append(CSVLogger(place.parent, name=place.name, version=self.directory.name))
        if isinstance(trainer["logger"], Logger):
            loggers.append(trainer["logger"])
        elif isinstance(trainer["logger"], list):
            loggers.extend(trainer["logger"])
        if self._get(self.config_init, "wandb"):
            loggers.append(wandb_logger(self.directory, self._get(self.config_init, "wandb_project")))
        return self._checked_trainer(logger=loggers or False, default_root_dir=str(self.directory), **kwargs)

    def _checked_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        given = trainer["callbacks"] or []
        own: list[Callback] = [InterruptCheckpoint()]
        if trainer["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
            own.append(TrainingProgressBar())
        if trainer["accelerator"] == "auto" and MPSAccelerator.is_available():
            # It has no float64, which levels and metrics need.
            kwargs["accelerator"] = "cpu"
        try:
            made = super().instantiate_trainer(callbacks=[*given, *own], **kwargs)
        except (MisconfigurationException, ValueError) as error:
            self._discard()
            raise UserError(f"the trainer refuses its settings: {error}") from error
        if type(made.strategy.checkpoint_io) is TorchCheckpointIO:  # and not one of the user's own
            made.strategy.checkpoint_io = WholeCheckpoints()
        return made

    def _discard(self) -> None:
        if self.directory is not None:
            discard_if_unused(self.directory)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        if self.directory is not None and is_first_process():
            print(f"This run writes to {self.directory}", flush=True)
        try:
            super()._run_subcommand(subcommand)
        except BaseException as error:
            # The processes of further devices wait for this one, which has failed.
            kill = getattr(self.trainer.strategy.launcher, "kill", None)
            if kill is not None:
                kill(signal.SIGKILL)
            self._finish_wandb(exit_code=1)
            if isinstance(error, (UserError, OSError)):
                self._discard()
            raise
        self._finish_wandb(exit_code=0)

    def after_fit(self) -> None:
        """Validates a resumed run that had nothing left to train: its last validation may have been cut off."""
        if self.trainer.global_step == self._resumed_at and self.trainer.enable_validation:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def _finish_wandb(self, exit_code: int) -> None:
        for logger in self.trainer.loggers:
            # Asking a logger without a run for one would make it.
            if isinstance(logger, WandbLogger) and is_first_process() and logger._experiment is not None:
                if exit_code == 0 and self.subcommand == "fit" and self.directory is not None:
                    log_model(logger, self.directory / "checkpoints/last.ckpt")
                logger.experiment.finish(exit_code)

    def predict(self, **kwargs: Any) -> None:
        """Writes the one-step estimates, in the data's order, to ``predictions.npy``."""
        if self.trainer.world_size > 1:
            raise UserError("predict writes one file: give --trainer.devices 1")
        batches = self.trainer.predict(**kwargs)
        if batches and self.directory is not None:
            path = self.directory / "predictions.npy"
            estimates = torch.cat([b.float() for b in batches])  # type: ignore[union-attr]
            write_whole(path, npy_bytes(estimates.cpu().numpy()))
            print(f"Wrote {path}")


def main(argv: Sequence[str]) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        argv: The command and its options.

    Returns:
        The exit status.
    """
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    try:
        TrainingCLI(list(argv))
    except MisconfigurationException as error:
        raise UserError(f"Lightning refuses: {error}") from error
    except SIGTERMException as error:
        # Lightning's own, raised outside of training, has no status; InterruptCheckpoint's has.
        return error.code if isinstance(error.code, int) else 128 + signal.SIGTERM
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    return 0


def _check_yaml(args: Sequence[str]) -> None:
    """Says which of the configurations is no YAML at all; the parser does not."""
    for path in [Path(a.rpartition("=")[2]) for a in args if a.endswith((".yaml", ".yml"))]:
        try:
            yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise UserError(f"the configuration {str(path)!r} is not YAML: {error}") from None
        except (OSError, UnicodeDecodeError):
            continue


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "💡" not in record.getMessage()
