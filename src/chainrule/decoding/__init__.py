"""Drawing codes from any prior: the loop, its options, guidance, completion, rejection."""

from .batching import Batcher, Job, Request
from .guidance import Guided, GuidedContext
from .options import Sampling
from .rejection import Scorer, keep_best
from .sampling import Known, Rerun, complete, image_seeds, sample, seeds_of

__all__ = [
    "Batcher",
    "Guided",
    "GuidedContext",
    "Job",
    "Known",
    "Request",
    "Rerun",
    "Sampling",
    "Scorer",
    "complete",
    "image_seeds",
    "keep_best",
    "sample",
    "seeds_of",
]
