"""What happens beside the training: distances, pictures, checkpoints of interrupted runs."""

from lightning_tweedie.callbacks.fid import FID
from lightning_tweedie.callbacks.interrupt_checkpoint import InterruptCheckpoint
from lightning_tweedie.callbacks.last_checkpoint import LastCheckpoint
from lightning_tweedie.callbacks.report import Report
from lightning_tweedie.callbacks.restoration_grid import RestorationGrid
from lightning_tweedie.callbacks.sample_grid import SampleGrid
from lightning_tweedie.callbacks.training_progress_bar import TrainingProgressBar

__all__ = [
    "FID",
    "InterruptCheckpoint",
    "LastCheckpoint",
    "Report",
    "RestorationGrid",
    "SampleGrid",
    "TrainingProgressBar",
]
