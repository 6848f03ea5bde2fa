"""Makes the pictures of tokenizers in docs: what they give back of the same test images.

python scripts/pictures.py emoji_vqvae emoji_vqgan     # docs/pictures/NAME-reconstructions.png
"""

import sys
from pathlib import Path

import torch

import chainrule
from chainrule.config import build_dataclass
from chainrule.data import DataConfig, load
from chainrule.zoo import load_tokenizer, read_card

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
COUNT, COLUMNS = 24, 12


def main() -> None:
    for name in sys.argv[1:]:
        config = read_card(name)["recipe"]["data"] | {"split": "test", "flip": False}
        images = load(build_dataclass(DataConfig, config, name)).images
        images = images[torch.linspace(0, len(images) - 1, COUNT).long()]
        tokenizer = load_tokenizer(name)
        decoded = tokenizer.decode(tokenizer.encode(images))
        chainrule.grid(decoded, columns=COLUMNS).save(PICTURES / f"{name}-reconstructions.png")


if __name__ == "__main__":
    main()
