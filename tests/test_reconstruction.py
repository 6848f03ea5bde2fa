"""PSNR, SSIM, use of codebooks, Fréchet distance: against values known otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chainrule.core import CodeSpec, GridSpec
from chainrule.data import ImageDataset
from chainrule.evaluation import (
    CodeCounts,
    bits_per_image,
    frechet_distance,
    precision_recall,
    psnr,
    ssim,
    tokenizer_quality,
)
from chainrule.scorers.features import FeatureNetwork
from chainrule.tokenizers.pixels import Pixels, PixelsConfig


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr():
    images = torch.full((3, 3, 4, 5), 100, dtype=torch.uint8)
    others = images.clone()
    others[0] += 1
    others[1, :, :2] += 10
    assert psnr(images, others).tolist() == pytest.approx([48.130804, 10 * math.log10(255**2 / 50), 100])
    with pytest.raises(ValueError, match="of one shape"):
        psnr(images, others[:2])


def test_ssim_of_flat_images_is_that_of_their_means():
    a, b = (torch.full((1, 3, 16, 16), level, dtype=torch.uint8) for level in (50, 80))
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b).item() == pytest.approx((2 * 50 * 80 + c1) / (50**2 + 80**2 + c1), rel=1e-9)


def test_ssim_against_a_plain_loop():
    a = noise(1, 2, 13, 12)
    b = (a.double() * 0.7 + noise(1, 2, 13, 12, seed=1).double() * 0.3).to(torch.uint8)
    window = np.exp(-((np.arange(11)[:, None] - 5) ** 2 + (np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for x, y in zip(a[0].double().numpy(), b[0].double().numpy(), strict=True):
        for row in range(3):
            for column in range(2):
                p, q = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(a, b).item() == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(a, a).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(noise(1, 1, 10, 12), noise(1, 1, 10, 12))


def test_use_of_codebooks():
    spec = CodeSpec((GridSpec(1, 2, 1, 4), GridSpec(2, 2, 2, 8)))
    counts = CodeCounts(spec)
    coarse = torch.tensor([0, 0]).view(1, 1, 2, 1)
    fine = torch.stack([torch.arange(4), torch.full((4,), 7)], -1).view(1, 2, 2, 2)
    counts.add((coarse, fine))
    counts.add((coarse + 1, fine))
    found = [(use.grid, use.depth, use.codebook_size, use.share_used) for use in counts.use()]
    assert found == [(0, None, 4, 0.5), (1, None, 8, 5 / 8), (1, 0, 8, 0.5), (1, 1, 8, 1 / 8)]
    perplexities = [use.perplexity_ratio for use in counts.use()]
    entropy = 4 / 8 * math.log(8) + 0.5 * math.log(2)
    assert perplexities == pytest.approx([2 / 4, math.exp(entropy) / 8, 4 / 8, 1 / 8])
    assert bits_per_image(spec, (coarse, fine)) == 2 * 2 + 8 * 3


def test_frechet_distance_of_diagonal_gaussians():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T))).T  # covariance 1, exactly
    scales, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, -2.0])
    assert frechet_distance(a, a * scales + shift) == pytest.approx(5 + 1 + 0.25, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_fewer_images_than_features():
    a, b = torch.rand(12, 40, dtype=torch.float64), torch.rand(9, 40, dtype=torch.float64) ** 2
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    overlap = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()  # tr (S_a S_b)^(1/2), another way
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(x.square().sum() for x in centred) - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-5)
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_distance(a[:1], b)


def test_precision_and_recall():
    real = torch.arange(10.0)[:, None]
    assert precision_recall(real, real.clone(), k=1) == (1, 1)
    assert precision_recall(real, real + 100, k=1) == (0, 0)
    collapsed = torch.linspace(4.0, 4.1, 8)[:, None]  # good, but all alike
    precision, recall = precision_recall(real, collapsed, k=2)
    assert precision == 1 and recall == 0.1
    with pytest.raises(ValueError, match="at least 4 images"):
        precision_recall(real[:3], real)


class Brightness(FeatureNetwork):
    title = "brightness"

    def maps(self, images):
        return [torch.nn.functional.avg_pool2d(images, 4) + 0.1]

    def head(self, last):
        return last


def test_quality_of_a_tokenizer_does_not_depend_on_batches():
    dataset = ImageDataset(noise(7, 3, 16, 12))
    tokenizer = Pixels(PixelsConfig(image_height=16, image_width=12, image_channels=3, levels=4))
    seen = []
    one, two = (tokenizer_quality(tokenizer, dataset, Brightness(0), size, seen.append) for size in (7, 3))
    assert seen == [7, 3, 6, 7] and one.num_images == 7 and one.features == "brightness"
    decoded = tokenizer.decode(tokenizer.encode(dataset.images))
    assert one.psnr.value == pytest.approx(psnr(dataset.images, decoded).mean().item())
    assert one.codebooks == two.codebooks and one.codebooks[0].share_used == 1 and len(one.codebooks) == 4
    assert one.bits_per_image == 2 * 3 * 16 * 12 and one.encode_seconds > 0
    for a, b in ((one.ssim, two.ssim), (one.perceptual, two.perceptual)):
        assert a.value == pytest.approx(b.value, rel=1e-5) and a.standard_error > 0
    assert one.frechet == pytest.approx(two.frechet, rel=1e-4) and one.frechet > 0
    plain = tokenizer_quality(tokenizer, dataset.slice(0, 1), None)
    assert plain.frechet is None and plain.perceptual is None and plain.psnr.standard_error is None
    exact = tokenizer_quality(Pixels(PixelsConfig(image_height=16, image_width=12, image_channels=3)), dataset, None)
    assert exact.psnr.value == 100 and exact.ssim.value == pytest.approx(1)
    alone = tokenizer_quality(tokenizer, dataset.slice(0, 1), Brightness(0))  # there is no distance of one image
    assert alone.frechet is None and alone.perceptual.value > 0 and alone.features == "brightness"
    with pytest.raises(ValueError, match="images and batch_size must be at least 1, got 0 and 32"):
        tokenizer_quality(tokenizer, dataset.slice(0, 0), None)
