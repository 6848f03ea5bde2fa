"""Training: one engine for every model, and the tasks it is given."""

from .engine.config import EvaluationConfig, TrainingConfig
from .engine.engine import Diverged, TrainResult, train_task
from .engine.hardware import Hardware
from .engine.task import Adversary, Task
from .run import time_steps, train

__all__ = [
    "Adversary",
    "Diverged",
    "EvaluationConfig",
    "Hardware",
    "Task",
    "TrainResult",
    "TrainingConfig",
    "time_steps",
    "train",
    "train_task",
]
