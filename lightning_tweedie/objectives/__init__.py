"""What is minimised: one file per term, and their sum."""

from lightning_tweedie.objectives.ambient import AmbientScoreMatching
from lightning_tweedie.objectives.consistency import Consistency
from lightning_tweedie.objectives.objective import Losses, Objective
from lightning_tweedie.objectives.replay import PosteriorReplay
from lightning_tweedie.objectives.score_distillation import ScoreDistillation
from lightning_tweedie.objectives.score_matching import ScoreMatching
from lightning_tweedie.objectives.sure import Sure

__all__ = [
    "AmbientScoreMatching",
    "Consistency",
    "Losses",
    "Objective",
    "PosteriorReplay",
    "ScoreDistillation",
    "ScoreMatching",
    "Sure",
]
