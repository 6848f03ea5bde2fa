"""Stage one: a tokenizer that learns to give back images from few codes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import LearnedTokenizer, entry
from ...data import Batch, DataConfig
from ...evaluation import CodeCounts, psnr
from ...processes import shared
from ...recipe import NewModel, Recipe, weights_on
from ...strict import build_dataclass, section, to_plain
from ...zoo import save
from ..engine.config import EvaluationConfig, TrainingConfig
from ..engine.order import derive_seed
from .codes import check_shape, fit_to, open_tokenizer
from .examples import Examples, load_examples, sized
from .images import ImageTask, check_recipe
from .losses import ImageLosses, LossesConfig, load_image_losses

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
            for name, parameter in tokenizer.named_parameters():
                parameter.requires_grad_(tokenizer.is_decoding(name))

    def train(self, mode: bool = True) -> TokenizerPass:
        super().train(mode and not self.decoder_only)
        if self.decoder_only:
            for name in self.tokenizer.decoder_parts:
                self.tokenizer.get_submodule(name).train(mode)
        return self

    def forward(self, images: Tensor, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """uint8 (B, C, H, W) -> the images, the loss and the metrics of a `Reconstruction`."""
        result = self.tokenizer.reconstruction(images, progress)
        return result.images, result.loss, result.metrics


class TokenizerTask(ImageTask):
    """Trains a tokenizer with its own loss and, where `losses` says so, a perceptual and an adversarial one.

    Measured on the evaluation images are `psnr`, the mean over them in dB, of what `decode` gives of the codes, and,
    per grid of codes, `usage`, the share of the codebook that occurs, and `perplexity`, exp of the entropy of its use,
    at most the size of the codebook.

    Args:
        tokenizer: what is trained.
        examples: the images.
        losses: the perceptual and the adversarial loss.
        card: plain values to save with the model.
        decoder_only: whether only what decodes is trained, and the codes stay as they are.
    """

    def __init__(
        self,
        tokenizer: LearnedTokenizer,
        examples: Examples,
        losses: ImageLosses,
        card: Mapping[str, Any] = {},
        decoder_only: bool = False,
    ) -> None:
        super().__init__(TokenizerPass(tokenizer, decoder_only), examples, losses, card)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        target = batch.images.to(self.device)
        images, loss, metrics = model(target, progress)
        return self.losses.add(loss, metrics, images, target / 255, self.model.tokenizer.last_layer, progress)

    def evaluate(self, model: TokenizerPass, final: bool) -> dict[str, float]:
        """See the class; a codebook that is hardly used is warned of."""
        tokenizer = model.tokenizer

        def reconstruct(indices: Tensor) -> tuple[Tensor, CodeCounts]:
            images = self.evaluation.images[indices].to(self.device)
            codes = tokenizer.encode(images)
            return psnr(images, tokenizer.decode(codes)).cpu(), CodeCounts(tokenizer.spec).add(codes)

        decibels, found = zip(*shared(reconstruct, self.evaluated(final).split(self.batch_size)), strict=True)
        counts = CodeCounts(tokenizer.spec)
        for part in found:
            counts.merge(part)
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
        save(model.tokenizer, folder, self.card | card)


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


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True, kw_only=True)
class RefinedTokenizer:
    """A trained tokenizer that is trained further: as a whole, or its decoder and nothing else.

    path:    a folder that holds one, the folder of a run, or the name of a bundled model
    decoder: fields of its config that change, {} for none: only what decodes is trained, and the codes stay.  Left out,
             all of it is trained, and its codes become others than those that a prior knows
    hash:    its sha256, checked where it is given; a run writes down the one that it has found
    """

    path: str
    hash: str | None = None
    decoder: dict[str, Any] | None = None

    def open(self) -> tuple[LearnedTokenizer, RefinedTokenizer]:
        """The tokenizer, with the new decoder if there is one, and this section with all fields of it."""
        tokenizer, found = open_tokenizer(self.path, self.hash)
        if self.decoder is None and isinstance(tokenizer, LearnedTokenizer):
            return tokenizer.requires_grad_(True), replace(self, hash=found)
        if not isinstance(tokenizer, LearnedTokenizer):
            raise ValueError(f"the tokenizer {tokenizer.name} has nothing to learn; add the section 'prior'")
        if not tokenizer.decoder_parts:
            raise ValueError(
                f"{tokenizer.name} has no decoder that could change while its codes stay; leave out 'tokenizer.decoder'"
            )
        options = tokenizer.decoder_options
        if wrong := [name for name in self.decoder if name not in options]:
            raise ValueError(
                f"'tokenizer.decoder.{wrong[0]}' is not the decoder's alone; what may change of a {tokenizer.name} "
                f"without changing its codes: {', '.join(options) or 'no field, only the weights (decoder: {})'}"
            )
        given = to_plain(tokenizer.config) | self.decoder
        config = build_dataclass(type(tokenizer.config), given, "", "tokenizer.decoder")
        decoder = {name: to_plain(getattr(config, name)) for name in options}
        return tokenizer.with_decoder(config), replace(self, hash=found, decoder=decoder)


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe(Recipe, kind="tokenizer"):
    """What to train a tokenizer on.

    data:       the images
    tokenizer:  a new one, or a trained one that is trained further
    losses:     what it minimises besides its own loss
    training:   how to train
    evaluation: when to evaluate
    """

    data: DataConfig
    tokenizer: RefinedTokenizer | NewModel
    losses: LossesConfig = section(LossesConfig)
    training: TrainingConfig = section(TrainingConfig, channels_last=True, sample_every=1000)
    evaluation: EvaluationConfig = section(EvaluationConfig)

    def build(self, device: Any = None, quiet: bool = True) -> tuple[TokenizerTask, TokenizerRecipe]:
        """See `Recipe`."""
        check_recipe(self.data, self.training, self.losses)
        refined = isinstance(self.tokenizer, RefinedTokenizer)
        if not refined and not issubclass(entry("tokenizers", self.tokenizer.name).model, LearnedTokenizer):
            raise ValueError(f"the tokenizer {self.tokenizer.name} has nothing to learn; add the section 'prior'")
        torch.manual_seed(derive_seed(self.training.seed, "weights"))
        if refined:
            tokenizer, tokenizer_section = self.tokenizer.open()
            examples = load_examples(sized(self.data, tokenizer.image_shape), self.evaluation)
            tokenizer = fit_to(tokenizer, examples)
        else:
            examples = load_examples(self.data, self.evaluation)
            with weights_on(device):
                tokenizer, tokenizer_section = self._new(examples)
            check_shape(tokenizer, examples)
        recipe = replace(self, data=examples.data, tokenizer=tokenizer_section)
        losses = load_image_losses(self.losses, examples.training.image_shape)
        decoder_only = refined and self.tokenizer.decoder is not None
        task = TokenizerTask(tokenizer, examples, losses, examples.card(recipe), decoder_only)
        if refined and not decoder_only:
            task.notes = (
                "the whole tokenizer is trained: its codes change, and priors over its old codes do not fit it; "
                "'tokenizer.decoder: {}' keeps the codes",
            )
        return task, recipe

    def _new(self, examples: Examples) -> tuple[LearnedTokenizer, NewModel]:
        name, config = self.tokenizer.name, self.tokenizer.config("tokenizers", examples.image_fields())
        return entry("tokenizers", name).model(config), NewModel.of(name, config)
