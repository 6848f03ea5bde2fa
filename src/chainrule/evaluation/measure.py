"""`evaluate`: the figures of a model on a whole data set, with all that is needed to repeat them."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..core import LearnedTokenizer, Tokenizer
from ..data import Batch, DataConfig, ImageDataset, binarize, load
from ..data.cache import cached_arrays, kept_arrays, write_array
from ..decoding import image_seeds
from ..pipeline import Pipeline
from ..processes import agreed, process, shared
from ..progress import progress
from ..saving.hub import find
from ..saving.model import tokenizer_hash
from ..saving.weights import weights_sha256
from ..scorers import features as networks
from . import generation_quality, likelihood, pooled_features, tokenizer_quality
from .plan import Plan, open_model, plan
from .records import LikelihoodRecord, Record, SampleSettings, SamplesRecord, TokenizerRecord


def evaluate(model: str | os.PathLike, device: str = "cpu", **options: Any) -> Record:
    """Measures a model on a whole split of a data set.

        record = evaluate("mnist_pixelcnn", split="test", limit=1000)
        record.likelihood.nats  # -log p per image
        evaluate("emoji_gpt", samples=2000, against="train", sampling={"guidance": 2.0}).samples.quality.frechet
        evaluate("emoji_vqgan", data="emoji").tokenizer.psnr

    Args:
        model: a bundled model, a folder, or a hub id.
        device: where it computes.
        options: fields of `EvaluationSettings`.

    Returns:
        A `LikelihoodRecord` of a model with a prior, a `TokenizerRecord` of a tokenizer alone; `to_json()` can be
        written to a file, and `repeat` measures it again.

    Raises:
        ValueError: no such model or data set, images that the model cannot take, or an option that would be ignored.
    """
    return measure(plan(model, device, **options))


def repeat(
    record: Record, model: str | os.PathLike | None = None, data: str | None = None, device: str = "cpu"
) -> Record:  # fmt: skip
    """Measures again what a record says; `record.differences(repeat(record))` is empty if the figures agree.

    Args:
        record: see `read_record`.
        model: in place of the recorded one.
        data: the source of the images in place of the recorded one.
        device: where it computes.

    Raises:
        ValueError: as `evaluate`, or a model of another kind than the recorded one.
    """
    name = os.fspath(model or record.model)
    loaded, options = open_model(name, device), {}
    if isinstance(record, TokenizerRecord) != isinstance(loaded, Tokenizer):
        raise ValueError(
            f"a tokenizer without a prior and a model with one cannot be compared: {name} is not the kind of "
            f"{record.model} in the record"
        )
    if isinstance(record, LikelihoodRecord):
        options = {"seeds": record.seeds, "samples": record.samples and record.samples.settings}
    elif isinstance(record, TokenizerRecord):
        options = {"features": record.features}
    images = replace(record.data, source=data or record.data.source)
    return measure(Plan(
        model=loaded, name=name, data=images, limit=record.limit, batch_size=record.batch_size, **options
    ))  # fmt: skip


def measure(plan: Plan) -> Record:
    """Carries out an evaluation, which joined processes share (`chainrule.processes`); errors as `evaluate`."""
    record = _tokenizer(plan) if isinstance(plan.model, Tokenizer) else _pipeline(plan)
    for name, (value, _) in record.figures().items():
        if not math.isfinite(value):
            raise ValueError(f"the {name} of {plan.name} is {value}: its weights may be damaged")
    return record


def _tokenizer(plan: Plan) -> TokenizerRecord:
    """What a tokenizer keeps of a data set."""
    tokenizer, dataset = plan.model, _load(plan.data, plan.limit)
    try:
        tokenizer.check_images(dataset.images[:1])
    except ValueError as error:
        raise ValueError(f"{dataset.name}: {error}; {_resizing(tokenizer)}") from error
    network = None if plan.features == "none" else networks.load_features(plan.features).to(tokenizer.device)
    with _progress("Evaluating", len(dataset), "images") as done:
        result = tokenizer_quality(tokenizer, dataset, network, plan.batch_size, done)
    return TokenizerRecord(tokenizer=result, features=plan.features, **_common(plan, dataset))


def _pipeline(plan: Plan) -> LikelihoodRecord:
    """The likelihood of a data set, and the quality of samples if they are asked for."""
    pipeline, dataset = plan.model, _load(plan.data, plan.limit)
    dataset = _checked(plan, dataset)
    samples = None if plan.samples is None else _measure_samples(plan, dataset, plan.samples)
    with _progress("Evaluating", len(dataset) * max(1, len(plan.seeds)), "images") as done:
        result = likelihood(
            lambda batch: pipeline.log_prob(batch.images, **_conditions(pipeline, batch)),
            dataset, plan.data.binarize, plan.seeds or (0,), plan.batch_size, done,
        )  # fmt: skip
    learned, error = isinstance(pipeline.tokenizer, LearnedTokenizer), result.standard_error
    bits = (lambda nats: None) if learned else pipeline.bits_per_dim
    return LikelihoodRecord(
        likelihood=result,
        bits_per_dim=bits(result.nats),
        bits_per_dim_standard_error=None if error is None else bits(error),
        seeds=plan.seeds,
        nats_per_code=result.nats_per_code(pipeline.tokenizer.spec.length) if learned else None,
        bits_per_image=result.bits_per_image if learned else None,
        samples=samples,
        **_common(plan, dataset),
    )


def _checked(plan: Plan, dataset: ImageDataset) -> ImageDataset:
    """A data set with the class numbers of the model; raises ValueError where the model cannot read it."""
    pipeline: Pipeline = plan.model
    if dataset.image_shape != pipeline.tokenizer.image_shape:
        (_, h0, w0), (_, h1, w1) = dataset.image_shape, pipeline.tokenizer.image_shape
        raise ValueError(
            f"the images of {dataset.name} are {h0}x{w0} but this model needs {h1}x{w1} (height x width); "
            f"{_resizing(pipeline.tokenizer)}"
        )
    classes = pipeline.num_classes
    dataset = dataset.matched(pipeline.class_names, classes, plan.name)
    if classes and dataset.num_classes != classes:
        found = dataset.num_classes or 0
        raise ValueError(f"this model needs labels of {classes} classes, but {dataset.name} has {found}")
    if pipeline.prior.conditions.reads_text and dataset.texts is None:
        raise ValueError(f"this model needs captions, but {dataset.name} has none")
    return dataset


def _resizing(tokenizer: Tokenizer) -> str:
    _, height, width = tokenizer.image_shape
    return f"add --size {height}x{width}, in Python size=({height}, {width}), to resize and crop them"


def _conditions(pipeline: Pipeline, batch: Batch) -> dict[str, Any]:
    """Labels and texts of a batch, of those that the model needs."""
    reads = pipeline.prior.conditions.reads_text
    return {"label": batch.labels if pipeline.num_classes else None, "text": batch.texts if reads else None}


def _measure_samples(plan: Plan, dataset: ImageDataset, settings: SampleSettings) -> SamplesRecord:
    """Draws images and compares them with `dataset`, or with another split of it."""
    pipeline, config = plan.model, plan.data
    network = networks.load_features(settings.features).to(pipeline.device)
    if settings.against is not None:
        dataset = _checked(plan, _load(replace(config, split=settings.against), None))
    if min(len(dataset), settings.count) < 4:  # what the third nearest neighbour needs
        given = f"{settings.count} and {len(dataset)}"
        raise ValueError(f"at least 4 samples and 4 images are needed to compare them, got {given}")
    since = time.monotonic()
    generated = _draw(pipeline, dataset, plan.batch_size, settings)
    seconds = time.monotonic() - since
    real = binarize(dataset.images, config.binarize, torch.Generator().manual_seed(settings.seed))
    seed = settings.seed if config.binarize == "sample" else None  # otherwise the images are the same with any
    key = ["features", settings.features, dataset.fingerprint, config.binarize, seed]

    def features(images: Tensor, **change: Callable[[Tensor], Tensor]) -> Tensor:
        with _progress("Comparing", len(images), "images") as done:
            return pooled_features(images, network, on_batch=done, **change)

    def kept(what: str, **change: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of the real images: the next model of these data, or of this tokenizer, finds them in the cache."""
        found = kept_arrays([*key, what])
        if agreed(found is not None):
            return found[0]
        values = features(real, **change).numpy()
        return cached_arrays([*key, what], lambda folder: write_array(folder / "0.npy", values))[0]

    reconstructed = kept(tokenizer_hash(pipeline.tokenizer), change=lambda images: pipeline.reconstruct(images).cpu())
    quality = generation_quality(kept("real"), features(generated), reconstructed, network.title)
    return SamplesRecord(
        settings=settings, quality=quality, fingerprint=dataset.fingerprint, seconds_per_image=seconds / settings.count
    )


def _draw(pipeline: Pipeline, dataset: ImageDataset, batch_size: int, settings: SampleSettings) -> Tensor:
    """Images with the labels or captions of a data set: of images at equal distances, since many data sets are sorted
    by class, or of all in turn where there are fewer than samples."""
    count, length = settings.count, pipeline.prior.spec.length
    sources = torch.arange(count) * max(len(dataset), count) // count % len(dataset)
    seeds = image_seeds(settings.seed, count)
    drawn = 0
    with _progress("Sampling", count * length, "codes") as done:

        def draw(start: int) -> Tensor:
            nonlocal drawn
            batch, before = dataset.batch(sources[start : start + batch_size]), drawn
            drawn += len(batch)
            return pipeline.sample(
                len(batch), **_conditions(pipeline, batch), **asdict(settings.sampling),
                prefix=pipeline.own_prefix(batch.images), seed=seeds[start : start + batch_size],
                on_image=lambda known, _: done(before * length + len(batch) * known),
            ).cpu()  # fmt: skip

        return torch.cat(shared(draw, range(0, count, batch_size)))


def _progress(what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """A bar of what this process does of a work; only the first process shows it."""
    rank, world = process()
    return progress(what, total // world, unit, quiet=rank > 0)


def _load(config: DataConfig, limit: int | None) -> ImageDataset:
    dataset = load(replace(config, captions="first"))
    return dataset if limit is None or limit >= len(dataset) else dataset.select(dataset.spread(limit))


def _common(plan: Plan, dataset: ImageDataset) -> dict[str, Any]:
    """What every record says; a warning where the images are not those that the model's card names."""
    if plan.expected not in (None, dataset.fingerprint):
        warnings.warn(
            f"these images of {dataset.name} are not those on which {plan.name} was evaluated in training (fingerprint "
            f"{dataset.fingerprint}, on its card {plan.expected}): the figures cannot be compared with its card's",
            stacklevel=2,
        )
    part = plan.model if isinstance(plan.model, Tokenizer) else plan.model.prior
    return {
        "command": plan.command(),
        "model": plan.name,
        "model_sha256": weights_sha256(find(plan.name)),
        "data": plan.data,
        "data_name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "limit": plan.limit,
        "batch_size": plan.batch_size,
        "dtype": str(next((value.dtype for value in part.parameters()), "none")).removeprefix("torch."),
    }
