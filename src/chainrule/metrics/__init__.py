"""Figures of merit.  Knows no model: what is measured is given as a function."""

from .likelihood import Likelihood, likelihood

__all__ = ["Likelihood", "likelihood"]
