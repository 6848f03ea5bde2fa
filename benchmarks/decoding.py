"""Decoding speed of transformers over codes: GPT (12 layers x 768, vocabulary 1024, 256 codes, 86.7M parameters), or a
small Parti (a decoder of 8 layers x 320, 256 codes, texts of 32 tokens).

    python benchmarks/decoding.py --batch-size 1
    python benchmarks/decoding.py --batch-size 8
    python benchmarks/decoding.py --batch-size 64 --steps 12      # compiled steps in the middle of the image
    python benchmarks/decoding.py --prior parti --batch-size 16
    python benchmarks/decoding.py --cost          # nats per code that narrow weights cost

All ways of decoding run in one process, one after the other, and the whole again for each round; printed are codes
and images per second (medians over rounds, all images of the batch together) and the ratios to plain cached float32.
With `--steps` only the compiled ways of GPT run, and the least time of so many steps after half of the codes counts,
without drawing codes.  With OMP_NUM_THREADS=1 times are the processor's, so that other programs disturb them less.

    rerun     the network reads the whole image again for each code (its time is that of a few codes, scaled)
    plain     a cache of keys and values, in torch alone, which is also what runs without a C++ compiler
    compiled  one call of compiled code per code
    vectors   the same without AMX, where the processor has it

The cost is the divergence KL(float32 | mode), exact over the vocabulary, meant over the codes of images that the
float32 model draws.  The weights are random (GPT-2's initialisation); for the cost all matrices of the blocks are
doubled and the head is multiplied by `--sharpness`, so that the entropy is like a trained model's.
"""

import argparse
import json
import os
import time
from unittest import mock

import torch
from sampling import median, seconds_rerun  # of this folder

from chainrule.core import Context, entry
from chainrule.decoding import image_seeds, sample
from chainrule.kernels import packing
from sizes import SIZES

PRECISIONS = ("float32", "bfloat16", "int8")
MODES = {"plain": "off", "compiled": "require", "vectors": "vectors"}  # of CHAINRULE_NATIVE


def model(name: str = "gpt"):
    prior = entry("priors", name)
    preset = SIZES[name]
    torch.manual_seed(0)
    return prior.model(preset.spec, preset.config).eval().requires_grad_(False)


def context(prior, batch_size: int) -> Context:
    """Texts without padding, for a prior of texts."""
    given = prior.conditions
    if not given.text_length:
        return Context()
    return Context(text=torch.randint(1, given.text_vocab_size, (batch_size, given.text_length)))


def packed(prior, way: str):
    """The prior packed for one of the `ways`."""
    mode, precision = way.split()
    with mock.patch.dict(os.environ, CHAINRULE_NATIVE=MODES[mode]):
        return prior.runner(precision)


def ways(*modes: str) -> list[str]:
    """Modes and precisions that this machine has."""
    library = packing.native_library()
    found = {
        "plain": PRECISIONS,
        "compiled": PRECISIONS if library else (),
        "vectors": PRECISIONS[1:] if library and packing.has_amx(library) else (),
    }
    return [f"{mode} {precision}" for mode in modes for precision in found[mode]]


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def codes_per_second(runner, condition: Context, batch_size: int) -> float:
    start = clock()
    sample(runner, condition, image_seeds(0, batch_size))
    return batch_size * runner.prior.spec.length / (clock() - start)


def speeds(name: str, batch_size: int, rounds: int, rerun_codes: int) -> dict:
    prior = model(name)
    condition = context(prior, batch_size)
    runners = {way: packed(prior, way) for way in ways("plain", "compiled")}
    seconds_rerun(prior, batch_size, 1, condition)
    rates = {"rerun": []} | {way: [] for way in runners}
    for _ in range(rounds):
        seconds = seconds_rerun(prior, batch_size, rerun_codes, condition)
        rates["rerun"].append(batch_size * prior.spec.length / seconds)
        for way, runner in runners.items():
            rates[way].append(codes_per_second(runner, condition, batch_size))
    found = {name: median(values) for name, values in rates.items()}
    ratios = {name: found[name] / found["plain float32"] for name in found}
    images = {name: rate / prior.spec.length for name, rate in found.items()}
    return {
        "prior": prior.name,
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "batch_size": batch_size,
        "codes_per_second": found,
        "images_per_second": images,
        "ratio_to_plain_float32": ratios,
    }


def step_speeds(batch_size: int, steps: int) -> dict:
    prior, found = model(), {}
    features = prior.config.width // prior.config.num_heads
    previous = torch.zeros(batch_size, dtype=torch.int64)
    for way in ways("compiled", "vectors"):
        runner, times = packed(prior, way), []
        state = runner.init_state(batch_size, Context())
        for cache in (state.cache.keys, state.cache.values):
            cache.copy_(runner.blocks.form.cached(torch.randn(*cache.shape[:-1], features)))
        state.cache.lengths.fill_(prior.spec.length // 2)
        for _ in range(steps):
            start = clock()
            _, state = runner.step(previous, state)
            times.append(clock() - start)
        found[way] = batch_size / min(times)
    ratios = {way: found[way] / found["compiled float32"] for way in found}
    return {"batch_size": batch_size, "codes_per_second": found, "ratio_to_compiled_float32": ratios}


@torch.no_grad()
def cost(images: int, sharpness: float) -> dict:
    prior = model()
    for block in prior.blocks:
        for linear in (block.query_key_value, block.projection, block.expand, block.contract):
            linear.weight *= 2
    prior.head.linear.weight *= sharpness
    codes = prior.spec.flatten(sample(prior.runner(), Context(), image_seeds(0, images)))
    reference = prior(prior.spec.unflatten(codes), Context())[0].flatten(1, 3).double().log_softmax(-1)
    result = {"entropy": -(reference.exp() * reference).sum(-1).mean().item()}
    for way in ways("plain", "compiled"):
        log_prob = every_log_prob(packed(prior, way), codes)
        result[way] = (reference.exp() * (reference - log_prob)).sum(-1).mean().item()
    return {"nats_per_code": result}


def every_log_prob(runner, codes: torch.Tensor) -> torch.Tensor:
    """log p of all values of each code by steps: (B, T, K), in float64."""
    state, previous, found = runner.init_state(len(codes), Context()), codes[:, 0], []
    for t in range(codes.shape[1]):
        logits, state = runner.step(previous, state)
        found.append(logits.double().log_softmax(-1))
        previous = codes[:, t]
    return torch.stack(found, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=("gpt", "parti"), default="gpt")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rerun-codes", type=int, default=4)
    parser.add_argument("--steps", type=int, help="of compiled ways of gpt, instead of whole images")
    parser.add_argument("--cost", action="store_true", help="nats per code instead of codes per second")
    parser.add_argument("--images", type=int, default=4, help="that the cost is measured on")
    parser.add_argument("--sharpness", type=float, default=4.0)
    arguments = parser.parse_args()
    if (arguments.cost or arguments.steps) and arguments.prior != "gpt":
        parser.error("--cost and --steps are measured on gpt only; leave --prior out")
    if arguments.cost:
        result = cost(arguments.images, arguments.sharpness)
    elif arguments.steps:
        result = step_speeds(arguments.batch_size, arguments.steps)
    else:
        result = speeds(arguments.prior, arguments.batch_size, arguments.rounds, arguments.rerun_codes)
    print(json.dumps({"threads": torch.get_num_threads()} | result, indent=1))


if __name__ == "__main__":
    main()
