"""What `chainrule plan` forecasts on this machine beside what trainings take: processor time of a step, peak memory.

    python benchmarks/plan.py shapes_vqvae shapes_parti mnist_pixelcnn

A step of a training is the difference of two short trainings, each in a new process; a forecast is a new process, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

SHORT, LONG = 3, 13
OVERRIDES = ["training.compile=false", "training.sample_every=0", "evaluation.split=test[:100]"]
FORECAST = """
import json, sys, time
from chainrule.planning import plan
found = plan(sys.argv[1], json.loads(sys.argv[2]), clock=time.process_time)
print(json.dumps([found.seconds, found.memory, found.cost.peak]))
"""
TRAINING = """
import json, sys, tempfile, time, chainrule
from chainrule.planning import peak_memory
with tempfile.TemporaryDirectory() as folder:
    chainrule.train(sys.argv[1], folder + "/run", json.loads(sys.argv[2]), quiet=True)
print(json.dumps([time.process_time(), peak_memory()]))
"""


def main() -> None:
    """Prints a row for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    print(f"{'recipe':22} {'step s':>8} {'forecast':>9} {'ratio':>6} {'peak MB':>8} {'forecast':>9} {'ratio':>6}")
    for recipe in parser.parse_args().recipes:
        seconds, memory, _ = run(FORECAST, recipe, OVERRIDES)
        run(TRAINING, recipe, [*OVERRIDES, "training.steps=1"])  # fills the cache
        short, long = (run(TRAINING, recipe, [*OVERRIDES, f"training.steps={steps}"]) for steps in (SHORT, LONG))
        step = (long[0] - short[0]) / (LONG - SHORT)
        times = f"{step:8.3f} {seconds:9.3f} {seconds / step:6.2f}"
        print(f"{recipe:22} {times} {long[1] / 1e6:8.0f} {memory / 1e6:9.0f} {memory / long[1]:6.2f}", flush=True)


def run(program: str, recipe: str, overrides: list[str]) -> list[float]:
    """What a new process prints."""
    command = [sys.executable, "-W", "ignore", "-c", program, recipe, json.dumps(overrides)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
