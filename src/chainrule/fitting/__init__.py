"""`fit`: from a folder of pictures to a model.  It looks, plans and trains by ordinary recipes; may import training."""

from .run import fit

__all__ = ["fit"]
