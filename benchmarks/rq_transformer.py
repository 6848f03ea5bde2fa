"""Seconds per image of the RQ-Transformer (12 + 4 layers x 768, 8x8x4 codes) and of a GPT of equal size.

    python benchmarks/rq_transformer.py                              # float32, batch 1
    python benchmarks/rq_transformer.py --precision int8 --batch-size 8

The GPT has 16 layers x 768 over 16x16 codes: as many parameters and codes.  Both have random weights and a vocabulary
of 1024, and draw whole images with `decoding.sample`, in turn, in one process.  Packing the weights is not counted: it
is done once for many images.
"""

import argparse
import json
import time
from dataclasses import replace
from statistics import median

import torch

from chainrule.core import Context, Prior, Runner, entry
from chainrule.decoding import image_seeds, sample
from sizes import SIZES  # of this folder


def seconds(runner: Runner, batch_size: int) -> float:
    start = time.perf_counter()
    sample(runner, Context(), image_seeds(0, batch_size))
    return time.perf_counter() - start


def models() -> dict[str, Prior]:
    torch.manual_seed(0)
    rq, gpt = entry("priors", "rq_transformer"), entry("priors", "gpt")
    ours, flat = SIZES["rq_transformer"], SIZES["gpt"]
    layers = ours.config.num_layers + ours.config.depth_layers
    return {
        "rq_transformer": rq.model(ours.spec, ours.config).eval(),
        "gpt": gpt.model(flat.spec, replace(flat.config, num_layers=layers)).eval(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    priors = models()
    result = {
        "precision": arguments.precision,
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "parameters": {name: sum(p.numel() for p in prior.parameters()) for name, prior in priors.items()},
    }
    runners = {name: prior.runner(arguments.precision) for name, prior in priors.items()}
    for runner in runners.values():
        seconds(runner, arguments.batch_size)
    rounds = [
        {name: seconds(runner, arguments.batch_size) for name, runner in runners.items()}
        for _ in range(arguments.rounds)
    ]
    for name, prior in priors.items():
        per_call = median(one[name] for one in rounds)
        result[name] = {
            "seconds_per_image": per_call / arguments.batch_size,
            "codes_per_second": arguments.batch_size * prior.spec.length / per_call,
        }
    result["speedup"] = median(one["gpt"] / one["rq_transformer"] for one in rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
