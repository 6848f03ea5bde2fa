"""Measures one system: its likelihood, its samples, its tokenizer, its speed; and draws its pictures."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core import LearnedTokenizer
from ..data import DataConfig, ImageDataset, load
from ..decoding import Sampling
from ..evaluation import load_features, pooled_features, tokenizer_quality
from ..evaluation.measure import measure
from ..evaluation.plan import plan
from ..evaluation.reconstruction import Mean, psnr
from ..images import grid
from ..pictures import automatic_scale, captioned, hide, write_gif, write_grid, write_png
from ..pipeline import Pipeline
from ..tokenizers._grid import to_signed, to_uint8
from ..training.tasks.upscaler import halve
from ..upscaling.upscaler import bicubic
from ..zoo import load_kind, load_scorer, read_card
from .architecture import blocks, conditions
from .results import Estimate, SystemResult
from .systems import System

NUM_SHOWN, NUM_HALVES, NUM_FRAMES = 8, 4, 40
CHOICES = 100
"""Pictures among which a sample must find its own."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    samples: images drawn for the Fréchet distance
    against: the split of the images that they are compared with
    limit:   test images for likelihood and reconstructions; None: all
    prompts: captions drawn to see whether samples obey them
    best_of: images drawn per caption, from which a reranker chooses one
    halves:  test images that are completed
    """

    samples: int
    against: str
    limit: int | None
    prompts: int
    best_of: int
    halves: int


QUICK = Scale(samples=256, against="train[:1000]", limit=256, prompts=100, best_of=4, halves=16)
FULL = Scale(samples=2000, against="train", limit=None, prompts=400, best_of=16, halves=64)


@dataclass(frozen=True)
class Subject:
    """A system's model, the test images, and how samples are drawn."""

    model: Pipeline
    test: ImageDataset
    sampling: Mapping[str, Any]

    def wishes(self, index: Tensor) -> dict[str, Any]:
        """What images are to be drawn of: labels and captions of some test images, where the model reads them."""
        batch, found = self.test.batch(index), {}
        if self.model.num_classes:
            found["label"] = batch.labels.tolist()
        if self.model.prior.conditions.reads_text:
            found["text"] = batch.texts
        return found

    def in_words(self, wishes: Mapping[str, Any]) -> tuple[str, ...]:
        """Labels and captions as people write them."""
        if "text" in wishes:
            return tuple(wishes["text"])
        names = self.model.class_names
        return tuple(str(names[label] if names else label) for label in wishes.get("label", ()))


def measure_system(
    system: System, stages: Sequence[str], reranker: str | None, data: str | None, scale: Scale, out: Path
) -> SystemResult:
    """All figures of one system.

    Args:
        stages: the models that were trained one after the other, bundled names or folders; the last one is measured.
        reranker: a bundled name or a folder; needed if the system reads captions.
        data: the source of the images; None: what the model was trained on.
        out: a folder for its pictures.
    """
    name = stages[-1]
    model = load_kind(name, "pipeline")
    sampling = sampling_of(system, model)
    planned = plan(name, data=data, limit=scale.limit, samples=scale.samples, against=scale.against, sampling=sampling)
    record = measure(planned)
    test = load(planned.data)
    test = test.select(test.spread(scale.limit))
    subject = Subject(model, test, asdict(Sampling(**sampling)))
    nats = Estimate(value=record.likelihood.nats, error=record.likelihood.standard_error)
    bits = Estimate(value=nats.value / math.log(2), error=None if nats.error is None else nats.error / math.log(2))
    quality, learned = record.samples.quality, isinstance(model.tokenizer, LearnedTokenizer)
    minutes, rate = _training(stages)
    shown = draw_pictures(subject, out)
    completions, gain = _completions(subject, scale.halves)
    captions, gains = _captions(subject, reranker, scale) if reranker else ({}, {})
    return SystemResult(
        key=system.key, model=name, image_shape=model.tokenizer.image_shape, parameters=_parameters(model),
        codes=model.tokenizer.spec.length, bits=bits, nats=nats, exact=not learned, 
        frechet=Estimate(value=quality.frechet, error=quality.frechet_standard_error),
        floor=quality.floor, precision=quality.precision, recall=quality.recall, features=quality.features,
        seconds={str(count): _seconds(subject, count) for count in (1, 16)}, minutes=minutes, training_rate=rate,
        blocks=blocks(model), conditions=conditions(model), wishes=shown,
        sampling=", ".join(f"{key.replace('_', '-')} {value}" for key, value in sampling.items()),
        **completions, **captions, **(_tokenizer(subject, stages[0]) if learned else {}),
        gains={"completion": gain, **gains}, upscaled=_upscaled() if system.key == "parti" else {},
    )  # fmt: skip


def sampling_of(system: System, model: Pipeline) -> dict[str, Any]:
    """How a system draws: without guidance where the model has neither labels nor captions."""
    guided = model.num_classes or model.prior.conditions.reads_text
    return {key: value for key, value in system.sampling.items() if guided or key != "guidance"}


def _parameters(model: Pipeline) -> int:
    return sum(value.numel() for part in (model.tokenizer, model.prior) for value in part.parameters())


def _training(stages: Sequence[str]) -> tuple[float | None, float | None]:
    """Minutes of training of all stages, and images per second of the last one; None where a card does not say."""
    cards = [read_card(name) for name in stages]
    minutes, training = [card.get("minutes") for card in cards], _section(cards[-1], "training")
    if None in minutes:
        return None, None
    known = minutes[-1] > 0 and "batch_size" in training
    total = sum(minutes) + sum(card.get("minutes_before", 0) for card in cards)
    return total, cards[-1]["steps"] * training["batch_size"] / (60 * minutes[-1]) if known else None


def _section(card: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the recipe on a card, {} if the card does not say."""
    return (card.get("recipe") or {}).get(name) or {}


def _seconds(subject: Subject, count: int) -> float:
    """Seconds per image, the median of several batches of `count` images."""
    found, repeats = [], 5 if count == 1 else 3
    for index in range(repeats + 1):
        wishes = subject.wishes(torch.arange(count) % len(subject.test))
        since = time.monotonic()
        subject.model.sample(count, seed=index, **wishes, **subject.sampling)
        found.append((time.monotonic() - since) / count)
    return statistics.median(found[1:])  # the first warms up


def _tokenizer(subject: Subject, name: str) -> dict[str, Any]:
    """What the tokenizer keeps of the test images, and the losses that its card names."""
    losses = _section(read_card(name), "losses")
    network = load_features("efficientnet_lite0")
    found = tokenizer_quality(subject.model.tokenizer, subject.test, network)
    return {
        "psnr": _estimate(found.psnr), "perceptual": _estimate(found.perceptual),
        "codes_used": min(use.share_used for use in found.codebooks),
        "losses": tuple(sorted(loss for loss, options in losses.items() if options)),
    }  # fmt: skip


def _completions(subject: Subject, count: int) -> tuple[dict[str, Estimate], Estimate]:
    """PSNR of the lower half of test images: completed from the upper half, and drawn without it; the difference."""
    model, sampling = subject.model, subject.sampling
    index = torch.arange(count) * max(len(subject.test) // count, 1) % len(subject.test)
    images, wishes = subject.test.images[index], subject.wishes(index)
    known = _upper_half(images)
    completed = torch.cat([
        model.complete(image, known, **{key: value[i] for key, value in wishes.items()}, **sampling)
        for i, image in enumerate(images)
    ])  # fmt: skip
    strangers = model.sample(count, seed=1, **wishes, **sampling)
    half = images.shape[2] // 2
    fit, other = (psnr(images[:, :, half:], drawn[:, :, half:].cpu()) for drawn in (completed, strangers))
    return {"completion": _mean(fit), "strangers": _mean(other)}, _mean(fit - other)


def _captions(subject: Subject, reranker: str, scale: Scale) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """Whether samples show what their captions say, by guidance and ranking, and what a caption tells about codes; and
    what guidance and ranking gain."""
    model, test = subject.model, subject.test
    index = torch.arange(min(scale.prompts, len(test)))
    texts, network = [test.texts[i] for i in index.tolist()], load_features("efficientnet_lite0")
    real = normalize(pooled_features(test.images, network))
    settings: dict[str, dict[str, Any]] = {
        "guidance 1": {"guidance": 1.0},
        "guidance 2": {"guidance": 2.0},
        "ranked": {"guidance": 2.0, "best_of": scale.best_of, "scorer": load_scorer(reranker).for_texts(texts)},
    }
    right = {}
    for name, options in settings.items():
        drawn = model.sample(len(index), text=texts, seed=2, **{**subject.sampling, **options})
        right[name] = _finds_own(normalize(pooled_features(drawn.cpu(), network)), real, test.texts, index).double()
    gain = model.agreement(test.images[index], texts)
    found = {"obedience": {name: _mean(each) for name, each in right.items()}, "text_gain": _mean(gain.double())}
    guidance, ranking = right["guidance 2"] - right["guidance 1"], right["ranked"] - right["guidance 2"]
    return found, {"guidance": _mean(guidance), "ranking": _mean(ranking)}


def _upscaled(count: int = 64) -> dict[str, Estimate]:
    """PSNR of images of shapes that were halved, and doubled by the bundled upscaler and by bicubic interpolation."""
    upscaler, images = load_kind("shapes_upscaler", "upscaler"), load(DataConfig("shapes", "test", 64)).images[:count]
    small = halve(images)
    doubled = {"upscaler": upscaler.upscale(small), "bicubic": to_uint8(bicubic(to_signed(small)))}
    return {name: _mean(psnr(images, value)) for name, value in doubled.items()}


def _finds_own(drawn: Tensor, real: Tensor, texts: list[str], index: Tensor) -> Tensor:
    """Which samples are nearer to the image of their caption than to 99 images of other captions: bool (B,)."""
    generator, right = torch.Generator().manual_seed(0), []
    for one, own in zip(drawn, index.tolist(), strict=True):
        order = torch.randperm(len(texts), generator=generator).tolist()
        others = [i for i in order if texts[i] != texts[own]][: CHOICES - 1]
        right.append(bool(one @ real[own] > (real[others] @ one).max()))
    return torch.tensor(right)


def draw_pictures(subject: Subject, out: Path) -> tuple[str, ...]:
    """Writes samples.png, growing.gif, completions.png and, with a learned tokenizer, reconstructions.png into `out`.

    Returns:
        The labels or captions of the samples.
    """
    model, test, sampling = subject.model, subject.test, subject.sampling
    index = torch.arange(NUM_SHOWN) * max(len(test) // NUM_SHOWN, 1) % len(test)
    wishes, total, frames = subject.wishes(index), model.prior.spec.length, []

    def watch(num_known: int, images: Callable[[], Tensor]) -> None:
        if num_known % max(1, total // NUM_FRAMES) == 0:
            frames.append(images()[:NUM_HALVES].cpu())

    images = model.sample(NUM_SHOWN, seed=0, on_image=watch, **wishes, **sampling).cpu()
    scale, words = automatic_scale(images.shape[-1]), subject.in_words(wishes)
    frames.append(images[:NUM_HALVES])
    picture = captioned(images, words, scale) if words else grid(images, columns=NUM_HALVES, scale=scale)
    write_png(out / "samples.png", picture)
    write_gif(out / "growing.gif", [grid(frame, columns=NUM_HALVES, scale=scale) for frame in frames])
    halves, rows = test.images[index[:NUM_HALVES]], []
    known = _upper_half(halves)
    for seed in range(2):
        rows += [
            model.complete(image, known, seed=seed, **{key: value[i] for key, value in wishes.items()}, **sampling)
            for i, image in enumerate(halves)
        ]
    shown = torch.cat([halves, hide(halves, known), *(row.cpu() for row in rows)])
    write_grid(out / "completions.png", shown, scale, NUM_HALVES)
    if isinstance(model.tokenizer, LearnedTokenizer):
        originals = test.images[index]
        both = torch.cat([originals, model.reconstruct(originals).cpu()])
        write_grid(out / "reconstructions.png", both, scale, NUM_SHOWN)
    return words


def _upper_half(images: Tensor) -> Tensor:
    """The mask (H, W) that keeps the upper half."""
    known = torch.zeros(images.shape[2:], dtype=torch.bool)
    known[: images.shape[2] // 2] = True
    return known


def _mean(values: Tensor) -> Estimate:
    return _estimate(Mean.of(values))


def _estimate(mean: Mean) -> Estimate:
    return Estimate(value=mean.value, error=mean.standard_error)
