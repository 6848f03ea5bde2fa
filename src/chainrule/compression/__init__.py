"""Lossless compression with the probabilities of a pipeline; it may import the pipeline and what the pipeline uses."""

from .compress import Decompressed, compress, decompress

__all__ = ["Decompressed", "compress", "decompress"]
