"""Completion under a caption: PSNR of the hidden right half of test pictures, with and without their captions.

    python benchmarks/text_completion.py emoji_parti --guidance 1 2 3 --grid docs/pictures/emoji_parti-completions.png

One completion per picture.  Each line has the mean PSNR of the hidden half over the pictures in dB with its standard
error, and that of its difference to completion under the empty caption.  The line "reconstructed" is the tokenizer
alone.  The grid shows, for some pictures from top to bottom: the picture, what is kept, without caption, with it, by
guidance.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import chainrule
from chainrule.data import DataConfig, load
from chainrule.evaluation import psnr

COLUMNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="emoji", help="a data set of captioned pictures, of which the split test")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--grid", type=Path, help="a .png file")
    arguments = parser.parse_args()
    model = chainrule.load(arguments.model)
    channels, height, width = model.tokenizer.image_shape
    data = load(DataConfig(arguments.data, split="test", size=(height, width), channels=channels))
    chosen = torch.linspace(0, len(data) - 1, arguments.pictures).long()
    images, texts = data.images[chosen], [data.texts[index] for index in chosen.tolist()]
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, : width // 2] = True

    def hidden_psnr(drawn: Tensor) -> Tensor:
        return psnr(images[..., width // 2 :], drawn[..., width // 2 :])

    def complete(texts: list[str], guidance: float) -> Tensor:
        options = {"guidance": guidance, "precision": arguments.precision, "paste": True}
        pairs = enumerate(zip(images, texts, strict=True))
        return torch.cat([model.complete(image, mask, text=text, seed=i, **options) for i, (image, text) in pairs])

    without = complete([""] * len(texts), 1.0)
    rows = [images, torch.where(mask, images, 128), without]
    base = hidden_psnr(without)

    def report(pictures: str, drawn: Tensor, **more: float) -> None:
        decibels = hidden_psnr(drawn)
        gain, root = decibels - base, len(decibels) ** 0.5
        figures = {
            "psnr": decibels.mean(), "error": decibels.std() / root,
            "gain": gain.mean(), "gain_error": gain.std() / root,
        }  # fmt: skip
        rounded = {name: round(value.item(), 3) for name, value in figures.items()}
        print(json.dumps({"pictures": pictures, **more, "of": len(drawn), **rounded}), flush=True)

    report("reconstructed", torch.cat([model.reconstruct(part) for part in images.split(50)]))
    report("without caption", without)
    for guidance in arguments.guidance:
        rows.append(complete(texts, guidance))
        report("with caption", rows[-1], guidance=guidance)
    if arguments.grid:
        shown = torch.linspace(0, len(images) - 1, COLUMNS).long()
        chainrule.grid(torch.cat([row[shown] for row in rows]), columns=COLUMNS).save(arguments.grid)


if __name__ == "__main__":
    main()
