"""Encoding and decoding with the f16 VQGAN (72M parameters) at 256x256: packed bfloat16 against plain float32.

    python benchmarks/tokenizer.py                       # random weights, smooth random images
    python benchmarks/tokenizer.py --checkpoint FILE     # of a taming-transformers release, at its own size

Both run in one process, in turn, and the shortest of `--rounds` counts.  Plain is the tokenizer as it is: float32, and
(B, C, H, W) in memory.  Also printed: the share of codes that differ, and the PSNR between the two images that
are decoded from the same codes.  Random weights make codes arbitrary, and their differences with them.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

from chainrule.core import Tokenizer, entry
from chainrule.evaluation import psnr
from chainrule.official import import_release


def random_tokenizer() -> Tokenizer:
    vqgan = entry("tokenizers", "vqgan")
    torch.manual_seed(0)
    return vqgan.model(vqgan.presets["f16-1024"].config)


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.inference_mode()
def compare(tokenizer: Tokenizer, batch_size: int, rounds: int) -> dict:
    channels, height, width = tokenizer.image_shape
    generator = torch.Generator().manual_seed(batch_size)
    coarse = torch.rand(batch_size, channels, 16, 16, generator=generator)
    images = (F.interpolate(coarse, (height, width), mode="bicubic") * 255).clamp(0, 255).byte()
    ways = {"plain": tokenizer, "packed": tokenizer.packed("bfloat16")}
    codes = {name: way.encode(images) for name, way in ways.items()}
    decoded = {name: way.decode(codes["plain"]) for name, way in ways.items()}
    times = {(task, name): [] for task in ("encode", "decode") for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times["encode", name].append(seconds(lambda way=way: way.encode(images)))
            times["decode", name].append(seconds(lambda way=way: way.decode(codes["plain"])))
    result = {"batch_size": batch_size}
    for task in ("encode", "decode"):
        rates = {name: batch_size / min(times[task, name]) for name in ways}
        result[task] = {f"{name}_images_per_second": rate for name, rate in rates.items()}
        result[task]["ratio"] = rates["packed"] / rates["plain"]
    result["codes_that_differ"] = (codes["plain"][0] != codes["packed"][0]).float().mean().item()
    result["psnr_between_images"] = psnr(decoded["plain"], decoded["packed"]).mean().item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="of a release that `chainrule convert` knows")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = random_tokenizer() if arguments.checkpoint is None else import_release(arguments.checkpoint).tokenizer
    tokenizer = tokenizer.eval().requires_grad_(False)
    results = [compare(tokenizer, batch_size, arguments.rounds) for batch_size in arguments.batch_sizes]
    print(json.dumps({"threads": torch.get_num_threads(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
