"""Completion of digits whose middle is hidden: log-probability of the whole picture, by number of particles.

    python benchmarks/completion.py mnist_diagonal_bilstm --digits 50 --particles 1 8 32

The known rows below the gap are invisible to a raster model while it draws the gap; sequential Monte Carlo
weights candidates by the probability they give to these rows.
"""

import argparse
import json

import torch

import chainrule
from chainrule.data import DataConfig, binarize, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="ylecun/mnist")
    parser.add_argument("--digits", type=int, default=50)
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rows", type=int, nargs=2, default=[10, 18], help="first hidden row, first known one after")
    arguments = parser.parse_args()
    model = chainrule.load(arguments.model)
    data = load(DataConfig(arguments.data, split="test"))
    images = data.batch(torch.arange(arguments.digits)).images
    images = binarize(images, "sample", torch.Generator().manual_seed(0))
    mask = torch.ones(images.shape[2:], dtype=torch.bool)
    mask[slice(*arguments.rows)] = False
    result = {"digits": arguments.digits, "hidden_rows": arguments.rows, "truth": model.log_prob(images).mean().item()}
    for particles in arguments.particles:
        completed = torch.cat(
            [model.complete(image, mask, particles=particles, seed=index) for index, image in enumerate(images)]
        )
        log_prob = model.log_prob(completed)
        result[f"particles_{particles}"] = log_prob.mean().item()
        result[f"particles_{particles}_standard_error"] = (log_prob.std() / len(images) ** 0.5).item()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
