"""Two sets of images compared as papers do it, by the features of Inception-V3 (`scorers.inception`).

A set is a folder of image files of any sizes, a .npz file in the format of ADM (Dhariwal and Nichol 2021,
arXiv:2105.05233): `arr_0`, uint8 (N, H, W, 3), and perhaps `mu`, `sigma`, `mu_s`, `sigma_s`; or a .npz file of these
statistics alone, which then stand for the set in FID and sFID.  Images go to the network in their own size, and it
resizes them itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..data import load_images
from ..data.tree import image_suffixes
from ..files import write_file
from ..progress import progress
from ..scorers.inception import Inception, InceptionFeatures, load_inception
from .frechet import Gaussian, precision_recall
from .generation import BATCH

SEED = 2020
"""Of the subsets of KID and the parts of the Inception Score, as in torch-fidelity."""
SUBSETS, SUBSET_SIZE, PARTS = 100, 1000, 10


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures of generated images beside reference images; None where a set of statistics alone leaves one open.

    fid:               Fréchet distance of the pooled features (Heusel et al. 2017, arXiv:1706.08500)
    sfid:              the same of the spatial features (Nash et al. 2021, arXiv:2103.03841)
    inception_score:   of the generated images (Salimans et al. 2016, arXiv:1606.03498), mean over 10 parts in random
                       order
    precision, recall: see `precision_recall`
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
    features: str
    resize: str = "bilinear to 299x299 by the network, without antialiasing"
    seed: int = SEED
    num_generated: int | None
    num_reference: int | None


@dataclass(frozen=True)
class ImageSet:
    """What the figures need of a set of images.

    pooled, spatial: Gaussians of these features; spatial is None where statistics leave it out
    features:        of each image; None where only statistics are known
    """

    pooled: Gaussian
    spatial: Gaussian | None
    features: InceptionFeatures | None

    @property
    def num_images(self) -> int | None:
        """None where only statistics are known."""
        return None if self.features is None else len(self.features.pooled)


def compare(
    generated: str | Path, reference: str | Path, weights: str | Path | None = None,
    statistics: str | Path | None = None, device: str = "cpu",
) -> Comparison:  # fmt: skip
    """The figures of two sets of images.

    Args:
        generated, reference: folders or .npz files, see above.
        weights: file of the weights of Inception-V3; None downloads it.
        statistics: a .npz file to which the statistics of the reference are written, for later comparisons.
        device: where features are computed.

    Raises:
        ValueError: a set that cannot be read, fewer than two images, or no weights.
    """
    network = load_inception(weights).to(device)
    first, second = read_set(generated, network), read_set(reference, network)
    if statistics is not None:
        write_statistics(statistics, second)
    a, b = first.features, second.features
    precision = recall = kid = kid_std = None
    if a is not None and b is not None:
        if min(len(a.pooled), len(b.pooled)) > 3:
            precision, recall = precision_recall(b.pooled, a.pooled)
        kid, kid_std = kernel_distance(a.pooled, b.pooled)
    spatial = first.spatial is not None and second.spatial is not None
    return Comparison(
        fid=first.pooled.distance(second.pooled), sfid=first.spatial.distance(second.spatial) if spatial else None,
        inception_score=None if a is None else inception_score(a.logits), precision=precision, recall=recall, kid=kid,
        kid_std=kid_std, features=network.title, num_generated=first.num_images, num_reference=second.num_images,
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


def read_set(path: str | Path, network: Inception) -> ImageSet:
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
            arrays = {key: file[key] for key in ("arr_0", "mu", "sigma", "mu_s", "sigma_s") if key in file}
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
    spatial = _gaussian(arrays, "mu_s", "sigma_s") if "mu_s" in arrays else None
    return ImageSet(_gaussian(arrays, "mu", "sigma"), spatial, None if found is None else found.features)


def write_statistics(path: str | Path, images: ImageSet) -> None:
    """Writes the statistics of a set as a .npz file in the format of ADM."""
    arrays = {"mu": images.pooled.mean.numpy(), "sigma": images.pooled.covariance.numpy()}
    if images.spatial is not None:
        arrays |= {"mu_s": images.spatial.mean.numpy(), "sigma_s": images.spatial.covariance.numpy()}
    write_file(path, lambda file: np.savez(file, **arrays))


def _gaussian(arrays: dict[str, np.ndarray], mean: str, covariance: str) -> Gaussian:
    if covariance not in arrays or arrays[covariance].shape != arrays[mean].shape * 2:
        raise ValueError(f"the statistics {mean} and {covariance} do not fit each other")
    return Gaussian.with_covariance(*(torch.from_numpy(arrays[key]) for key in (mean, covariance)))


@torch.no_grad()
def _from_images(images: Iterator[Tensor], count: int, network: Inception) -> ImageSet:
    """Of images uint8 (1, 3, H, W) of any sizes; neighbours of one size are computed together."""
    device, rows, batch = network.fc.weight.device, [], []

    def flush() -> None:
        if batch:
            found = network.features(torch.cat(batch).to(device))
            rows.append([each.cpu() for each in (found.pooled, found.spatial, found.logits)])
            batch.clear()

    with progress("Features", count, "images") as done:
        for index, image in enumerate(images):
            if len(batch) == BATCH or (batch and image.shape != batch[0].shape):
                flush()
                done(index)
            batch.append(image)
        flush()
    features = InceptionFeatures(*(torch.cat(each) for each in zip(*rows, strict=True)))
    return ImageSet(Gaussian.of(features.pooled), Gaussian.of(features.spatial), features)
