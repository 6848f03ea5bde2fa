"""Image data: sources, transforms, the cache of decoded images, and the embedded data set ``shapes``.

Knows no model.  Images are uint8 (B, C, H, W) at every public boundary.
"""

from .account import Account, Finding
from .config import DataConfig
from .dataset import Batch, ImageDataset
from .images import load_images, load_mask
from .loading import load, with_size
from .picture_folder import folder_names
from .transforms import augment, binarize, draw_flips

__all__ = [
    "Account",
    "Batch",
    "DataConfig",
    "Finding",
    "ImageDataset",
    "augment",
    "binarize",
    "draw_flips",
    "folder_names",
    "load",
    "load_images",
    "load_mask",
    "with_size",
]
