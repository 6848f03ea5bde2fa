"""Figures of merit.  Knows no model: what is measured is given as a function, or as a `Tokenizer`."""

from ..scorers.features import FEATURES, FeatureNetwork, load_features, perceptual_distance
from .codebook import CodebookUse, CodeCounts, bits_per_image
from .frechet import frechet_distance, precision_recall
from .generation import GenerationQuality, generation_quality, pooled_features
from .likelihood import Likelihood, likelihood
from .reconstruction import Mean, TokenizerQuality, perceptual, psnr, ssim, tokenizer_quality

__all__ = [
    "FEATURES", "CodeCounts", "CodebookUse", "FeatureNetwork", "GenerationQuality", "Likelihood", "Mean",
    "TokenizerQuality", "bits_per_image", "frechet_distance", "generation_quality", "likelihood", "load_features",
    "perceptual", "perceptual_distance", "pooled_features", "precision_recall", "psnr", "ssim", "tokenizer_quality",
]  # fmt: skip
