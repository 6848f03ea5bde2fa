"""What `fit` measures at the end, and the pictures that its report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import LearnedTokenizer
from ..data import ImageDataset, binarize
from ..evaluation import CodeCounts, Mean, generation_quality, load_features, pooled_features, psnr
from ..pictures import automatic_scale, write_grid
from ..pipeline import Pipeline
from ..timeline.measure import Subject, draw_pictures
from ..training import Examples
from ..zoo import load_kind
from .doctor import detail

GUIDANCE = {"guidance": 2.0}
"""How samples are drawn of a model that was trained with labels or captions dropped."""
MOST_HELD_OUT, MOST_SAMPLES, LEAST_SAMPLES, FEW_SAMPLES = 500, 1000, 100, 16
"""Held-out pictures that are measured; samples for a Fréchet distance, at most and at least; and without one."""
SAMPLES_PER_MINUTE = 20
SMALL, MOST_COMPARED = 16, 20_000
"""Height and width at which pictures are compared to find the nearest, and how many training pictures are."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; None where it does not apply.

    model:         name of the run whose model was kept
    held_out:      number of held-out pictures that were measured
    nats:          -log p per held-out picture
    error:         its standard error
    training_nats: the same of as many training pictures
    others:        by the run of each other prior: its held-out nats less `nats`, and the standard error of that
    psnr:          dB, of reconstructions of held-out pictures, with a learned tokenizer
    detail:        see `doctor.detail`
    codes_used:    share of the codebook's entries that occur
    samples:       number of samples that were compared
    frechet, floor, precision, recall: see `evaluation.GenerationQuality`
    features:      title of the network behind them
    near:          share of samples that are nearer to a training picture than 95% of the held-out pictures are
    wishes:        labels or captions of the samples shown
    skipped:       sentences about what was left out or read in part when all pictures were decoded
    """

    model: str
    held_out: int
    nats: float
    error: float | None
    training_nats: float
    others: dict[str, tuple[float, float | None]]
    psnr: float | None = None
    detail: float | None = None
    codes_used: float | None = None
    samples: int
    frechet: float | None = None
    floor: float | None = None
    precision: float | None = None
    recall: float | None = None
    features: str | None = None
    near: float | None = None
    wishes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


@torch.no_grad()
def measure(models: Mapping[str, Path], kept: str, examples: Examples, minutes: float, out: Path) -> Figures:
    """Measures a model and draws its pictures.

    Args:
        models: folder of the model of each prior, by the name of its run.
        kept: the run whose model is measured.
        examples: the pictures for training and those held out.
        minutes: of the whole fit; the number of samples grows with it.
        out: a folder for samples.png, completions.png, nearest.png and, with a learned tokenizer, reconstructions.png.
    """
    model = load_kind(str(models[kept]), "pipeline")
    training, held_out = (_binarized(each, examples.data.binarize) for each in (examples.training, examples.evaluation))
    guided = model.prior.conditions.null_label or model.prior.conditions.reads_text
    subject = Subject(model, held_out, GUIDANCE if guided else {})
    nats = _nats(model, held_out)
    others = {
        name: astuple(Mean.of(_nats(load_kind(str(folder), "pipeline"), held_out) - nats))
        for name, folder in models.items()
        if name != kept
    }
    learned = isinstance(model.tokenizer, LearnedTokenizer)
    count = min(MOST_SAMPLES, len(training), int(SAMPLES_PER_MINUTE * minutes))
    enough = learned and count >= LEAST_SAMPLES
    index = training.spread(count if enough else FEW_SAMPLES)
    drawn = _draw(replace(subject, test=training), index)
    wishes = draw_pictures(subject, out)
    value, error = astuple(Mean.of(nats))
    return Figures(
        model=kept, held_out=len(nats), nats=value, error=error, others=others, wishes=wishes, samples=len(drawn),
        training_nats=_nats(model, training).mean().item(), near=_nearest(drawn, training, held_out, out),
        skipped=tuple(map(str, training.account.findings)),
        **(_tokenizer(model, held_out) if learned else {}),
        **(_quality(model, training.images[index], drawn) if enough else {}),
    )  # fmt: skip


def _binarized(images: ImageDataset, mode: str) -> ImageDataset:
    if mode == "none":
        return images
    return replace(images, images=binarize(images.images, mode, torch.Generator().manual_seed(0)))


def _nats(model: Pipeline, images: ImageDataset) -> Tensor:
    """-log p of up to `MOST_HELD_OUT` pictures at equal distances, float64 (N,)."""
    subject = Subject(model, images, {})
    return torch.cat([
        -model.log_prob(images.images[index], **subject.wishes(index)).double()
        for index in images.spread(MOST_HELD_OUT).split(BATCH)
    ])  # fmt: skip


def _draw(subject: Subject, index: Tensor) -> Tensor:
    """A sample for each of some pictures, with their labels or captions."""
    return torch.cat([
        subject.model.sample(len(part), seed=part.tolist(), **subject.wishes(part), **subject.sampling).cpu()
        for part in index.split(BATCH)
    ])  # fmt: skip


def _tokenizer(model: Pipeline, images: ImageDataset) -> dict[str, float]:
    """What the tokenizer keeps of pictures."""
    originals, tokenizer = images.images[images.spread(MOST_HELD_OUT)], model.tokenizer
    counts, found = CodeCounts(tokenizer.spec), []
    for part in originals.split(BATCH):
        codes = tokenizer.encode(part)
        counts.add(codes)
        found.append(tokenizer.decode(codes).cpu())
    decoded = torch.cat(found)
    return {
        "psnr": psnr(originals, decoded).mean().item(), "detail": detail(originals, decoded),
        "codes_used": min(use.share_used for use in counts.use()),
    }  # fmt: skip


def _quality(model: Pipeline, real: Tensor, drawn: Tensor) -> dict[str, Any]:
    """Samples beside pictures, in the features of a network, if its weights are installed."""
    try:
        network = load_features("efficientnet_lite0")
    except ValueError:
        return {}
    sets = [pooled_features(images, network) for images in (real, drawn)]
    found = generation_quality(*sets, pooled_features(real, network, model.reconstruct), network.title)
    return {name: getattr(found, name) for name in ("frechet", "floor", "precision", "recall", "features")}


def _nearest(drawn: Tensor, training: ImageDataset, held_out: ImageDataset, out: Path) -> float:
    """Writes samples above the training pictures that are nearest; returns `Figures.near`."""
    images = training.images[training.spread(MOST_COMPARED)]
    known = _small(images)
    distances, nearest = torch.cdist(_small(drawn), known).min(1)
    others = torch.cdist(_small(held_out.images[held_out.spread(MOST_HELD_OUT)]), known).min(1).values
    shown = torch.arange(min(8, len(drawn))) * len(drawn) // min(8, len(drawn))
    both = torch.cat([drawn[shown], images[nearest[shown]]])
    write_grid(out / "nearest.png", both, automatic_scale(both.shape[-1]), len(shown))
    return (distances < others.quantile(0.05)).float().mean().item()


def _small(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) at `SMALL` x `SMALL`, as rows: float (N, C * SMALL * SMALL)."""
    return torch.cat([F.adaptive_avg_pool2d(part.float(), SMALL).flatten(1) for part in images.split(512)])
