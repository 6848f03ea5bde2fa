"""Training: one engine for every model, and the tasks it is given."""

from .engine import TrainResult, train
from .hardware import Hardware
from .run import fit
from .stage_two import PriorTask, prior_task
from .task import Task

__all__ = ["Hardware", "PriorTask", "Task", "TrainResult", "fit", "prior_task", "train"]
