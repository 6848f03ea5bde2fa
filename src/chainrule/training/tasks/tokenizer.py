"""Stage one: a tokenizer that learns to give back images from few codes."""

from __future__ import annotations

import warnings
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import LearnedTokenizer, entry
from ...data import Batch, DataConfig, ImageDataset, augment
from ...evaluation import CodeCounts, psnr
from ...recipe import Recipe, SavedTokenizer, build_model_config
from ...strict import build_dataclass, to_plain
from ...zoo import save_tokenizer
from ..engine.order import derive_seed
from ..engine.task import DataTask
from .losses import ImageLosses, load_image_losses
from .prior import load_examples, open_tokenizer, recipe_card, refuse_options_of_priors

PREVIEW_IMAGES = 8
LOW_USAGE = 0.5
"""Share of used codes below which there is a warning."""
ENOUGH_CODES = 20
"""Codes evaluated per entry of a codebook that make its usage telling."""


class TokenizerPass(nn.Module):
    """A tokenizer as it is called in training, with plain results: `forward` is `reconstruction`.

    With `decoder_only`, what makes the codes is frozen and always in evaluation mode, so that no codebook learns.
    """

    compile_training = False  # quantizers break the graph, and an adaptive weight needs it in pieces

    def __init__(self, tokenizer: LearnedTokenizer, decoder_only: bool = False) -> None:
        super().__init__()
        self.tokenizer, self.decoder_only = tokenizer, decoder_only
        if decoder_only:
            for name, part in tokenizer.named_children():
                if name not in tokenizer.decoder_parts:
                    part.requires_grad_(False)

    def train(self, mode: bool = True) -> TokenizerPass:
        super().train(mode and not self.decoder_only)
        if self.decoder_only:
            for name in self.tokenizer.decoder_parts:
                getattr(self.tokenizer, name).train(mode)
        return self

    def forward(self, images: Tensor, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """uint8 (B, C, H, W) -> the images, the loss and the metrics of a `Reconstruction`."""
        result = self.tokenizer.reconstruction(images, progress)
        return result.images, result.loss, result.metrics


class ImageTask(DataTask):
    """What tasks of models that make images have in common.

    Args:
        losses: the perceptual and the adversarial loss.
        others: those of `DataTask`.
    """

    def __init__(self, losses: ImageLosses, *others: Any) -> None:
        super().__init__(*others)
        self.losses, self.adversary = losses, losses.adversary

    def setup(self, device: torch.device) -> None:
        super().setup(device)
        self.losses.to(device)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> Batch:
        return Batch(augment(self.training.batch(indices), self.data, generator).images[part])

    def adversary_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return self.losses.adversary_loss(module, batch.images.to(self.device) / 255)


class TokenizerTask(ImageTask):
    """Trains a tokenizer with its own loss and, where `losses` says so, a perceptual and an adversarial one.

    Measured on the evaluation images are `psnr`, the mean over them in dB, of what `decode` gives of the codes, and,
    per grid of codes, `usage`, the share of the codebook that occurs, and `perplexity`, exp of the entropy of its use,
    at most the size of the codebook.

    Args:
        tokenizer: what is trained.
        data: how training images are prepared.
        training: training images.
        evaluation: images to evaluate on.
        losses: the perceptual and the adversarial loss.
        limit: number of evaluation images that serve while training.
        batch_size: of evaluation.
        card: plain values to save with the model.
        decoder_only: whether only what decodes is trained, and the codes stay as they are.
    """

    def __init__(
        self,
        tokenizer: LearnedTokenizer,
        data: DataConfig,
        training: ImageDataset,
        evaluation: ImageDataset,
        losses: ImageLosses,
        limit: int = 1000,
        batch_size: int = 100,
        card: dict[str, Any] | None = None,
        decoder_only: bool = False,
    ) -> None:
        model = TokenizerPass(tokenizer, decoder_only)
        super().__init__(losses, model, data, training, evaluation, limit, batch_size, card)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        target = batch.images.to(self.device)
        images, loss, metrics = model(target, progress)
        return self.losses.add(loss, metrics, images, target / 255, self.model.tokenizer.last_layer, progress)

    def evaluate(self, model: TokenizerPass, final: bool) -> dict[str, float]:
        """See the class; a codebook that is hardly used is warned of."""
        count = self.num_evaluated(final)
        tokenizer, decibels = model.tokenizer, []
        counts = CodeCounts(tokenizer.spec)
        for start in range(0, count, self.batch_size):
            images = self.evaluation.images[start : min(start + self.batch_size, count)].to(self.device)
            codes = tokenizer.encode(images)
            decibels.append(psnr(images, tokenizer.decode(codes)).cpu())
            counts.add(codes)
        metrics = {"psnr": torch.cat(decibels).mean().item()}
        for use in counts.use():
            if use.depth is not None:
                continue
            name = f"_{use.grid}" if len(tokenizer.spec.grids) > 1 else ""
            metrics[f"usage{name}"] = use.share_used
            metrics[f"perplexity{name}"] = use.perplexity
            telling = counts.counts[use.grid].sum() >= ENOUGH_CODES * use.codebook_size
            if use.share_used < LOW_USAGE and telling and not model.decoder_only:
                warnings.warn(_advice(tokenizer, use.share_used, use.grid, use.codebook_size), stacklevel=2)
        return metrics

    def preview(self, model: TokenizerPass, seed: int) -> Tensor:
        """Evaluation images, each beside what its codes give: the same at every call."""
        images = self.evaluation.images[:PREVIEW_IMAGES]
        decoded = model.tokenizer.decode(model.tokenizer.encode(images.to(self.device))).cpu()
        return torch.stack([images, decoded], 1).flatten(0, 1)

    def save(self, model: TokenizerPass, folder: Path, card: dict[str, Any]) -> None:
        save_tokenizer(model.tokenizer, folder, self.card | card)


def _advice(tokenizer: LearnedTokenizer, usage: float, level: int, size: int) -> str:
    """The sentence about a codebook that is hardly used; it names what the tokenizer's config has."""
    config = tokenizer.config
    options = asdict(config) if is_dataclass(config) else {}
    changes = [
        change.format(options[name])
        for name, change in (
            ("restart_below", "raise tokenizer.restart_below (now {})"),
            ("kl_weight", "raise tokenizer.kl_weight (now {})"),
            ("codebook_size", "lower tokenizer.codebook_size (now {})"),
        )
        if name in options
    ]
    return (
        f"only {usage:.0%} of the {size} codes of grid {level} are in use; train longer or with a lower "
        f"training.learning_rate, {' or '.join(changes)}"
    )


def tokenizer_task(recipe: Recipe) -> tuple[TokenizerTask, dict[str, Any]]:
    """The task of a recipe without prior, and the recipe in full, every default written out, as plain values.

    Raises:
        ValueError: data, a tokenizer or values that do not go together.
    """
    check_image_recipe(recipe, "tokenizers")
    saved = isinstance(recipe.tokenizer, SavedTokenizer)
    if saved and recipe.tokenizer.decoder is None:
        raise ValueError(
            f"{recipe.where}: the tokenizer of a 'path' is trained already; add the section 'prior', or say in "
            "'tokenizer.decoder' how its decoder is to change"
        )
    if not saved and not issubclass(entry("tokenizers", recipe.tokenizer.name).model, LearnedTokenizer):
        raise ValueError(
            f"{recipe.where}: the tokenizer {recipe.tokenizer.name} has nothing to learn; add the section 'prior'"
        )
    training, evaluation = load_examples(recipe)
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    if saved:
        tokenizer, tokenizer_plain = _with_decoder(recipe)
    else:
        tokenizer, tokenizer_plain = _build(recipe, training.image_shape)
    if tokenizer.image_shape != training.image_shape:
        raise ValueError(f"the tokenizer is for images {tokenizer.image_shape}, the data has {training.image_shape}")
    plain = {
        "data": to_plain(recipe.data),
        "tokenizer": tokenizer_plain,
        "losses": to_plain(recipe.losses),
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    task = TokenizerTask(
        tokenizer, recipe.data, training, evaluation, load_image_losses(recipe.losses, training.image_shape),
        recipe.evaluation.limit, recipe.evaluation.batch_size, {"recipe": recipe_card(plain, training)},
        decoder_only=saved,
    )  # fmt: skip
    return task, plain


def check_image_recipe(recipe: Recipe, what: str) -> None:
    """Raises ValueError where a recipe of a model that makes images has options that do not go with that; `what` is
    called so in the sentence."""
    refuse_options_of_priors(recipe)
    if recipe.data.binarize != "none":
        raise ValueError(f"{recipe.where}: {what} are trained on images as they are; set data.binarize to none")
    if recipe.training.compile is True and recipe.losses.adversarial and recipe.losses.adversarial.adaptive:
        raise ValueError(
            f"{recipe.where}: the adaptive weight needs the gradient of one layer, which a compiled model does not "
            "give; leave training.compile out, or set losses.adversarial.adaptive to false"
        )


def _build(recipe: Recipe, image_shape: tuple[int, int, int]) -> tuple[LearnedTokenizer, dict[str, Any]]:
    """The new tokenizer of a recipe, and its section in full."""
    name, defaults = (
        recipe.tokenizer.name,
        dict(zip(("image_channels", "image_height", "image_width"), image_shape, strict=True)),
    )
    config = build_model_config("tokenizers", recipe.tokenizer, recipe.where, defaults)
    return entry("tokenizers", name).model(config), {"name": name} | to_plain(config)


def _with_decoder(recipe: Recipe) -> tuple[LearnedTokenizer, dict[str, Any]]:
    """The saved tokenizer of a recipe with the decoder that the recipe wants, and its section in full."""
    tokenizer, plain = open_tokenizer(recipe.tokenizer, recipe.where)
    if not isinstance(tokenizer, LearnedTokenizer) or not tokenizer.decoder_parts:
        raise ValueError(
            f"{recipe.where}: {tokenizer.name} has no decoder that could change while its codes stay; leave out "
            "'tokenizer.decoder'"
        )
    options = tokenizer.decoder_options
    if wrong := [name for name in recipe.tokenizer.decoder if name not in options]:
        raise ValueError(
            f"{recipe.where}: 'tokenizer.decoder.{wrong[0]}' is not the decoder's alone; what may change of a "
            f"{tokenizer.name} without changing its codes: {', '.join(options)}"
        )
    given = to_plain(tokenizer.config) | recipe.tokenizer.decoder
    config = build_dataclass(type(tokenizer.config), given, recipe.where, "tokenizer.decoder")
    plain["decoder"] = {name: to_plain(getattr(config, name)) for name in options}
    return tokenizer.with_decoder(config), plain
