"""Writes the pictures of a data set as a plain folder with captions beside them, to try `chainrule fit`.

python scripts/plain_folder.py emoji pictures                       # 7,208 pictures, as emoji/000000.png and .txt
python scripts/plain_folder.py emoji few --split "test[:300]"       # 300 that no bundled model has seen
"""

import argparse
from pathlib import Path

from chainrule.data import DataConfig, load
from chainrule.images import to_pil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a data set, such as emoji")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    options = parser.parse_args()
    images = load(DataConfig(options.source, options.split))
    options.folder.mkdir(parents=True)
    texts = images.texts or [None] * len(images)
    for index, text in enumerate(texts):
        path = options.folder / f"{index:06d}.png"
        to_pil(images.images[index : index + 1])[0].save(path)
        if text:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
    print(f"{options.folder}: {len(images):,} pictures")


if __name__ == "__main__":
    main()
