"""Draws pictures for README and docs.

python scripts/pictures.py chain-rule                  # docs/pictures/chain-rule.png: image, codes, nats
python scripts/pictures.py emoji_vqvae emoji_vqgan     # docs/pictures/NAME-reconstructions.png
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import chainrule
from chainrule.data import DataConfig, load
from chainrule.strict import build_dataclass
from chainrule.zoo import load_tokenizer, read_card

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
COUNT, COLUMNS = 24, 12
CAPTION = "four leaf clover, noto style"
CELL, GAP, TOP = 30, 76, 46


def reconstructions(name: str) -> None:
    """The same test images as the tokenizer reconstructs them."""
    config = read_card(name)["recipe"]["data"] | {"split": "test", "flip": False}
    images = load(build_dataclass(DataConfig, config, name)).images
    images = images[torch.linspace(0, len(images) - 1, COUNT).long()]
    tokenizer = load_tokenizer(name)
    decoded = tokenizer.decode(tokenizer.encode(images))
    chainrule.grid(decoded, columns=COLUMNS).save(PICTURES / f"{name}-reconstructions.png")


def chain_rule() -> None:
    """An image, its codes, and what each code costs given the codes before it."""
    model = chainrule.load("emoji_parti")
    data = load(DataConfig("emoji", split="test"))
    image = data.images[data.texts.index(CAPTION)][None]
    (codes,) = model.tokenizer.encode(image)
    codes = codes[0, :, :, 0]
    size = len(codes)
    nats = model.surprise(image, text=CAPTION)[0]

    side = size * CELL
    canvas = Image.new("RGB", (3 * side + 2 * GAP, side + TOP), "white")
    draw = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(11), ImageFont.load_default(15)

    def table(left: int, values: list[list[str]], shades: torch.Tensor) -> None:
        for row in range(size):
            for column in range(size):
                x, y = left + column * CELL, TOP + row * CELL
                shade = 1 - 0.6 * float(shades[row, column])
                fill = (int(255 * shade), int(255 * (0.25 + 0.75 * shade)), 255)
                draw.rectangle((x, y, x + CELL, y + CELL), fill=fill, outline="white")
                draw.text((x + CELL / 2, y + CELL / 2), values[row][column], "black", small, anchor="mm")

    canvas.paste(chainrule.to_pil(image)[0].resize((side, side), Image.Resampling.NEAREST), (0, TOP))
    draw.rectangle((0, TOP, side, TOP + side), outline="#cccccc")
    table(side + GAP, [[str(int(code)) for code in row] for row in codes], torch.full((size, size), 0.2))
    table(2 * (side + GAP), [[f"{value:.1f}" for value in row] for row in nats], nats / nats.max())
    titles = (f'image: "{CAPTION}"', f"{size} x {size} codes of 1,024", f"-log p of each code: {nats.sum():.0f} nats")
    for index, title in enumerate(titles):
        draw.text((index * (side + GAP) + side / 2, TOP / 2), title, "black", large, anchor="mm")
    for index, word in enumerate(("tokenizer", "prior")):
        x, y = side + index * (side + GAP), TOP + side / 2
        draw.line((x + 8, y, x + GAP - 12, y), "black", 2)
        draw.polygon(((x + GAP - 14, y - 5), (x + GAP - 4, y), (x + GAP - 14, y + 5)), "black")
        draw.text((x + GAP / 2 - 2, y - 12), word, "black", ImageFont.load_default(13), anchor="mm")
    canvas.save(PICTURES / "chain-rule.png", optimize=True)


def main() -> None:
    for name in sys.argv[1:]:
        chain_rule() if name == "chain-rule" else reconstructions(name)


if __name__ == "__main__":
    main()
