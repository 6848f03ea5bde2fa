"""Encoding and decoding with the f16 VQGAN (72M parameters) at 256x256, or another tokenizer: packed bfloat16 against
PyTorch's settings.

    python benchmarks/tokenizer.py                          # random weights, smooth random images
    python benchmarks/tokenizer.py --compiled               # and torch.compile, with frozen weights; takes minutes
    python benchmarks/tokenizer.py --tokenizer dvae/dalle   # any preset of any tokenizer with networks
    python benchmarks/tokenizer.py --checkpoint FILE        # of a release that `chainrule convert` knows

All ways run in one process, in turn, and the shortest of `--rounds` counts:

    float32    the tokenizer as it is: one image at a time, (B, C, H, W) in memory
    bfloat16   all weights and maps in bfloat16, channels last, the whole batch at once
    compiled   the same by `torch.compile`
    packed     `tokenizer.packed("bfloat16")`, by the fastest algorithm of this CPU; others by `--algorithms`

Also printed: the share of codes that differ, and the PSNR between the two images that are decoded from the same
codes.  Random weights make codes arbitrary, and their differences with them.
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from chainrule.core import Tokenizer, entry
from chainrule.evaluation import psnr
from chainrule.kernels.convolution import algorithms
from chainrule.official import import_release
from chainrule.tokenizers import _grid, vqvae2


def random_tokenizer(name: str = "vqgan", preset: str = "f16-1024") -> Tokenizer:
    found = entry("tokenizers", name)
    torch.manual_seed(0)
    return found.model(found.presets[preset].config).eval().requires_grad_(False)


class Library:
    """A tokenizer in PyTorch's fastest plain setting."""

    def __init__(self, tokenizer: Tokenizer, compile_it: bool = False) -> None:
        self.tokenizer = copy.deepcopy(tokenizer).to(torch.bfloat16, memory_format=torch.channels_last)
        if compile_it:
            import torch._inductor.config as inductor

            inductor.freezing = True
            for name in self.tokenizer.networks:
                part = getattr(self.tokenizer, name)
                for network in part if isinstance(part, torch.nn.ModuleList) else [part]:
                    network.forward = torch.compile(network.forward, dynamic=False)

    def encode(self, images):
        return self._batched(self.tokenizer.encode, images)

    def decode(self, codes):
        return self._batched(self.tokenizer.decode, codes)

    def _batched(self, function, batch):
        before = _grid.by_images
        try:
            for module in (_grid, vqvae2):
                module.by_images = lambda function, *batches: function(*batches)
            with torch.no_grad():
                return function(batch)
        finally:
            for module in (_grid, vqvae2):
                module.by_images = before


def ways_of(tokenizer: Tokenizer, compiled: bool = False, others: Sequence[str] = ()) -> dict:
    ways = {"float32": tokenizer, "bfloat16": Library(tokenizer)}
    if compiled:
        ways["compiled"] = Library(tokenizer, True)
    ways["packed"] = tokenizer.packed("bfloat16")
    return ways | {f"packed, {name}": tokenizer.packed("bfloat16", name) for name in others}


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.no_grad()
def compare(tokenizer: Tokenizer, ways: dict, batch_size: int, rounds: int) -> dict:
    channels, height, width = tokenizer.image_shape
    generator = torch.Generator().manual_seed(batch_size)
    coarse = torch.rand(batch_size, channels, 16, 16, generator=generator)
    images = (F.interpolate(coarse, (height, width), mode="bicubic") * 255).clamp(0, 255).byte()
    codes = {name: way.encode(images) for name, way in ways.items()}
    decoded = {name: way.decode(codes["float32"]) for name, way in ways.items()}
    times = {(task, name): [] for task in ("encode", "decode") for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times["encode", name].append(seconds(lambda way=way: way.encode(images)))
            times["decode", name].append(seconds(lambda way=way: way.decode(codes["float32"])))
    result = {"batch_size": batch_size}
    for task in ("encode", "decode"):
        rates = {name: round(batch_size / min(times[task, name]), 3) for name in ways}
        best = max(rate for name, rate in rates.items() if not name.startswith("packed"))
        result[task] = {"images_per_second": rates, "packed_to_best_of_library": round(rates["packed"] / best, 3)}
    differ = [(one != other).float().mean() for one, other in zip(codes["float32"], codes["packed"], strict=True)]
    result["codes_that_differ"] = torch.stack(differ).mean().item()
    result["psnr_between_images"] = psnr(decoded["float32"], decoded["packed"]).mean().item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="of a release that `chainrule convert` knows")
    parser.add_argument("--tokenizer", default="vqgan/f16-1024", help="tokenizer and preset; their weights are random")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--algorithms", nargs="*", default=[], choices=algorithms(), help="of packed, as well")
    arguments = parser.parse_args()
    if arguments.checkpoint is None:
        tokenizer = random_tokenizer(*arguments.tokenizer.split("/"))
    else:
        tokenizer = import_release(arguments.checkpoint).tokenizer.eval().requires_grad_(False)
    ways = ways_of(tokenizer, arguments.compiled, arguments.algorithms)
    results = [compare(tokenizer, ways, batch_size, arguments.rounds) for batch_size in arguments.batch_sizes]
    print(json.dumps({"threads": torch.get_num_threads(), "algorithm": algorithms()[0], "results": results}, indent=1))


if __name__ == "__main__":
    main()
