"""Sampling speed of the gated PixelCNN (10 layers x 128 channels, 3.4M parameters).

    python benchmarks/sampling.py            # cached against re-running the network, 28x28, batch 16
    python benchmarks/sampling.py --growth   # cached, 16x16 against 64x64

Both paths run in one process, side by side, in float32.  Re-running reads the whole image for each of the 784
codes, and each of these readings costs the same, so its time is that of `--rerun-codes` of them, scaled.
"""

import argparse
import json
import time

import torch

from chainrule.core import CodeSpec, Context, entry
from chainrule.decoding import Rerun, image_seeds, sample
from sizes import SIZES  # of this folder


def model(height: int, width: int):
    gated = entry("priors", "gated_pixelcnn")
    torch.manual_seed(0)
    return gated.model(CodeSpec.single(height, width, 1, 2), SIZES["gated_pixelcnn"].config).eval()


def seconds_cached(prior, batch_size: int) -> float:
    start = time.perf_counter()
    sample(prior.runner(), Context(), image_seeds(0, batch_size))
    return time.perf_counter() - start


@torch.no_grad()
def seconds_rerun(prior, batch_size: int, num_codes: int, context: Context = Context()) -> float:
    """Seconds for a whole image, from its first `num_codes` codes."""
    slow = Rerun(prior)
    state, previous = slow.init_state(batch_size, context), torch.zeros(batch_size, dtype=torch.int64)
    start = time.perf_counter()
    for _ in range(num_codes):
        logits, state = slow.step(previous, state)
        previous = logits.argmax(-1)
    return (time.perf_counter() - start) * prior.spec.length / num_codes


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="16x16 against 64x64 instead")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rerun-codes", type=int, default=4)
    arguments = parser.parse_args()
    batch_size = arguments.batch_size
    if arguments.growth:
        small, large = model(16, 16), model(64, 64)
        seconds_cached(small, batch_size)
        pairs = [
            (seconds_cached(small, batch_size), seconds_cached(large, batch_size)) for _ in range(arguments.rounds)
        ]
        result = {
            "seconds_16x16": median([a for a, _ in pairs]),
            "seconds_64x64": median([b for _, b in pairs]),
            "growth": median([b / a for a, b in pairs]),
        }
    else:
        prior = model(28, 28)
        seconds_cached(prior, batch_size)
        seconds_rerun(prior, batch_size, 1)
        pairs = [
            (seconds_cached(prior, batch_size), seconds_rerun(prior, batch_size, arguments.rerun_codes))
            for _ in range(arguments.rounds)
        ]
        result = {
            "images_per_second_cached": batch_size / median([a for a, _ in pairs]),
            "images_per_second_rerun": batch_size / median([b for _, b in pairs]),
            "ratio": median([b / a for a, b in pairs]),
        }
    print(json.dumps({"batch_size": batch_size, "threads": torch.get_num_threads()} | result))


if __name__ == "__main__":
    main()
