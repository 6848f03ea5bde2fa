"""Figures of merit.  Knows no model: what is measured is given as a function."""

from .features import FEATURES, FeatureNetwork, load_features, perceptual_distance
from .likelihood import Likelihood, likelihood

__all__ = ["FEATURES", "FeatureNetwork", "Likelihood", "likelihood", "load_features", "perceptual_distance"]
