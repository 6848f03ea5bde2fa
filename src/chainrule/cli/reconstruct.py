"""`chainrule reconstruct`: what a tokenizer keeps of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import open_tokenizer, read_image
from .options import Device, Features, Force, Images, Json, Model, NoMetadata, Png, Resize, Scale, TokenizerPrecision
from .output import check_file, free_name, print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor


def reconstruct(
    model: Model, images: Images, resize: Resize = False, features: Features = None, out: Png = None,
    scale: Scale = None, precision: TokenizerPrecision = "float32", no_metadata: NoMetadata = False,
    force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Encode and decode images: a picture of each, its reconstruction and their difference, with figures.

    PSNR in dB and SSIM are larger for better reconstructions, the perceptual distance is smaller.  The difference is a
    mean over channels, dark where there is none.  Images may differ in size where the model takes several sizes.

    \b
    Examples:
      chainrule reconstruct runs/vqgan photo.png
      chainrule reconstruct runs/vqgan one.png two.png --resize --out both.png --scale 2
      chainrule reconstruct runs/vqgan photo.png --features none --json
    """
    out = check_file(out or free_name("reconstructions", ".png"), ".png", force)

    from .. import evaluation
    from ..drawing import Derived, text_chunks
    from ..pictures import automatic_scale, heat, write_grid
    from ..scorers import features as networks

    tokenizer = open_tokenizer(model, device)
    originals = [read_image(path, tokenizer, resize, any_size=True) for path in images]
    name = features or networks.default_features()
    network = None if name == "none" else networks.load_features(name).to(device)
    results = evaluation.reconstruct(tokenizer, originals, network, precision)
    greatest = max(result.error.max().item() for result in results)
    pictures = [
        picture.expand(-1, 3, -1, -1)
        for original, result in zip(originals, results, strict=True)
        for picture in (original[None], result.image[None], heat(result.error[None], greatest))
    ]
    chunks = text_chunks(None if no_metadata else Derived.of("reconstructions", model, images))
    scale = scale or automatic_scale(max(tokenizer.image_shape[1:]))
    write_grid(out, _framed(pictures), scale, columns=3, chunks=chunks)
    figures = [result.figures() for result in results]
    if json:
        rows = [{"image": str(path)} | figure for path, figure in zip(images, figures, strict=True)]
        title = None if network is None else network.title
        print_json({"out": str(out), "features": title, "greatest_error": greatest, "images": rows})
        return
    table = [[str(path), *_words(figure)] for path, figure in zip(images, figures, strict=True)]
    if len(table) > 1:
        table.append(["mean", *_words({key: sum(f[key] for f in figures) / len(figures) for key in figures[0]})])
    print_table(["image", "PSNR (dB)", "SSIM", *([] if network is None else ["perceptual"])], table)
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
