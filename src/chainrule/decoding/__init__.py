"""Drawing codes from any prior: the loop, logit filters, guidance, completion, rejection."""

from .filters import Filter
from .guidance import Guided, GuidedContext
from .rejection import Scorer, keep_best
from .sampling import Known, Rerun, complete, image_seeds, sample

__all__ = [
    "Filter",
    "Guided",
    "GuidedContext",
    "Known",
    "Rerun",
    "Scorer",
    "complete",
    "image_seeds",
    "keep_best",
    "sample",
]
