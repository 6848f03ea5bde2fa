"""Two sets of images compared as papers do it, by the features of Inception-V3 (`scorers.inception`) or of a CLIP.

A set is a folder of image files of any sizes, a .npz file in the format of ADM (Dhariwal and Nichol 2021,
arXiv:2105.05233): `arr_0`, uint8 (N, H, W, 3), and perhaps `mu`, `sigma`, `mu_s`, `sigma_s`; or a .npz file of these
statistics alone, which then stand for the set in FID and sFID.  Images go to the network in their own size, and it
resizes them itself.

The Fréchet distance of CLIP features (Kynkäänniemi et al. 2023, arXiv:2203.06026) is of the image vectors as the model
gives them, not scaled to length 1.  The CLIP score (Hessel et al. 2021, arXiv:2104.08718) is the mean over images of
max(100 cos(image, text), 0); the paper has 2.5 in the place of 100.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import load_images
from ..data.tree import image_suffixes
from ..files import write_file
from ..progress import progress
from ..scorers.inception import Inception, load_inception
from ..scorers.public_clip import PublicCLIP
from .frechet import Gaussian, precision_recall
from .generation import BATCH

SEED = 2020
"""Of the subsets of KID and the parts of the Inception Score, as in torch-fidelity."""
INCEPTION = Inception.title
KEYS = ("arr_0", "mu", "sigma", "mu_s", "sigma_s", "features")
"""What is read of a .npz file; statistics without a name of features are of Inception-V3."""
SUBSETS, SUBSET_SIZE, PARTS = 100, 1000, 10


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures of generated images beside reference images; None where a set of statistics alone leaves one open.

    fid:               Fréchet distance of the pooled features (Heusel et al. 2017, arXiv:1706.08500)
    sfid:              the same of the spatial features (Nash et al. 2021, arXiv:2103.03841)
    inception_score:   of the generated images (Salimans et al. 2016, arXiv:1606.03498), mean over 10 parts in random
                       order
    precision, recall: see `precision_recall`
    clip_score:        of the generated images and their texts; None without texts
    kid, kid_std:      kernel distance (Binkowski et al. 2018, arXiv:1801.01401), mean and deviation over 100 subsets of
                       at most 1000 images of each set
    features, resize, seed: what the figures depend on besides the images
    num_generated, num_reference: number of images; None where only statistics are known
    """

    fid: float
    sfid: float | None
    inception_score: float | None
    precision: float | None
    recall: float | None
    kid: float | None
    kid_std: float | None
    clip_score: float | None = None
    features: str
    resize: str
    seed: int = SEED
    num_generated: int | None
    num_reference: int | None


@dataclass(frozen=True)
class Features:
    """Of N images: float (N, C), and of Inception also `spatial` and `logits`, see `scorers.inception`."""

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class CLIPFeatures:
    """A public CLIP as the network of a comparison.

    Args:
        name: a folder of the package transformers, or a hub id, see `scorers.public_clip`.
        device: where it computes.
    """

    resize = "by the model's own processor"

    def __init__(self, name: str, device: str) -> None:
        self.clip, self.title, self.device = PublicCLIP(name, device), f"CLIP {name}", torch.device("cpu")

    def features(self, images: Tensor) -> Features:
        """Of images uint8 (B, 3, H, W)."""
        return Features(self.clip.features(images))

    def score(self, features: Tensor, texts: Sequence[str]) -> float:
        """The CLIP score of images, by their features (N, C), and as many texts."""
        found = []
        for part in torch.arange(len(texts)).split(BATCH):
            words = self.clip.encode_texts([texts[index] for index in part]).cpu()
            found.append((F.normalize(features[part], dim=1) * words).sum(1))
        return 100 * torch.cat(found).clamp(min=0).double().mean().item()


Network = Inception | CLIPFeatures


@dataclass(frozen=True)
class ImageSet:
    """What the figures need of a set of images.

    pooled, spatial: Gaussians of these features; spatial is None where statistics leave it out
    features:        of each image; None where only statistics are known
    """

    pooled: Gaussian
    spatial: Gaussian | None
    features: Features | None

    @property
    def num_images(self) -> int | None:
        """None where only statistics are known."""
        return None if self.features is None else len(self.features.pooled)


def compare(
    generated: str | Path, reference: str | Path, weights: str | Path | None = None,
    statistics: str | Path | None = None, device: str = "cpu", *, clip: str | None = None,
    texts: Sequence[str] | None = None,
) -> Comparison:  # fmt: skip
    """The figures of two sets of images.

    Args:
        generated, reference: folders or .npz files, see above.
        weights: file of the weights of Inception-V3; None downloads it.
        statistics: a .npz file to which the statistics of the reference are written, for later comparisons.
        device: where features are computed.
        clip: a public CLIP in the place of Inception-V3, see `scorers.public_clip`.
        texts: one for each generated image, in the order of the names of files, for the CLIP score.

    Raises:
        ValueError: a set that cannot be read, fewer than two images, statistics of other features, no weights, or texts
            that are not one per image.
    """
    if clip is not None and weights is not None:
        raise ValueError("the weights of Inception-V3 would be ignored: a CLIP gives the features; leave one out")
    if texts is not None and clip is None:
        raise ValueError("texts would be ignored without a CLIP; name one, such as openai/clip-vit-base-patch32")
    network = load_inception(weights).to(device) if clip is None else CLIPFeatures(clip, device)
    second, first = read_set(reference, network), read_set(generated, network)  # other statistics are refused at once
    if statistics is not None:
        write_statistics(statistics, second, network.title)
    if texts is not None and len(texts) != first.num_images:
        raise ValueError(f"{len(texts)} texts are not one for each of {first.num_images or 0} generated images")
    a, b = first.features, second.features
    precision = recall = kid = kid_std = None
    if a is not None and b is not None:
        if min(len(a.pooled), len(b.pooled)) > 3:
            precision, recall = precision_recall(b.pooled, a.pooled)
        kid, kid_std = kernel_distance(a.pooled, b.pooled)
    spatial = first.spatial is not None and second.spatial is not None
    return Comparison(
        fid=first.pooled.distance(second.pooled), sfid=first.spatial.distance(second.spatial) if spatial else None,
        inception_score=None if a is None or a.logits is None else inception_score(a.logits), precision=precision,
        recall=recall, kid=kid, kid_std=kid_std, clip_score=None if texts is None else network.score(a.pooled, texts),
        features=network.title, resize=network.resize, num_generated=first.num_images, num_reference=second.num_images,
    )  # fmt: skip


def inception_score(logits: Tensor) -> float:
    """exp(mean KL(p(class | image), p(class))), the mean over `PARTS` parts of the images.

    Args:
        logits: (N, classes), N at least 1.
    """
    order = torch.from_numpy(np.random.RandomState(SEED).permutation(len(logits)))
    log = logits.double()[order].log_softmax(1)
    parts = [log[i * len(log) // PARTS : (i + 1) * len(log) // PARTS] for i in range(PARTS)]
    scores = [(p.exp() * (p - p.exp().mean(0).log())).sum(1).mean().exp() for p in parts if len(p)]
    return torch.stack(scores).mean().item()


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy with the kernel (x . y / C + 1)^3: mean and deviation over subsets.

    Args:
        a, b: features (N, C) and (M, C), at least two each.
    """
    size, random = min(SUBSET_SIZE, len(a), len(b)), np.random.RandomState(SEED)
    found = []
    for _ in range(SUBSETS):
        x, y = (each[torch.from_numpy(random.choice(len(each), size, replace=False))].double() for each in (a, b))
        xx, yy, xy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        found.append((within - 2 * xy.mean()).item())
    return float(np.mean(found)), float(np.std(found))


# ---------------------------------------------------------------- sets of images


def read_set(path: str | Path, network: Network) -> ImageSet:
    """The features and statistics of a folder or a .npz file; raises ValueError where it is neither."""
    path = Path(path)
    if path.is_dir():
        known = image_suffixes()
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in known)
        if len(files) < 2:
            raise ValueError(f"{path} holds {len(files)} images; at least two are needed")
        return _from_images((load_images([file], None, 3) for file in files), len(files), network)
    if path.suffix != ".npz":
        raise ValueError(f"{path} is neither a folder of images nor a .npz file")
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in KEYS if key in file}
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npz file of numbers") from error
    images, found = arrays.get("arr_0"), None
    if images is not None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) < 2:
            raise ValueError(f"{path}: arr_0 must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
        parts = (torch.from_numpy(images[i : i + 1]).permute(0, 3, 1, 2) for i in range(len(images)))
        found = _from_images(parts, len(images), network)
    if "mu" not in arrays:
        if found is None:
            raise ValueError(f"{path} holds neither images (arr_0) nor statistics (mu, sigma)")
        return found
    if (title := str(arrays.get("features", INCEPTION))) != network.title:
        raise ValueError(f"{path} holds statistics of {title}, not of {network.title}; compute them again")
    spatial = _gaussian(arrays, "mu_s", "sigma_s") if "mu_s" in arrays else None
    return ImageSet(_gaussian(arrays, "mu", "sigma"), spatial, None if found is None else found.features)


def write_statistics(path: str | Path, images: ImageSet, title: str) -> None:
    """Writes the statistics of a set as a .npz file in the format of ADM, with the name of the features."""
    arrays = {"mu": images.pooled.mean.numpy(), "sigma": images.pooled.covariance.numpy(), "features": np.array(title)}
    if images.spatial is not None:
        arrays |= {"mu_s": images.spatial.mean.numpy(), "sigma_s": images.spatial.covariance.numpy()}
    write_file(path, lambda file: np.savez(file, **arrays))


def _gaussian(arrays: dict[str, np.ndarray], mean: str, covariance: str) -> Gaussian:
    if covariance not in arrays or arrays[covariance].shape != arrays[mean].shape * 2:
        raise ValueError(f"the statistics {mean} and {covariance} do not fit each other")
    return Gaussian.with_covariance(*(torch.from_numpy(arrays[key]) for key in (mean, covariance)))


@torch.no_grad()
def _from_images(images: Iterator[Tensor], count: int, network: Network) -> ImageSet:
    """Of images uint8 (1, 3, H, W) of any sizes; neighbours of one size are computed together."""
    rows, batch = [], []

    def flush() -> None:
        if batch:
            found = network.features(torch.cat(batch).to(network.device))
            rows.append([None if each is None else each.cpu() for each in (found.pooled, found.spatial, found.logits)])
            batch.clear()

    with progress("Features", count, "images") as done:
        for index, image in enumerate(images):
            if len(batch) == BATCH or (batch and image.shape != batch[0].shape):
                flush()
                done(index)
            batch.append(image)
        flush()
    features = Features(*(None if each[0] is None else torch.cat(each) for each in zip(*rows, strict=True)))
    spatial = None if features.spatial is None else Gaussian.of(features.spatial)
    return ImageSet(Gaussian.of(features.pooled), spatial, features)
