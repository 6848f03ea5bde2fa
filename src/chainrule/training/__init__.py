"""Training: one engine for every model, and the tasks it is given."""

from .engine.config import EvaluationConfig, TrainingConfig
from .engine.engine import TrainResult, train_task
from .engine.hardware import Hardware
from .engine.task import Adversary, Task
from .run import train

__all__ = [
    "Adversary",
    "EvaluationConfig",
    "Hardware",
    "Task",
    "TrainResult",
    "TrainingConfig",
    "train",
    "train_task",
]
