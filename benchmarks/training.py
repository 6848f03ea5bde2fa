"""Images per second of a training step: our best setting against plain float32 eager PyTorch, same network.

    python benchmarks/training.py                       # the systems, in the sizes of the MNIST recipes
    python benchmarks/training.py gated_pixelcnn        # one of them
    python benchmarks/training.py gated_pixelcnn --large    # in the size of benchmarks/sizes.py

Both settings run in one process, turn by turn.  "Plain" is eager mode, float32, default memory format, and for
the PixelRNNs the scan in plain PyTorch, for the gated PixelCNN torch.tanh; "best" is what the recipes train with.
The optimizer is the same.
"""

import argparse
import copy
import json
import os
import time
from unittest import mock

import torch
import torch.nn.functional as F

from chainrule.core import CodeSpec, Context, entry
from chainrule.priors import gated_pixelcnn
from chainrule.recipe import read_recipe
from chainrule.training.engine.hardware import autocast, compiled
from chainrule.training.engine.muon import Muon
from sizes import SIZES  # of this folder

SPEC = CodeSpec.single(28, 28, 1, 2)
SYSTEMS = ("gated_pixelcnn", "pixelcnn", "row_lstm", "diagonal_bilstm")


def gate(x):
    filtered, gated = x.chunk(2, 1)
    return torch.tanh(filtered) * torch.sigmoid(gated)


def steps(model, network, batch_size: int, precision: str):
    """An endless training run; each `next` takes a step and gives its seconds."""
    optimizer = Muon(model, 2e-3)
    codes = (torch.randint(0, 2, (batch_size, *SPEC.only.shape)),)
    while True:
        start = time.perf_counter()
        with autocast(precision, torch.device("cpu"))():
            (logits,) = network(codes, Context())
        loss = F.cross_entropy(logits.float().flatten(0, -2), codes[0].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield time.perf_counter() - start


def compare(system: str, large: bool, batch_size: int, rounds: int) -> dict:
    recipe = read_recipe(f"mnist_{system}")
    config = SIZES[system].config if large else recipe.prior.config("priors")
    torch.manual_seed(0)
    plain = entry("priors", system).model(SPEC, config)
    best = copy.deepcopy(plain)
    network = best
    if getattr(best, "compile_training", True):
        best = best.to(memory_format=torch.channels_last)
        network = compiled(best, torch.device("cpu"))
    plain_steps = steps(plain, plain, batch_size, "float32")
    best_steps = steps(best, network, batch_size, recipe.training.precision)
    pairs = []
    for _ in range(rounds + 2):
        with mock.patch.dict(os.environ, CHAINRULE_NATIVE="off"), mock.patch.object(gated_pixelcnn, "gate", gate):
            slow = next(plain_steps)
        pairs.append((slow, next(best_steps)))
    pairs = pairs[2:]
    middle = len(pairs) // 2
    return {
        "system": system,
        "parameters": sum(p.numel() for p in plain.parameters()),
        "plain_images_per_second": batch_size / sorted(a for a, _ in pairs)[middle],
        "best_images_per_second": batch_size / sorted(b for _, b in pairs)[middle],
        "ratio": sorted(a / b for a, b in pairs)[middle],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=SYSTEMS)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for system in arguments.systems:
        print(json.dumps(compare(system, arguments.large, arguments.batch_size, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
