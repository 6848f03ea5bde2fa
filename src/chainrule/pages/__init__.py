"""HTML pages of one file that open from disk without a network: their parts and plots.  May import nothing."""

from .page import document, picture, table
from .plots import Line, Point, lines, scatter

__all__ = ["Line", "Point", "document", "lines", "picture", "scatter", "table"]
