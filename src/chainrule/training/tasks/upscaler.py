"""An upscaler, which learns to take what a tokenizer gives back to twice the size (Parti, section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Tokenizer
from ...data import Batch, DataConfig
from ...evaluation import psnr
from ...processes import shared
from ...recipe import NewModel, Recipe, SavedTokenizer
from ...strict import build_dataclass, section, to_plain
from ...tokenizers._grid import to_signed, to_uint8, to_unit
from ...upscaling.upscaler import Upscaler, UpscalerConfig, bicubic
from ...zoo import save
from ..engine.config import EvaluationConfig, TrainingConfig
from ..engine.order import derive_seed
from .codes import open_tokenizer
from .examples import Examples, load_examples, sized
from .images import ImageTask, check_recipe
from .losses import ImageLosses, LossesConfig, load_image_losses

PREVIEW_IMAGES = 12


class UpscalerTask(ImageTask):
    """Trains an `Upscaler` by the squared error of pixels in [-1, 1], mean (x - x')^2, and, where `losses` has
    them, a perceptual and an adversarial loss.

    Its input is the image at half size, each pixel the mean of four, as the tokenizer gives it back.  Measured on the
    evaluation images are `psnr`, the mean over them in dB, and `psnr_bicubic`, that of the input doubled by bicubic
    interpolation.

    Args:
        model: what is trained.
        tokenizer: of images of half the size, which stays as it is; None: the input is not encoded.
        examples: images of the full size.
        losses: the perceptual and the adversarial loss.
        card: plain values to save with the model.
    """

    def __init__(
        self,
        model: Upscaler,
        tokenizer: Tokenizer | None,
        examples: Examples,
        losses: ImageLosses,
        card: Mapping[str, Any] = {},
    ) -> None:
        super().__init__(model, examples, losses, card)
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
        def decibels(indices: Tensor) -> Tensor:
            images = self.evaluation.images[indices].to(self.device)
            reduced = self.reduce(images)
            made = model.upscale(reduced), to_uint8(bicubic(to_signed(reduced)))
            return torch.stack([psnr(images, one).cpu() for one in made])

        doubled, interpolated = torch.cat(shared(decibels, self.evaluated(final).split(self.batch_size)), 1)
        return {"psnr": doubled.mean().item(), "psnr_bicubic": interpolated.mean().item()}

    def preview(self, model: Upscaler, seed: int) -> Tensor:
        """Evaluation images in threes, the same at every call: by bicubic interpolation, by the model, the target."""
        images = self.evaluation.images[:PREVIEW_IMAGES]
        reduced = self.reduce(images.to(self.device))
        threes = [to_uint8(bicubic(to_signed(reduced))).cpu(), model.upscale(reduced).cpu(), images]
        return torch.stack(threes, 1).flatten(0, 1)

    def save(self, model: Upscaler, folder: Path, card: dict[str, Any]) -> None:
        save(model, folder, self.card | card)


def halve(images: Tensor) -> Tensor:
    """Images uint8 (B, C, 2 H, 2 W) -> uint8 (B, C, H, W), means of 2x2 pixels."""
    return F.avg_pool2d(images.float(), 2).round().to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class UpscalerRecipe(Recipe, kind="upscaler"):
    """What to train an upscaler on.

    data:       images of the full size
    tokenizer:  a trained one, whose reconstructions of the data at half size are doubled; left out, the halved images
    upscaler:   fields of `chainrule.upscaling.upscaler.UpscalerConfig`, whose image channels are the data's
    losses:     what it minimises besides the squared error
    training:   how to train
    evaluation: when to evaluate
    """

    data: DataConfig
    tokenizer: SavedTokenizer | NewModel | None = None
    upscaler: dict[str, Any]
    losses: LossesConfig = section(LossesConfig)
    training: TrainingConfig = section(TrainingConfig, learning_rate=1e-3, channels_last=True, sample_every=1000)
    evaluation: EvaluationConfig = section(EvaluationConfig)

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, NewModel):
            raise ValueError(
                "the tokenizer whose images are doubled must be trained before; write tokenizer: {path: the folder of "
                "its run}, or leave it out"
            )

    def build(self, device: Any = None, quiet: bool = True) -> tuple[UpscalerTask, UpscalerRecipe]:
        """See `Recipe`."""
        check_recipe(self.data, self.training, self.losses)
        tokenizer, tokenizer_section, data = None, None, self.data
        if self.tokenizer is not None:
            tokenizer, found = open_tokenizer(self.tokenizer.path, self.tokenizer.hash)
            tokenizer_section, data = replace(self.tokenizer, hash=found), sized(data, tokenizer.image_shape, 2)
        examples = load_examples(data, self.evaluation)
        channels, height, width = examples.training.image_shape
        if height % 2 or width % 2:
            raise ValueError(f"{height}x{width} cannot be halved to make the input; set data.size to even")
        config = build_dataclass(UpscalerConfig, {"image_channels": channels} | self.upscaler, "", "upscaler")
        if config.image_channels != channels:
            raise ValueError(f"'upscaler.image_channels' must be {channels}, as {examples.training.name} has it")
        recipe = replace(self, data=examples.data, tokenizer=tokenizer_section, upscaler=to_plain(config))
        if tokenizer is not None:
            try:
                tokenizer.check_images(halve(examples.training.images[:1]))
            except ValueError as error:
                raise ValueError(f"the tokenizer is given the data at half its size: {error}") from None
        torch.manual_seed(derive_seed(self.training.seed, "weights"))
        model, losses = Upscaler(config), load_image_losses(self.losses, examples.training.image_shape)
        return UpscalerTask(model, tokenizer, examples, losses, examples.card(recipe)), recipe
