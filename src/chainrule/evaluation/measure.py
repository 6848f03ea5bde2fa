"""What `chainrule evaluate` does with a model and a data set, up to the record."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import LearnedTokenizer, Tokenizer
from ..data import Batch, DataConfig, ImageDataset, binarize, load
from ..data.cache import cached_arrays
from ..decoding import image_seeds
from ..pipeline import Pipeline
from ..progress import progress
from ..saving.folder import tokenizer_hash
from ..saving.hub import find
from ..strict import build_dataclass
from ..zoo import read_card
from . import generation_quality, likelihood, load_features, pooled_features, tokenizer_quality
from .records import LikelihoodRecord, SampleSettings, SamplesRecord, TokenizerRecord, weights_sha256


def measure_likelihood(
    pipeline: Pipeline, model: str, config: DataConfig, limit: int | None, seeds: tuple[int, ...], batch_size: int,
    settings: SampleSettings | None = None,
) -> LikelihoodRecord:  # fmt: skip
    """The likelihood of a data set, and with `settings` the quality of images drawn, recorded; raises ValueError where
    the model cannot read the data set or draw so."""
    dataset = _load(config, limit)
    _check(pipeline, dataset)
    samples = None if settings is None else _measure_samples(pipeline, config, dataset, batch_size, settings)
    with progress("Evaluating", len(dataset) * max(1, len(seeds)), "images") as done:
        result = likelihood(
            lambda batch: pipeline.log_prob(batch.images, **_conditions(pipeline, batch)),
            dataset, config.binarize, seeds or (0,), batch_size, done,
        )  # fmt: skip
    bits, error = pipeline.bits_per_dim, result.standard_error
    learned = isinstance(pipeline.tokenizer, LearnedTokenizer)
    options = ["--binarize", config.binarize]
    if seeds:
        options += ["--seeds", str(len(seeds))]
    if settings is not None:
        options += settings.options()
    elif seeds:
        options += ["--seed", str(seeds[0])]
    return LikelihoodRecord(
        likelihood=result,
        bits_per_dim=bits(result.nats),
        bits_per_dim_standard_error=None if error is None else bits(error),
        seeds=seeds,
        nats_per_code=result.nats_per_code(pipeline.tokenizer.spec.length) if learned else None,
        bits_per_image=result.bits_per_image if learned else None,
        samples=samples,
        **_common(pipeline.prior, model, config, dataset, limit, batch_size, options),
    )


def _check(pipeline: Pipeline, dataset: ImageDataset) -> None:
    """Raises ValueError where a model cannot read a data set."""
    if dataset.image_shape != pipeline.tokenizer.image_shape:
        (_, h0, w0), (_, h1, w1) = dataset.image_shape, pipeline.tokenizer.image_shape
        raise ValueError(
            f"the images of {dataset.name} are {h0}x{w0} but this model needs {h1}x{w1} (height x width); "
            f"add --size {h1}x{w1} to resize and crop them"
        )
    classes = pipeline.num_classes
    if classes and dataset.num_classes != classes:
        raise ValueError(
            f"this model needs labels of {classes} classes, but {dataset.name} has {dataset.num_classes or 0}"
        )
    if _reads(pipeline) and dataset.texts is None:
        raise ValueError(f"this model needs captions, but {dataset.name} has none")


def _reads(pipeline: Pipeline) -> bool:
    return pipeline.prior.conditions.reads_text


def _conditions(pipeline: Pipeline, batch: Batch) -> dict[str, Any]:
    """Labels and texts of a batch, of those that the model needs."""
    return {
        "label": batch.labels if pipeline.num_classes else None,
        "text": batch.texts if _reads(pipeline) else None,
    }


def _measure_samples(
    pipeline: Pipeline, config: DataConfig, dataset: ImageDataset, batch_size: int, settings: SampleSettings
) -> SamplesRecord:
    """Draws images and compares them with `dataset`, or with another split of it."""
    network = load_features(settings.features).to(pipeline.device)
    if settings.against is not None:
        dataset = _load(replace(config, split=settings.against), None)
        _check(pipeline, dataset)
    if min(len(dataset), settings.count) < 4:  # what the third nearest neighbour needs
        raise ValueError(
            f"at least 4 samples and 4 images are needed to compare them, got {settings.count} and {len(dataset)}"
        )
    since = time.monotonic()
    generated = _draw(pipeline, dataset, batch_size, settings)
    seconds = time.monotonic() - since
    real = binarize(dataset.images, config.binarize, torch.Generator().manual_seed(settings.seed))
    seed = settings.seed if config.binarize == "sample" else None  # otherwise the images are the same with any
    key = ["features", settings.features, dataset.fingerprint, config.binarize, seed]

    def features(images: Tensor, **change: Callable[[Tensor], Tensor]) -> Tensor:
        with progress("Comparing", len(images), "images") as done:
            return pooled_features(images, network, on_batch=done, **change)

    def kept(what: str, **change: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of the real images: the next model of these data, or of this tokenizer, finds them in the cache."""

        def build(folder: Path) -> None:
            np.save(folder / "0.npy", features(real, **change).numpy())

        return cached_arrays([*key, what], build)[0]

    reconstructed = kept(tokenizer_hash(pipeline.tokenizer), change=lambda images: pipeline.reconstruct(images).cpu())
    quality = generation_quality(kept("real"), features(generated), reconstructed, network.title)
    return SamplesRecord(
        settings=settings,
        quality=quality,
        fingerprint=dataset.fingerprint,
        seconds_per_image=seconds / settings.count,
    )


def _draw(pipeline: Pipeline, dataset: ImageDataset, batch_size: int, settings: SampleSettings) -> Tensor:
    """Images with the labels or captions of a data set: of images at equal distances, since many data sets are sorted
    by class, or of all in turn where there are fewer than samples."""
    count, length, found = settings.count, pipeline.prior.spec.length, []
    sources = torch.arange(count) * max(len(dataset), count) // count % len(dataset)
    seeds = image_seeds(settings.seed, count)
    with progress("Sampling", count * length, "codes") as done:
        for start in range(0, count, batch_size):
            batch = dataset.batch(sources[start : start + batch_size])
            images = pipeline.sample(
                len(batch), **_conditions(pipeline, batch), temperature=settings.temperature, top_k=settings.top_k,
                top_p=settings.top_p, precision=settings.precision, guidance=settings.guidance,
                seed=seeds[start : start + batch_size],
                on_image=lambda known, _, before=start, now=len(batch): done(before * length + now * known),
            )  # fmt: skip
            found.append(images.cpu())
    return torch.cat(found)


def measure_tokenizer(
    tokenizer: Tokenizer, model: str, config: DataConfig, limit: int | None, features: str, batch_size: int,
    device: str,
) -> TokenizerRecord:  # fmt: skip
    """What a tokenizer keeps of a data set, recorded; raises ValueError where it cannot take its images.

    Args:
        features: a name for `load_features`, or "none".
    """
    dataset = _load(config, limit)
    try:
        tokenizer.check_images(dataset.images[:1])
    except ValueError as error:
        _, height, width = tokenizer.image_shape
        raise ValueError(f"{dataset.name}: {error}; add --size {height}x{width} to resize and crop them") from error
    network = None if features == "none" else load_features(features).to(device)
    with progress("Evaluating", len(dataset), "images") as done:
        quality = tokenizer_quality(tokenizer, dataset, network, batch_size, done)
    return TokenizerRecord(
        tokenizer=quality,
        features=features,
        **_common(tokenizer, model, config, dataset, limit, batch_size, ["--features", features]),
    )


def data_config(
    model: str, image_shape: tuple[int, int, int], source: str | None, split: str | None, size: str | None,
    binarize: str | None, strict: bool,
) -> DataConfig:  # fmt: skip
    """The images to evaluate on: as the model's recipe has them, but for what the options say."""
    recipe = read_card(model).get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    values: dict[str, Any] = dict(recipe.get("data") or {})
    if source is not None:
        if source != values.get("source"):  # the columns are those of another table
            values |= {"image_column": None, "label_column": None, "text_column": None}
        values["source"] = source
    if "source" not in values:
        raise ValueError(f"{model} does not say what it was trained on; give --data")
    channels, height, width = image_shape
    if size is not None:
        values["size"] = _size(size)
    elif values["source"] == "shapes":
        values["size"] = [height, width]
    values |= {
        "split": split or (recipe.get("evaluation") or {}).get("split") or "test",
        "channels": channels,
        "flip": False,
        "strict": strict,
    }
    if binarize is not None:
        values["binarize"] = binarize
    return build_dataclass(DataConfig, values, "evaluate")


def _size(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split("x")]
        height, width = numbers * 2 if len(numbers) == 1 else numbers
    except ValueError:
        raise ValueError(f"--size must be a number such as 28, or height x width such as 28x32, got {text!r}") from None
    return [height, width]


def _load(config: DataConfig, limit: int | None) -> ImageDataset:
    dataset = load(config)
    return dataset if limit is None else dataset.slice(0, limit)


def _common(
    part: nn.Module, model: str, config: DataConfig, dataset: ImageDataset, limit: int | None, batch_size: int,
    options: list[str],
) -> dict[str, Any]:  # fmt: skip
    """What every record says."""
    words = ["chainrule", "evaluate", model, "--data", config.source, "--split", config.split]
    if config.size is not None:
        words += ["--size", "{}x{}".format(*config.height_width)]
    if limit is not None:
        words += ["--limit", str(limit)]
    return {
        "command": shlex.join([*words, *options, "--batch-size", str(batch_size)]),
        "model": model,
        "model_sha256": weights_sha256(find(model)),
        "data": config,
        "data_name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "limit": limit,
        "batch_size": batch_size,
        "dtype": str(next((value.dtype for value in part.parameters()), "none")).removeprefix("torch."),
    }
