"""Sampling speed of convolutional priors over a 32x32 grid of 512 codes: remembering against re-running the network.

    python benchmarks/code_priors.py gated_pixelcnn      # 10 layers x 128 channels
    python benchmarks/code_priors.py pixelsnail          # the top level of rosinality's, 84.9M parameters

Both paths run in one process, in float32.  Re-running reads the whole grid for each of the 1,024 codes, and each of
these readings costs the same, so its time is that of `--rerun-codes` of them, scaled; `--cached-rows` scales the other
path likewise, from its first rows to all (attention, which grows with the rows, is then counted too low).
"""

import argparse
import json
import time

import torch

from chainrule.core import CodeSpec, Context, entry
from chainrule.decoding import Rerun

SIDE, NUM_CODES = 32, 512
CONFIGS = {
    "gated_pixelcnn": {"num_layers": 10, "channels": 128, "kernel_size": 3, "head_features": 512, "embedding": 64},
    "pixelsnail": {},
}


def model(name: str):
    torch.manual_seed(0)
    found = entry("priors", name)
    return found.model(CodeSpec.single(SIDE, SIDE, 1, NUM_CODES), found.config(**CONFIGS[name])).eval()


@torch.no_grad()
def seconds(prior, batch_size: int, num_steps: int) -> float:
    """Seconds for a whole grid, from its first `num_steps` codes."""
    start = time.perf_counter()
    state, previous = prior.init_state(batch_size, Context()), torch.zeros(batch_size, dtype=torch.int64)
    for _ in range(num_steps):
        logits, state = prior.step(previous, state)
        previous = logits.argmax(-1)
    return (time.perf_counter() - start) * prior.spec.num_codes / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior", choices=CONFIGS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rerun-codes", type=int, default=2)
    parser.add_argument("--cached-rows", type=int, default=SIDE)
    arguments = parser.parse_args()
    prior = model(arguments.prior)
    seconds(prior, arguments.batch_size, 2)
    seconds(Rerun(prior), arguments.batch_size, 1)
    cached = seconds(prior, arguments.batch_size, arguments.cached_rows * SIDE)
    rerun = seconds(Rerun(prior), arguments.batch_size, arguments.rerun_codes)
    result = {
        "prior": arguments.prior,
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "seconds_cached": cached,
        "seconds_rerun": rerun,
        "rerun_codes_timed": arguments.rerun_codes,
        "cached_rows_timed": arguments.cached_rows,
        "ratio": rerun / cached,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
