"""Drawing codes from any prior: the loop, its options, guidance, completion, rejection."""

from .guidance import Guided, GuidedContext
from .options import Sampling
from .rejection import Scorer, keep_best
from .sampling import Known, Rerun, complete, image_seeds, sample

__all__ = [
    "Guided",
    "GuidedContext",
    "Known",
    "Rerun",
    "Sampling",
    "Scorer",
    "complete",
    "image_seeds",
    "keep_best",
    "sample",
]
