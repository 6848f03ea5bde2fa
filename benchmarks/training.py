"""Images per second of a training step: our best setting against plain float32 eager PyTorch, same network.

    python benchmarks/training.py                       # the systems, in the sizes of the recipes
    python benchmarks/training.py gated_pixelcnn        # one of them
    python benchmarks/training.py gated_pixelcnn --large    # in the size of benchmarks/sizes.py

The priors over pixels have the sizes of the MNIST recipes.  stage_one trains the VQGAN of the recipe `emoji_vqgan`: its
perceptual network has random weights, and its discriminator takes a step too.  stage_two trains the GPT of `emoji_gpt`.

Both settings run in one process, turn by turn.  "Plain" is eager mode, float32, default memory format, and for
the PixelRNNs the scan in plain PyTorch, for the gated PixelCNN torch.tanh; "best" is what the recipes train with.
The optimizer is the same.  Images and codes are random.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.core import CodeSpec, Context, entry
from chainrule.kernels.native import has_bfloat16
from chainrule.priors import gated_pixelcnn
from chainrule.recipe import read_recipe
from chainrule.scorers.features import EfficientNetLite0
from chainrule.training.engine.hardware import autocast, compiled
from chainrule.training.engine.muon import Muon
from chainrule.training.tasks.losses import ImageLosses, PerceptualLoss
from chainrule.training.tasks.tokenizer import TokenizerPass
from sizes import SIZES  # of this folder

CPU = torch.device("cpu")
PIXELS, CODES = CodeSpec.single(28, 28, 1, 2), CodeSpec.single(16, 16, 1, 1024)
IMAGE = (3, 64, 64)
PIXEL_SYSTEMS = ("gated_pixelcnn", "pixelcnn", "row_lstm", "diagonal_bilstm")
SYSTEMS = (*PIXEL_SYSTEMS, "stage_one", "stage_two")
Steps = Iterator[float]
"""An endless training run; each `next` takes a step and gives its seconds."""


def gate(x):
    filtered, gated = x.chunk(2, 1)
    return torch.tanh(filtered) * torch.sigmoid(gated)


def steps(model: nn.Module, loss: Callable[[], Tensor], precision: str, then: Callable[[], None]) -> Steps:
    """Steps that minimise `loss()`; `then` ends each."""
    optimizer = Muon(model, 2e-3, dtype=torch.bfloat16 if has_bfloat16(CPU) else torch.float32)
    while True:
        start = time.perf_counter()
        with autocast(precision, CPU)():
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        then()
        yield time.perf_counter() - start


def prior_steps(model: nn.Module, spec: CodeSpec, batch_size: int, precision: str, best: bool) -> Steps:
    network = model
    if best and getattr(model, "compile_training", True):
        network = compiled(model.to(memory_format=torch.channels_last), CPU)
    codes = (torch.randint(0, spec.only.codebook_size, (batch_size, *spec.only.shape)),)
    labels = torch.zeros(batch_size, dtype=torch.int64) if model.conditions.num_classes else None

    def loss() -> Tensor:
        (logits,) = network(codes, Context(label=labels))
        return F.cross_entropy(logits.float().flatten(0, -2), codes[0].flatten())

    return steps(model, loss, precision if best else "float32", lambda: None)


def tokenizer_steps(model: TokenizerPass, losses: ImageLosses, batch_size: int, precision: str, best: bool) -> Steps:
    adversary, precision = losses.adversary, precision if best else "float32"
    if best:
        for module in (model, adversary.module):
            module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(adversary.module.parameters(), adversary.learning_rate, adversary.betas, fused=True)
    images = torch.randint(0, 256, (batch_size, *IMAGE), dtype=torch.uint8)

    def loss() -> Tensor:
        made, own, metrics = model(images, 1.0)
        return losses.add(own, metrics, made, images / 255, model.tokenizer.last_layer, 1.0)[0]

    def step_of_adversary() -> None:
        with autocast(precision, CPU)():
            value = losses.adversary_loss(adversary.module, images / 255)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return steps(model, loss, precision, step_of_adversary)


def build(system: str, large: bool, batch_size: int) -> tuple[nn.Module, Callable[[bool], Steps]]:
    """A model, and what gives the steps of a copy of it: the best or the plain ones."""
    torch.manual_seed(0)
    if system == "stage_one":
        recipe = read_recipe("emoji_vqgan")
        shape = dict(zip(("image_channels", "image_height", "image_width"), IMAGE, strict=True))
        tokenizer = entry("tokenizers", recipe.tokenizer.name).model(recipe.tokenizer.config("tokenizers", shape))
        model = TokenizerPass(tokenizer).train()
        perceptual = PerceptualLoss(EfficientNetLite0(recipe.losses.perceptual.side))
        losses, precision = ImageLosses(recipe.losses, perceptual, IMAGE), recipe.training.precision
        return model, lambda best: tokenizer_steps(*copy.deepcopy((model, losses)), batch_size, precision, best)
    recipe = read_recipe("emoji_gpt" if system == "stage_two" else f"mnist_{system}")
    spec = CODES if system == "stage_two" else PIXELS
    config = SIZES[system].config if large else recipe.prior.config("priors", words={"num_classes": 10})
    prior, precision = entry("priors", recipe.prior.name).model(spec, config), recipe.training.precision
    return prior, lambda best: prior_steps(copy.deepcopy(prior), spec, batch_size, precision, best)


def compare(system: str, large: bool, batch_size: int, rounds: int) -> dict:
    model, steps_of = build(system, large, batch_size)
    plain_steps, best_steps = steps_of(False), steps_of(True)
    pairs = []
    for _ in range(rounds + 2):
        with mock.patch.dict(os.environ, CHAINRULE_NATIVE="off"), mock.patch.object(gated_pixelcnn, "gate", gate):
            slow = next(plain_steps)
        pairs.append((slow, next(best_steps)))
    pairs = pairs[2:]
    middle = len(pairs) // 2
    return {
        "system": system,
        "parameters": sum(p.numel() for p in model.parameters()),
        "plain_images_per_second": batch_size / sorted(a for a, _ in pairs)[middle],
        "best_images_per_second": batch_size / sorted(b for _, b in pairs)[middle],
        "ratio": sorted(a / b for a, b in pairs)[middle],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=SYSTEMS, metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--large", action="store_true", help="a system of benchmarks/sizes.py")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for system in arguments.systems:
        print(json.dumps(compare(system, arguments.large, arguments.batch_size, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
