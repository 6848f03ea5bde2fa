"""`chainrule reconstruct`: what a tokenizer keeps of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..progress import progress
from .common import (
    Device,
    Features,
    Force,
    Json,
    Model,
    Resize,
    Scale,
    TokenizerPrecision,
    check_file,
    free_name,
    open_features,
    open_tokenizer,
    print_json,
    print_table,
    read_any_image,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor


def reconstruct(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    resize: Resize = False,
    features: Features = None,
    out: Annotated[Path | None, typer.Option(help="A .png file.", show_default="reconstructions.png")] = None,
    scale: Scale = None,
    precision: TokenizerPrecision = "float32",
    force: Force = False,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Encode and decode images: a picture of each, its reconstruction and their difference, and how near they are.

    PSNR in dB and SSIM are greater for better reconstructions, the perceptual distance is less.  The difference is the
    mean over channels, dark where there is none.  Images may differ in size where the model takes several.

    \b
    Examples:
      chainrule reconstruct runs/vqgan photo.png
      chainrule reconstruct runs/vqgan one.png two.png --resize --out both.png --scale 2
      chainrule reconstruct runs/vqgan photo.png --features none --json
    """
    out = check_file(out or free_name("reconstructions", ".png"), ".png", force)

    import torch

    from ..evaluation import perceptual, psnr, ssim
    from ..images import grid
    from .pictures import automatic_scale, heat, write_png

    tokenizer = open_tokenizer(model, device).packed(precision)
    originals = [read_any_image(path, tokenizer, resize)[None] for path in images]
    network = open_features(features, device)
    figures, columns, greatest = [], [], 0.0
    with progress("Reconstructing", len(originals), "images") as done:
        for index, original in enumerate(originals):
            original = original.to(device)
            with torch.no_grad():
                result = tokenizer.decode(tokenizer.encode(original))
            figure = {"psnr": psnr(original, result).item(), "ssim": ssim(original, result).item()}
            if network is not None:
                figure["perceptual"] = perceptual(original, result, network).item()
            figures.append(figure)
            error = (original.float() - result.float()).abs().mean(1)
            columns.append((original.cpu(), result.cpu(), error.cpu()))
            greatest = max(greatest, error.max().item())
            done(index + 1)
    pictures = [picture.expand(-1, 3, -1, -1) for a, b, error in columns for picture in (a, b, heat(error, greatest))]
    _, height, width = tokenizer.image_shape
    write_png(out, grid(_framed(pictures), 3, scale or automatic_scale(max(height, width))))
    if json:
        rows = [{"image": str(path)} | figure for path, figure in zip(images, figures, strict=True)]
        title = None if network is None else network.title
        print_json({"out": str(out), "features": title, "greatest_error": greatest, "images": rows})
        return
    rows = [[str(path), *_words(figure)] for path, figure in zip(images, figures, strict=True)]
    if len(rows) > 1:
        rows.append(["mean", *_words({key: sum(f[key] for f in figures) / len(figures) for key in figures[0]})])
    headers = ["image", "PSNR (dB)", "SSIM"] + ([] if network is None else ["perceptual"])
    print_table(headers, rows)
    if network is not None:
        print(f"perceptual distance: {network.title} features")
    print(f"{out}: image, reconstruction, difference (the lightest is {greatest:.1f} of 255)")


def _words(figure: dict[str, float]) -> list[str]:
    return [f"{value:.2f}" if name == "psnr" else f"{value:.4f}" for name, value in figure.items()]


def _framed(pictures: list[Tensor]) -> Tensor:
    """Pictures (1, C, H, W) of several sizes -> (B, C, H, W), grey at the right and below the smaller ones."""
    import torch
    import torch.nn.functional as F

    height, width = (max(picture.shape[side] for picture in pictures) for side in (2, 3))
    return torch.cat([
        F.pad(picture, (0, width - picture.shape[3], 0, height - picture.shape[2]), value=128) for picture in pictures
    ])  # fmt: skip
