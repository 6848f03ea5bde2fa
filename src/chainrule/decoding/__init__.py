"""Drawing codes from any prior: the loop, logit filters, completion."""

from .filters import Filter
from .sampling import Known, Rerun, complete, image_seeds, sample

__all__ = ["Filter", "Known", "Rerun", "complete", "image_seeds", "sample"]
