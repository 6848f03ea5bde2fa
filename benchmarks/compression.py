"""Size and time of lossless compression beside PNG, WebP and JPEG XL, and exact round trips.

    python benchmarks/compression.py mnist_diagonal_bilstm --binarize sample
    python benchmarks/compression.py mnist_row_lstm --images 200 --batch 1 16 --threads 1 2

Each batch size is paired with a number of threads to compress, and the next one to decompress.  Bytes per image of the
other formats are those of one file per image, and of all images below one another in one file, which costs them no
header.  "exact" counts the images that come back equal, with a learned tokenizer to their reconstructions in batches
of that size.  JPEG XL needs pip install pillow-jxl-plugin.
"""

import argparse
import io
import json
import math
import time
from contextlib import suppress

import torch

import chainrule
from chainrule.compression import container
from chainrule.data import DataConfig, binarize, load
from chainrule.images import to_pil

FORMATS = {
    "png": {"format": "PNG", "optimize": True},
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    "jxl": {"format": "JXL", "lossless": True, "effort": 9},
}


def smallest(images: torch.Tensor, options: dict) -> int:
    """Bytes of images (N, C, H, W) below one another in one file; black and white ones also with one bit per pixel."""
    picture = to_pil(images.transpose(0, 1).flatten(1, 2)[None])[0]
    kinds = [picture]
    if images.shape[1] == 1 and options["format"] == "PNG" and set(images.unique().tolist()) <= {0, 255}:
        kinds.append(picture.convert("1"))
    sizes = []
    for kind in kinds:
        kind.save(buffer := io.BytesIO(), **options)
        sizes.append(len(buffer.getvalue()))
    return min(sizes)


def others(images: torch.Tensor) -> dict[str, dict[str, float]]:
    """Bytes per image of the other formats."""
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 (registers the format)
    found = {}
    for name, options in FORMATS.items():
        start = time.perf_counter()
        try:
            alone = sum(smallest(image[None], options) for image in images) / len(images)
        except KeyError:  # Pillow does not know the format
            continue
        seconds = (time.perf_counter() - start) / len(images)
        together = smallest(images[: 16000 // images.shape[2]], options)  # WebP ends at 16,383 rows
        found[name] = {
            "one_file_per_image": alone, "one_file": together / min(len(images), 16000 // images.shape[2]),
            "seconds": seconds,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="ylecun/mnist")
    parser.add_argument("--split", default="test")
    parser.add_argument("--binarize", default="none")
    parser.add_argument("--size", type=int)
    parser.add_argument("--images", type=int, help="at equal distances; all without it")
    parser.add_argument("--batch", type=int, nargs="+", default=[100])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--no-others", action="store_true")
    arguments = parser.parse_args()
    model = chainrule.load(arguments.model)
    data = load(DataConfig(arguments.data, split=arguments.split, size=arguments.size))
    batch = data.batch(data.spread(arguments.images))
    images = binarize(batch.images, arguments.binarize, torch.Generator().manual_seed(0))
    conditions = {
        "label": batch.labels.tolist() if model.num_classes and batch.labels is not None else None,
        "text": batch.texts if model.prior.conditions.reads_text else None,
    }
    nats = 0.0
    for part in torch.arange(len(images)).split(100):
        given = {key: None if each is None else [each[index] for index in part] for key, each in conditions.items()}
        nats -= model.log_prob(images[part], **given).double().sum().item()
    result = {
        "model": arguments.model, "images": len(images), "nats": nats / len(images),
        "bytes_of_nats": nats / math.log(2) / 8 / len(images), 
        "lossless": torch.equal(model.reconstruct(images), images),
    }  # fmt: skip
    for index, size in enumerate(arguments.batch):
        threads = [arguments.threads[(index + offset) % len(arguments.threads)] for offset in (0, 1)]
        torch.set_num_threads(threads[0])
        start = time.perf_counter()
        file = chainrule.compress(model, images, **conditions, batch_size=size, lossy=True)
        middle = time.perf_counter()
        torch.set_num_threads(threads[1])
        restored = chainrule.decompress(model, file).images
        end = time.perf_counter()
        torch.set_num_threads(1)
        expected = torch.cat([model.reconstruct(part) for part in images.split(size)])
        streams = sum(len(block.stream) for block in container.unpack(file)[1])
        result[f"batch_{size}"] = {
            "threads": threads, "exact": sum(torch.equal(*pair) for pair in zip(restored, expected, strict=True)),
            "bytes": len(file) / len(images), "bytes_of_streams": streams / len(images),
            "compressed_per_second": len(images) / (middle - start),
            "decompressed_per_second": len(images) / (end - middle),
        }  # fmt: skip
    if not arguments.no_others:
        result["others"] = others(images)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
