"""Trains and evaluates in two processes and in one, and prints a table of how far the figures lie apart.

    python scripts/check_processes.py                          # everything: some minutes on two cores
    python scripts/check_processes.py training --steps 10      # this only: training, resuming, evaluation

training:   loss curves of a tokenizer, a transformer and a raster prior, by DDP as torchrun starts it on one machine
            and on two, and as SLURM does on two, by FSDP, and with a batch in parts, beside those of one process;
            and that FSDP refuses an adversary in a sentence
resuming:   a checkpoint of two FSDP processes goes on in two, which ends like an unbroken run of two, and in one, and
            the reverse
evaluation: `chainrule evaluate --samples N` in two processes and in one, with the processor time of each

All runs are on the CPU, in float32, by AdamW and without dropout (Muon computes in bfloat16 where the CPU has it, so
that its curves lie farther apart: --optimizer muon).  A difference above 1e-4 in a loss, or any difference in an
evaluation, makes the exit code 1.
"""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 1e-4
SETTINGS = {
    "batch_size": 16, "precision": "float32", "compile": False, "log_every": 1, "save_every": 1000, "sample_every": 0,
    "schedule": "constant", "warmup_steps": 5,
}  # fmt: skip
DATA = {"source": "shapes", "size": 16, "split": "train[:512]"}
RECIPES = {  # a VQ-VAE without what depends on a whole batch, or on chance: restarts, and the spread of its codes
    "vqvae": {
        "data": DATA,
        "tokenizer": {
            "name": "vqvae",
            "width": 32,
            "codebook_size": 32,
            "embedding_dim": 16,
            "restart_below": 0.0,
            "spread": 0.0,
            "decay": 0.9,
        },
    },
    "gpt": {
        "data": DATA,
        "tokenizer": {"path": "vqvae"},
        "prior": {"name": "gpt", "num_layers": 2, "width": 64, "num_heads": 2, "dropout": 0.0},
    },
    "gated_pixelcnn": {
        "data": DATA | {"levels": 8},
        "tokenizer": {"name": "pixels", "levels": 8},
        "prior": {"name": "gated_pixelcnn", "num_layers": 3, "width": 16, "kernel_size": 3, "head_width": 16},
    },
}
BY_LOSS = ["tokenizer.learning=loss"]  # codebooks learned by averages learn from each part of a batch
VARIANTS = [  # what is compared with one process: title, processes, words of the command
    ("DDP", 2, []),
    ("DDP on two machines", 2, []),
    ("DDP on two nodes of SLURM", 2, []),
    ("FSDP", 2, ["--strategy", "fsdp"]),
    ("in 4 parts", 1, ["training.accumulate=4"]),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["training", "resuming", "evaluation"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--model", default="shapes_parti", help="what is evaluated")
    parser.add_argument("--samples", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, recipe in RECIPES.items():
            training = SETTINGS | {"steps": options.steps, "optimizer": options.optimizer}
            evaluation = {"split": "test[:64]", "every": max(1, options.steps // 2)}
            Path(f"{name}.yaml").write_text(json.dumps(recipe | {"training": training, "evaluation": evaluation}))
        if {"training", "resuming"} & set(options.parts):
            train("vqvae", "vqvae")
        passed = [
            *([*compare_training(), refuses_adversary()] if "training" in options.parts else []),
            *(compare_resuming(options.steps) if "resuming" in options.parts else []),
            *([compare_evaluation(options.model, options.samples)] if "evaluation" in options.parts else []),
        ]
    return int(not all(passed))


def launched(rank: int, processes: int, port: int, title: str) -> dict[str, str]:
    """The variables that a process gets from torchrun, or from SLURM if the title says so."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "SLURM" in title:
        nodes = {"NTASKS": processes, "NTASKS_PER_NODE": 1, "NNODES": processes, "NODEID": rank, "PROCID": rank}
        job = nodes | {"LOCALID": 0, "JOB_ID": port, "JOB_NAME": "check", "STEP_ID": 0, "NODELIST": "localhost"}
        return meeting | {f"SLURM_{name}": str(value) for name, value in job.items()}
    here, local = (1, 0) if "machines" in title else (processes, rank)
    numbers = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": here}
    numbers |= {"GROUP_RANK": rank - local, "TORCHELASTIC_RUN_ID": "check"}
    return meeting | {name: str(value) for name, value in numbers.items()}


def run(processes: int, *words: str, title: str = "") -> list[float]:
    """A command of chainrule in processes that are started as the title says; the processor seconds of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if processes > 1:
            environment |= launched(rank, processes, port, title)
        command = [sys.executable, "-m", "chainrule", *words]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    seconds = []
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} failed")
        seconds.append(usage.ru_utime + usage.ru_stime)
    return seconds


def train(name: str, out: str, processes: int = 1, *words: str, title: str = "") -> None:
    run(processes, "train", f"{name}.yaml", "--out", out, "--quiet", "--accelerator", "cpu", *words, title=title)


def losses(out: str) -> list[float]:
    with open(Path(out, "log.csv"), newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def report(what: str, one: str, other: str) -> bool:
    """Compares the loss curves of two runs."""
    pairs = list(zip(losses(one), losses(other), strict=True))
    farthest = max(abs(a - b) for a, b in pairs)
    print(f"{what}: {len(pairs)} steps, loss {pairs[0][0]:.4f} to {pairs[-1][0]:.4f}, at most {farthest:.1e} apart")
    return farthest <= TOLERANCE


def compare_training() -> list[bool]:
    passed = []
    for name in RECIPES:
        for title, processes, words in VARIANTS:
            given = BY_LOSS if name == "vqvae" and processes == 1 else []
            baseline = f"{name}-one{len(given)}"
            if not Path(baseline).exists():
                train(name, baseline, 1, *given)
            train(name, f"{name}-{title}", processes, *given, *words, title=title)
            passed.append(report(f"{name}, {title}", baseline, f"{name}-{title}"))
    return passed


def refuses_adversary() -> bool:
    """Whether FSDP refuses to train against an adversary, in one sentence and before the first step."""
    command = [sys.executable, "-m", "chainrule", "train", "vqvae.yaml", "--out", "duel", "--strategy", "fsdp"]
    options = ["--accelerator", "cpu", "losses.adversarial.num_layers=1"]
    environment = os.environ | launched(0, 1, 0, "")
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    print(f"FSDP against an adversary: {done.stderr.strip()}")
    return done.returncode == 2 and "use ddp" in done.stderr and not Path("duel/log.csv").exists()


def compare_resuming(steps: int) -> list[bool]:
    spread, half = ["--strategy", "fsdp"], f"training.steps={steps // 2}"
    train("gpt", "whole")
    train("gpt", "whole-of-two", 2, *spread)
    train("gpt", "two-again", 2, *spread, half)
    train("gpt", "two-again", 2, *spread)
    train("gpt", "from-two", 2, *spread, half)
    train("gpt", "from-two", 1)
    train("gpt", "from-one", 1, half)
    train("gpt", "from-one", 2, *spread)
    return [
        report("gpt, two FSDP processes, resumed by two", "whole-of-two", "two-again"),
        report("gpt, two FSDP processes, then one", "whole", "from-two"),
        report("gpt, one process, then two of FSDP", "whole", "from-one"),
    ]


def compare_evaluation(model: str, samples: int) -> bool:
    found = {}
    for processes in (1, 2):
        record = f"{processes}.json"
        words = ["--samples", str(samples), "--record", record]
        os.environ["CHAINRULE_CACHE"] = tempfile.mkdtemp(dir=".")  # features of the real images are computed again
        seconds = run(processes, "evaluate", model, *words)
        value = json.loads(Path(record).read_text())
        found[processes] = value["likelihood"], value["samples"]["quality"]
        print(f"{model}, {processes} processes: {', '.join(f'{second:.0f}' for second in seconds)} s of processor time")
    print(f"{'the same' if found[1] == found[2] else 'other'} figures: {found[2]}")
    return found[1] == found[2]


if __name__ == "__main__":
    raise SystemExit(main())
