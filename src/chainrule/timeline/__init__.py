"""The eight systems of the history, on the same images, measured, on one page."""

from .run import timeline

__all__ = ["timeline"]
