"""What `chainrule evaluate` does with a model and a data set, up to the record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..artefact import read_card
from ..config import build_dataclass
from ..core import LearnedTokenizer, Tokenizer
from ..data import DataConfig, ImageDataset, load
from ..metrics import likelihood, load_features, tokenizer_quality
from ..pipeline import Pipeline, find
from ..progress import progress
from .record import LikelihoodRecord, TokenizerRecord, weights_sha256


def measure_likelihood(
    pipeline: Pipeline, model: str, config: DataConfig, limit: int | None, seeds: tuple[int, ...], batch_size: int
) -> LikelihoodRecord:
    """The likelihood of a data set, recorded; raises ValueError where the model cannot read it."""
    dataset = _load(config, limit)
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
    reads = pipeline.prior.joint_text or pipeline.prior.text_length > 0
    if reads and dataset.texts is None:
        raise ValueError(f"this model needs captions, but {dataset.name} has none")
    with progress("Evaluating", len(dataset) * max(1, len(seeds)), "images") as done:
        result = likelihood(
            lambda batch: pipeline.log_prob(
                batch.images, batch.labels if classes else None, text=batch.texts if reads else None
            ),
            dataset, config.binarize, seeds or (0,), batch_size, done,
        )  # fmt: skip
    bits, error = pipeline.bits_per_dim, result.standard_error
    learned = isinstance(pipeline.tokenizer, LearnedTokenizer)
    options = ["--binarize", config.binarize]
    if seeds:
        options += ["--seeds", str(len(seeds)), "--seed", str(seeds[0])]
    return LikelihoodRecord(
        likelihood=result,
        bits_per_dim=bits(result.nats),
        bits_per_dim_standard_error=None if error is None else bits(error),
        seeds=seeds,
        nats_per_code=result.nats_per_code(pipeline.tokenizer.spec.num_codes) if learned else None,
        bits_per_image=result.bits_per_image if learned else None,
        **_common(pipeline.prior, model, config, dataset, limit, batch_size, options),
    )


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
