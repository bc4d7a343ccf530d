"""What happens beside the training: measures, pictures, checkpoints of interrupted runs."""

from lightning_tweedie.callbacks.interrupt_checkpoint import InterruptCheckpoint
from lightning_tweedie.callbacks.last_checkpoint import LastCheckpoint
from lightning_tweedie.callbacks.report import Report
from lightning_tweedie.callbacks.restoration_grid import RestorationGrid
from lightning_tweedie.callbacks.restoration_quality import RestorationQuality
from lightning_tweedie.callbacks.sample_grid import SampleGrid
from lightning_tweedie.callbacks.sample_quality import SampleQuality
from lightning_tweedie.callbacks.training_progress_bar import TrainingProgressBar

__all__ = [
    "InterruptCheckpoint",
    "LastCheckpoint",
    "Report",
    "RestorationGrid",
    "RestorationQuality",
    "SampleGrid",
    "SampleQuality",
    "TrainingProgressBar",
]
