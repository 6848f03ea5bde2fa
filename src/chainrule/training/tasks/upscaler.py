"""A super-resolution, which learns to take what a tokenizer gives back to twice the size (Parti, section 2.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Tokenizer
from ...data import Batch, DataConfig, ImageDataset
from ...evaluation import psnr
from ...recipe import ModelConfig, Recipe
from ...strict import build_dataclass, to_plain
from ...tokenizers._grid import to_signed, to_uint8, to_unit
from ...upscaling.upscaler import Upscaler, UpscalerConfig, bicubic
from ...zoo import save_super_resolution
from ..engine.order import derive_seed
from .losses import ImageLosses, load_image_losses
from .prior import load_examples, open_tokenizer, recipe_card
from .tokenizer import ImageTask, check_image_recipe

PREVIEW_IMAGES = 12


class SuperResolutionTask(ImageTask):
    """Trains an `Upscaler` by the squared error of pixels in [-1, 1], mean (x - x')^2, and, where `losses` has
    them, a perceptual and an adversarial loss.

    Its input is the image at half size, each pixel the mean of four, as the tokenizer gives it back.  Measured on the
    evaluation images are `psnr`, the mean over them in dB, and `psnr_bicubic`, that of the input doubled by bicubic
    interpolation.

    Args:
        model: what is trained.
        tokenizer: of images of half the size, which stays as it is; None: the input is not encoded.
        data: how images are prepared.
        training: images of the full size.
        evaluation: such images to evaluate on.
        losses: the perceptual and the adversarial loss.
        limit: number of evaluation images that serve while training.
        batch_size: of evaluation.
        card: plain values to save with the model.
    """

    def __init__(
        self,
        model: Upscaler,
        tokenizer: Tokenizer | None,
        data: DataConfig,
        training: ImageDataset,
        evaluation: ImageDataset,
        losses: ImageLosses,
        limit: int = 1000,
        batch_size: int = 100,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(losses, model, data, training, evaluation, limit, batch_size, card)
        self.tokenizer = tokenizer

    def setup(self, device: torch.device) -> None:
        super().setup(device)
        if self.tokenizer is not None:
            self.tokenizer.to(device)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        target = batch.images.to(self.device)
        images = model(to_signed(self.reduce(target)))
        error = (images - to_signed(target)).square().mean()
        metrics = {"mse": error.detach()}
        return self.losses.add(error, metrics, to_unit(images), target / 255, self.model.last_layer, progress)

    @torch.no_grad()
    def reduce(self, images: Tensor) -> Tensor:
        """The input for images of the full size: uint8 (B, C, 2 H, 2 W) -> uint8 (B, C, H, W)."""
        halved = halve(images)
        if self.tokenizer is None:
            return halved
        with torch.autocast(images.device.type, enabled=False):
            return self.tokenizer.decode(self.tokenizer.encode(halved))

    def evaluate(self, model: Upscaler, final: bool) -> dict[str, float]:
        count = self.num_evaluated(final)
        doubled, interpolated = [], []
        for images in self.evaluation.images[:count].split(self.batch_size):
            images = images.to(self.device)
            reduced = self.reduce(images)
            doubled.append(psnr(images, model.upscale(reduced)).cpu())
            interpolated.append(psnr(images, to_uint8(bicubic(to_signed(reduced)))).cpu())
        return {"psnr": torch.cat(doubled).mean().item(), "psnr_bicubic": torch.cat(interpolated).mean().item()}

    def preview(self, model: Upscaler, seed: int) -> Tensor:
        """Evaluation images in threes, the same at every call: by bicubic interpolation, by the model, the target."""
        images = self.evaluation.images[:PREVIEW_IMAGES]
        reduced = self.reduce(images.to(self.device))
        threes = [to_uint8(bicubic(to_signed(reduced))).cpu(), model.upscale(reduced).cpu(), images]
        return torch.stack(threes, 1).flatten(0, 1)

    def save(self, model: Upscaler, folder: Path, card: dict[str, Any]) -> None:
        save_super_resolution(model, folder, self.card | card)


def halve(images: Tensor) -> Tensor:
    """Images uint8 (B, C, 2 H, 2 W) -> uint8 (B, C, H, W), means of 2x2 pixels."""
    return F.avg_pool2d(images.float(), 2).round().to(torch.uint8)


def super_resolution_task(recipe: Recipe) -> tuple[SuperResolutionTask, dict[str, Any]]:
    """The task of a recipe with the section `super_resolution`, and the recipe in full, every default written out, as
    plain values.

    Raises:
        ValueError: data, a tokenizer or values that do not go together.
    """
    check_image_recipe(recipe, "super-resolutions")
    if isinstance(recipe.tokenizer, ModelConfig):
        raise ValueError(
            f"{recipe.where}: the tokenizer whose images are doubled must be trained before; write tokenizer: {{path: "
            "the folder of its run}, or leave it out"
        )
    training, evaluation = load_examples(recipe)
    channels, height, width = training.image_shape
    if height % 2 or width % 2:
        raise ValueError(
            f"{recipe.where}: {height}x{width} cannot be halved to make what is to be doubled; set data.size to even"
        )
    config = build_dataclass(
        UpscalerConfig, {"image_channels": channels} | recipe.super_resolution, recipe.where, "super_resolution"
    )
    if config.image_channels != channels:
        raise ValueError(
            f"{recipe.where}: 'super_resolution.image_channels' must be {channels}, as {training.name} has it"
        )
    tokenizer, tokenizer_plain = None, None
    if recipe.tokenizer is not None:
        tokenizer, tokenizer_plain = open_tokenizer(recipe.tokenizer, recipe.where)
        try:
            tokenizer.check_images(halve(training.images[:1]))
        except ValueError as error:
            raise ValueError(f"{recipe.where}: the tokenizer is given the data at half its size: {error}") from None
    plain = {
        "data": to_plain(recipe.data),
        **({} if tokenizer is None else {"tokenizer": tokenizer_plain}),
        "super_resolution": to_plain(config),
        "losses": to_plain(recipe.losses),
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    task = SuperResolutionTask(
        Upscaler(config), tokenizer, recipe.data, training, evaluation,
        load_image_losses(recipe.losses, training.image_shape), recipe.evaluation.limit, recipe.evaluation.batch_size,
        {"recipe": recipe_card(plain, training)},
    )  # fmt: skip
    return task, plain
