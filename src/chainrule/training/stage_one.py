"""Stage one: a tokenizer that learns to give back images from few codes."""

from __future__ import annotations

import warnings
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artefact import save_tokenizer
from ..config import LossesConfig, Recipe, SavedTokenizer, build_model_config, to_plain
from ..core import LearnedTokenizer, entry
from ..data import Batch, DataConfig, ImageDataset, augment
from ..metrics import CodeCounts, psnr
from .discriminators import Discriminator, build_discriminator
from .losses import adaptive_weight, known_loss, load_perceptual_loss
from .order import derive_seed
from .stage_two import load_examples, recipe_card, refuse_options_of_priors
from .task import Adversary

PREVIEW_IMAGES = 8
LOW_USAGE = 0.5
"""Share of used codes below which there is a warning."""
ENOUGH_CODES = 20
"""Codes evaluated per entry of a codebook that make its usage telling."""


class TokenizerPass(nn.Module):
    """A tokenizer as it is called in training, with plain results: `forward` is `reconstruction`."""

    compile_training = False  # quantizers break the graph, and an adaptive weight needs it in pieces

    def __init__(self, tokenizer: LearnedTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """uint8 (B, C, H, W) -> the images, the loss and the metrics of a `Reconstruction`."""
        result = self.tokenizer.reconstruction(images, progress)
        return result.images, result.loss, result.metrics


class TokenizerTask:
    """Trains a tokenizer with its own loss and, where `losses` says so, a perceptual and an adversarial one.

    Measured on the evaluation images are `psnr`, the mean over them in dB, of what `decode` gives of the codes, and,
    per grid of codes, `usage`, the share of the codebook that occurs, and `perplexity`, exp of the entropy of its use,
    at most the size of the codebook.

    The perceptual and the adversarial loss are differentiated up to the image once, and these gradients used twice: for
    the adaptive weight, and to train the tokenizer.

    Args:
        tokenizer: what is trained.
        data: how training images are prepared.
        training: training images.
        evaluation: images to evaluate on.
        losses: weights of the losses, and the adversary.
        perceptual: of target and images float (B, C, H, W) in about [0, 1], a scalar; needed if `losses` has one.
        limit: number of evaluation images that serve while training.
        batch_size: of evaluation.
        card: plain values to save with the model.
    """

    def __init__(
        self,
        tokenizer: LearnedTokenizer,
        data: DataConfig,
        training: ImageDataset,
        evaluation: ImageDataset,
        losses: LossesConfig = LossesConfig(),
        perceptual: nn.Module | None = None,
        limit: int = 1000,
        batch_size: int = 100,
        card: dict[str, Any] | None = None,
    ) -> None:
        assert (perceptual is None) == (losses.perceptual is None)
        self.model = TokenizerPass(tokenizer)
        self.data, self.training, self.evaluation = data, training, evaluation
        self.losses, self.perceptual = losses, perceptual
        self.limit, self.batch_size, self.card = limit, batch_size, card or {}
        self.num_examples = len(training)
        self.device = torch.device("cpu")
        self.adversary: Adversary | None = None
        if losses.adversarial:
            given = losses.adversarial
            discriminator = build_discriminator(given, tokenizer.image_shape)
            self.adversary = Adversary(discriminator, given.start, given.learning_rate, given.betas)
        self.reconstructed: Tensor | None = None  # of the last batch, in [0, 1]: what the adversary is to judge

    def setup(self, device: torch.device) -> None:
        self.device = device
        if self.perceptual is not None:
            self.perceptual.to(device)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> Batch:
        return Batch(augment(self.training.batch(indices), self.data, generator).images[part])

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        target = batch.images.to(self.device)
        images, loss, metrics = model(target, progress)
        self.reconstructed = images.detach()
        judged = images.detach().requires_grad_()
        if self.perceptual is not None:
            distance = self.perceptual(_unit(target), judged)
            (gradient,) = torch.autograd.grad(distance, judged)
            weight = self.losses.perceptual.weight
            loss = loss + known_loss(images, weight * distance.detach(), weight * gradient)
            metrics = {"perceptual": distance.detach()} | metrics
        if self.adversary is not None:
            more, figures = self._against_adversary(loss, images, judged, progress)
            loss, metrics = loss + more, metrics | figures
        return loss, metrics

    def _against_adversary(
        self, others: Tensor, images: Tensor, judged: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted adversarial loss of `images`, whose detached copy is `judged`, and what is to be logged."""
        zero = torch.zeros((), device=self.device)
        if progress < self.adversary.start:
            return zero, {"adversarial": zero, "adversarial_weight": zero}
        discriminator = self.adversary.module
        assert isinstance(discriminator, Discriminator)
        wrong = -discriminator.score(judged).mean()
        (gradient,) = torch.autograd.grad(wrong, judged)
        weight = zero + self.losses.adversarial.weight
        if self.losses.adversarial.adaptive:
            layer = self.model.tokenizer.last_layer
            (ours,) = torch.autograd.grad(others, layer, retain_graph=True)
            (theirs,) = torch.autograd.grad(images, layer, gradient, retain_graph=True)
            weight = weight * adaptive_weight(ours, theirs)
        loss = known_loss(images, weight * wrong.detach(), weight * gradient)
        return loss, {"adversarial": wrong.detach(), "adversarial_weight": weight}

    def adversary_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(_unit(batch.images.to(self.device)), self.reconstructed)

    def evaluate(self, model: TokenizerPass, final: bool) -> dict[str, float]:
        """See the class; a codebook that is hardly used is warned of."""
        count = len(self.evaluation) if final else min(self.limit, len(self.evaluation))
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
            metrics[f"perplexity{name}"] = use.perplexity * use.values
            if use.share_used < LOW_USAGE and counts.counts[use.grid].sum() >= ENOUGH_CODES * use.values:
                warnings.warn(_advice(tokenizer, use.share_used, use.grid, use.values), stacklevel=2)
        return metrics

    def preview(self, model: TokenizerPass, seed: int) -> Tensor:
        """Evaluation images, each beside what its codes give: the same at every call."""
        images = self.evaluation.images[:PREVIEW_IMAGES]
        decoded = model.tokenizer.decode(model.tokenizer.encode(images.to(self.device))).cpu()
        return torch.stack([images, decoded], 1).flatten(0, 1)

    def save(self, model: TokenizerPass, folder: Path, card: dict[str, Any]) -> None:
        save_tokenizer(model.tokenizer, folder, self.card | card)


def _unit(images: Tensor) -> Tensor:
    """uint8 -> float in [0, 1]."""
    return images.float() / 255


def _advice(tokenizer: LearnedTokenizer, usage: float, level: int, size: int) -> str:
    """The sentence about a codebook that is hardly used; it names what the tokenizer's config has."""
    config = tokenizer.config
    options = asdict(config) if is_dataclass(config) else {}
    changes = [
        change.format(options[name])
        for name, change in (
            ("restart_below", "raise tokenizer.restart_below (now {})"),
            ("kl_weight", "raise tokenizer.kl_weight (now {})"),
            ("num_codes", "lower tokenizer.num_codes (now {})"),
            ("vocab_size", "lower tokenizer.vocab_size (now {})"),
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
    if isinstance(recipe.tokenizer, SavedTokenizer):
        raise ValueError(f"{recipe.where}: the tokenizer of a 'path' is trained already; add the section 'prior'")
    refuse_options_of_priors(recipe)
    model = entry("tokenizers", recipe.tokenizer.name).model
    if not issubclass(model, LearnedTokenizer):
        raise ValueError(
            f"{recipe.where}: the tokenizer {recipe.tokenizer.name} has nothing to learn; add the section 'prior'"
        )
    if recipe.data.binarize != "none":
        raise ValueError(f"{recipe.where}: tokenizers are trained on images as they are; set data.binarize to none")
    if recipe.training.compile is True and recipe.losses.adversarial and recipe.losses.adversarial.adaptive:
        raise ValueError(
            f"{recipe.where}: the adaptive weight needs the gradient of one layer, which a compiled tokenizer does not "
            "give; leave training.compile out, or set losses.adversarial.adaptive to false"
        )
    training, evaluation = load_examples(recipe)
    channels, height, width = training.image_shape
    defaults = {"height": height, "width": width, "channels": channels}
    config = build_model_config("tokenizers", recipe.tokenizer, recipe.where, defaults)
    plain = {
        "data": to_plain(recipe.data),
        "tokenizer": {"name": recipe.tokenizer.name} | to_plain(config),
        "losses": to_plain(recipe.losses),
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    tokenizer = model(config)
    if tokenizer.image_shape != training.image_shape:
        raise ValueError(f"the tokenizer is for images {tokenizer.image_shape}, the data has {training.image_shape}")
    perceptual = load_perceptual_loss(recipe.losses.perceptual) if recipe.losses.perceptual else None
    task = TokenizerTask(
        tokenizer, recipe.data, training, evaluation, recipe.losses, perceptual, recipe.evaluation.limit,
        recipe.evaluation.batch_size,
        card={"recipe": recipe_card(plain, training)},
    )  # fmt: skip
    return task, plain
