"""Images drawn from a prefix, such as from the grey of an image: how well they fit it, and how they vary between seeds.

    python benchmarks/prefixes.py runs/grey --data shapes --images 100 --draws 8

All figures are means over images and draws.  Each image of the data gives a prefix, and images are drawn from it.

psnr_own:          PSNR in dB, in grey, of a drawn image and the image that gave its prefix
psnr_next:         the same with the next image of the data, which did not
psnr_limit:        of an image and its reconstruction by the tokenizer, in grey: no drawn image can be expected above it
spread_brightness: standard deviation of the grey over the drawn images of one prefix, in levels of 255
spread_colour:     the same of the differences between the channels and the grey
"""

import argparse
import json

import torch
from torch import Tensor

import chainrule
from chainrule.data import DataConfig, load
from chainrule.evaluation import psnr
from chainrule.prefixes import image_prefix


def in_grey(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> the same in grey."""
    return image_prefix(images, "grey")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--draws", type=int, default=8)
    arguments = parser.parse_args()
    model = chainrule.load(arguments.model)
    size = model.tokenizer.image_shape[1:]
    images = load(DataConfig(arguments.data, "test", size)).images[: arguments.images]
    prefix = model.own_prefix(images)
    drawn = torch.stack([model.sample(len(images), prefix=prefix, seed=seed) for seed in range(arguments.draws)])
    grey = torch.stack([in_grey(images) for images in drawn])
    real = in_grey(images)
    spread = {"brightness": grey.float(), "colour": drawn.float() - grey.float()}
    print(json.dumps({
        "psnr_own": torch.stack([psnr(real, one) for one in grey]).mean().item(),
        "psnr_next": torch.stack([psnr(real.roll(-1, 0), one) for one in grey]).mean().item(),
        "psnr_limit": psnr(real, in_grey(model.reconstruct(images))).mean().item(),
    } | {f"spread_{name}": values.std(0).mean().item() for name, values in spread.items()}))  # fmt: skip


if __name__ == "__main__":
    main()
