"""Metrics, measuring and records: a library below the command line.

The metrics exported here know no model: they take tensors, a function, or a `Tokenizer`.  `plan`, `measure`, `records`
and `scoring` work on whole models.
"""

from ..scorers.features import FEATURES, FeatureNetwork, load_features, perceptual_distance
from .codebook import CodebookUse, CodeCounts, bits_per_image
from .frechet import frechet_distance, precision_recall
from .generation import GenerationQuality, generation_quality, pooled_features
from .likelihood import Likelihood, likelihood
from .reconstruction import (
    Mean,
    ReconstructedImage,
    TokenizerQuality,
    perceptual,
    psnr,
    reconstruct,
    ssim,
    tokenizer_quality,
)

__all__ = [
    "FEATURES", "CodeCounts", "CodebookUse", "FeatureNetwork", "GenerationQuality", "Likelihood", "Mean",
    "ReconstructedImage", "TokenizerQuality", "bits_per_image", "frechet_distance", "generation_quality", "likelihood",
    "load_features", "perceptual", "perceptual_distance", "pooled_features", "precision_recall", "psnr", "reconstruct",
    "ssim", "tokenizer_quality",
]  # fmt: skip
