"""Encoding and decoding with the f16 VQGAN (72M parameters) at 256x256, or another tokenizer: packed bfloat16 against
PyTorch's settings.

    python benchmarks/tokenizer.py                          # random weights, smooth random images
    python benchmarks/tokenizer.py --ways last compiled packed tiles winograd
    python benchmarks/tokenizer.py --tokenizer dvae/dalle   # any preset of any tokenizer with networks
    python benchmarks/tokenizer.py --checkpoint FILE        # of a release that `chainrule convert` knows

All ways run in one process, in turn, and the shortest of `--rounds` counts; with OMP_NUM_THREADS=1 that is time of the
processor, which other programs do not change much:

    float32     the tokenizer as it is: (B, C, H, W) in memory
    last        channels last, all weights and maps in bfloat16 where the processor has instructions for it
    compiled    the same by `torch.compile`, with frozen weights; it takes minutes
    packed      `tokenizer.packed("bfloat16")`; tiles, winograd, library: by that algorithm, of VQGAN and RQ-VAE

Also printed: the share of codes that differ, and the PSNR between the two images that are decoded from the same
codes, of the first way and packed.  Random weights make codes arbitrary, and their differences with them.
"""

import argparse
import copy
import json
import time
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

from chainrule.core import Tokenizer, entry
from chainrule.evaluation import psnr
from chainrule.kernels.convolution import algorithms
from chainrule.kernels.native import has_bfloat16
from chainrule.official import import_release
from chainrule.tokenizers import _grid


def random_tokenizer(name: str = "vqgan", preset: str = "f16-1024") -> Tokenizer:
    found = entry("tokenizers", name)
    torch.manual_seed(0)
    return found.model(found.presets[preset].config).eval().requires_grad_(False)


LIBRARY = ("float32", "last", "compiled")
"""Ways that are PyTorch's alone."""
NARROW = torch.bfloat16 if has_bfloat16(torch.device("cpu")) else torch.float32


class Library:
    """A tokenizer in PyTorch's fastest plain setting."""

    def __init__(self, tokenizer: Tokenizer, compiled: bool) -> None:
        self.tokenizer = copy.deepcopy(tokenizer).to(NARROW, memory_format=torch.channels_last)
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            for name in self.tokenizer.networks:
                part = getattr(self.tokenizer, name)
                for network in part if isinstance(part, torch.nn.ModuleList) else [part]:
                    network.forward = torch.compile(network.forward, dynamic=False)

    def encode(self, images):
        with whole_batches():
            return self.tokenizer.encode(images)

    def decode(self, codes):
        with whole_batches():
            return self.tokenizer.decode(codes)


@contextmanager
def whole_batches():
    """Networks read all images at once, in PyTorch's own functions."""
    with mock.patch.object(_grid, "by_images", lambda function, *batches, **_: function(*batches)):
        yield


def way(tokenizer: Tokenizer, name: str):
    """A tokenizer, as `name` computes."""
    if name == "float32":
        return tokenizer
    if name in ("last", "compiled"):
        return Library(tokenizer, name == "compiled")
    return tokenizer.packed("bfloat16") if name == "packed" else tokenizer.packed("bfloat16", name)


def seconds(function) -> float:
    """Of a clock; of the processor where there is one thread, as other programs may run."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return clock() - start


@torch.no_grad()
def compare(tokenizer: Tokenizer, ways: dict, batch_size: int, rounds: int) -> dict:
    channels, height, width = tokenizer.image_shape
    generator = torch.Generator().manual_seed(batch_size)
    coarse = torch.rand(batch_size, channels, 16, 16, generator=generator)
    images = (F.interpolate(coarse, (height, width), mode="bicubic") * 255).clamp(0, 255).byte()
    codes = {name: way.encode(images) for name, way in ways.items()}
    first = next(iter(codes.values()))
    decoded = {name: way.decode(first) for name, way in ways.items()}
    times = {(task, name): [] for task in ("encode", "decode") for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times["encode", name].append(seconds(lambda way=way: way.encode(images)))
            times["decode", name].append(seconds(lambda way=way: way.decode(first)))
    result = {"batch_size": batch_size}
    for task in ("encode", "decode"):
        rates = {name: round(batch_size / min(times[task, name]), 3) for name in ways}
        result[f"{task}, images per second"] = rates
        library = [rate for name, rate in rates.items() if name in LIBRARY]
        if library and "packed" in rates:
            result[f"{task}, packed to the best of PyTorch"] = round(rates["packed"] / max(library), 2)
    if "packed" in ways:
        differ = [(one != other).float().mean() for one, other in zip(first, codes["packed"], strict=True)]
        result["share_of_codes_that_differ"] = round(torch.stack(differ).mean().item(), 4)
        result["psnr_between_images"] = round(psnr(next(iter(decoded.values())), decoded["packed"]).mean().item(), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="of a release that `chainrule convert` knows")
    parser.add_argument("--tokenizer", default="vqgan/f16-1024", help="tokenizer and preset; their weights are random")
    parser.add_argument("--ways", nargs="+", default=["float32", "last", "packed"],
                        choices=[*LIBRARY, "packed", *algorithms()])  # fmt: skip
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.checkpoint is None:
        tokenizer = random_tokenizer(*arguments.tokenizer.split("/"))
    else:
        tokenizer = import_release(arguments.checkpoint).tokenizer.eval().requires_grad_(False)
    ways = {name: way(tokenizer, name) for name in arguments.ways}
    print(json.dumps({"threads": torch.get_num_threads(), "packed": algorithms()[0]}))
    for batch_size in arguments.batch_sizes:
        print(json.dumps(compare(tokenizer, ways, batch_size, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
