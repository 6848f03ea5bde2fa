"""Training: one engine for every model, and the tasks it is given."""

from .engine.engine import TrainResult, train
from .engine.hardware import Hardware
from .engine.task import Adversary, Task
from .run import fit
from .tasks.classifier import ClassifierTask, classifier_task
from .tasks.prior import PriorTask, prior_task
from .tasks.reranker import ContrastiveTask, contrastive_task
from .tasks.tokenizer import TokenizerTask, tokenizer_task
from .tasks.upscaler import SuperResolutionTask, super_resolution_task

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
