"""Training: one engine for every model, and the tasks it is given."""

from .classifier import ClassifierTask, classifier_task
from .contrastive import ContrastiveTask, contrastive_task
from .engine import TrainResult, train
from .hardware import Hardware
from .run import fit
from .stage_one import TokenizerTask, tokenizer_task
from .stage_two import PriorTask, prior_task
from .super_resolution import SuperResolutionTask, super_resolution_task
from .task import Adversary, Task

__all__ = [
    "Adversary",
    "ClassifierTask",
    "ContrastiveTask",
    "Hardware",
    "PriorTask",
    "SuperResolutionTask",
    "Task",
    "TokenizerTask",
    "TrainResult",
    "classifier_task",
    "contrastive_task",
    "fit",
    "prior_task",
    "super_resolution_task",
    "tokenizer_task",
    "train",
]
