"""Training: one engine for every model, and the tasks it is given."""

from .engine.config import EvaluationConfig, TrainingConfig
from .engine.engine import Diverged, TrainResult, train_task
from .engine.hardware import Hardware
from .engine.task import Adversary, Task
from .run import time_steps, train
from .tasks.examples import Examples, load_examples

__all__ = [
    "Adversary",
    "Diverged",
    "EvaluationConfig",
    "Examples",
    "Hardware",
    "Task",
    "TrainResult",
    "TrainingConfig",
    "load_examples",
    "time_steps",
    "train",
    "train_task",
]
