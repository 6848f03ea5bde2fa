"""Sampling speed of convolutional priors over 32x32 positions: remembering against re-running the network.

    python benchmarks/code_priors.py gated_pixelcnn      # 512 codes, 10 layers x 128 channels
    python benchmarks/code_priors.py pixelsnail          # 512 codes, the top level of rosinality's, 84.9M parameters
    python benchmarks/code_priors.py pixelcnnpp          # RGB pixels, the original's size, 53.7M parameters

Both paths run in one process, in float32 on one thread, and what is counted is the processor's time, so that other work
on the machine does not matter.  Re-running reads the whole grid for each of the 1,024 positions, and each of these
readings costs the same, so its time is that of `--readings` of them, scaled; `--rows` scales the other path likewise,
from its first rows to all 32 (attention, which grows with the rows, is then counted too low).
"""

import argparse
import json
import time

import torch

from chainrule.core import CodeSpec, Context, entry
from chainrule.decoding import Rerun

SIDE = 32
CODES = CodeSpec.single(SIDE, SIDE, 1, 512)
GATED = {"num_layers": 10, "width": 128, "kernel_size": 3, "head_width": 512, "embedding_dim": 64}
MODELS = {
    "gated_pixelcnn": (CODES, GATED),
    "pixelsnail": (CODES, {}),
    "pixelcnnpp": (CodeSpec.single(SIDE, SIDE, 3, 256), {}),
}


@torch.no_grad()
def seconds(runner, batch_size: int, num_steps: int) -> float:
    """Seconds of the processor for the first `num_steps` codes."""
    start = time.process_time()
    state, previous = runner.init_state(batch_size, Context()), torch.zeros(batch_size, dtype=torch.int64)
    for _ in range(num_steps):
        logits, state = runner.step(previous, state)
        previous = logits.argmax(-1)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior", choices=MODELS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--readings", type=int, default=1)
    parser.add_argument("--rows", type=int, default=SIDE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (spec, options), found = MODELS[arguments.prior], entry("priors", arguments.prior)
    prior = found.model(spec, found.config(**options)).eval()
    seconds(prior.runner(), arguments.batch_size, 2)
    cached = (
        seconds(prior.runner(), arguments.batch_size, arguments.rows * SIDE * spec.only.depth) * SIDE / arguments.rows
    )
    rerun = seconds(Rerun(prior), arguments.batch_size, arguments.readings) * SIDE * SIDE / arguments.readings
    result = {
        "prior": arguments.prior,
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "seconds_cached": cached,
        "rows_timed": arguments.rows,
        "seconds_rerun": rerun,
        "readings_timed": arguments.readings,
        "ratio": rerun / cached,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
