"""Peak memory and processor time of encoding a stream of pictures once: they are flat, and linear.

    python benchmarks/code_cache.py 20000 80000 320000

Makes pictures of 64x64 in tar files, in folders and in parquet files, and encodes them with a small VQ-VAE in a new
process each.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

import chainrule

SIDE, DIFFERENT, PER_TAR, HELD_OUT = 64, 256, 4096, 32
ENCODE = """
import json, sys, time, torch
from chainrule.data import DataConfig
from chainrule.planning import peak_memory
from chainrule.training.engine.config import EvaluationConfig
from chainrule.training.tasks.codes import open_tokenizer
from chainrule.training.tasks.streams import stream_examples

tokenizer, _ = open_tokenizer(sys.argv[2], None)
before, since = peak_memory(), time.process_time()
data = DataConfig(sys.argv[1], size=64, channels=3, stream=True)
examples = stream_examples(data, EvaluationConfig(), tokenizer, torch.device("cpu"), True)
seconds = time.process_time() - since
print(json.dumps({"count": len(examples.training), "before": before, "peak": peak_memory(), "seconds": seconds}))
"""


def pictures(count: int) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files: `DIFFERENT` pictures, each file with its number after its end, which no reader sees."""
    values, files = np.random.default_rng(0).integers(0, 256, (DIFFERENT, 8, 8, 3), np.uint8), []
    for small in values:
        file = io.BytesIO()
        Image.fromarray(small).resize((SIDE, SIDE)).save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    for number in range(count):
        yield f"{number:09d}.png", files[number % DIFFERENT] + number.to_bytes(8, "little")


def write_folder(folder: Path, count: int) -> None:
    """A folder per split, with 1,000 pictures in each folder below it."""
    for split, some in (("train", count), ("test", HELD_OUT)):
        for number, (name, content) in enumerate(pictures(some)):
            path = folder / split / "all" / f"{number // 1000:06d}" / name
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(content)


def write_tars(folder: Path, count: int) -> None:
    """Tar files of `PER_TAR` pictures."""
    folder.mkdir()
    for split, some in (("train", count), ("test", HELD_OUT)):
        waiting = pictures(some)
        for start in range(0, some, PER_TAR):
            with tarfile.open(folder / f"{split}-{start // PER_TAR:06d}.tar", "w") as archive:
                for name, content in islice(waiting, PER_TAR):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


def write_tables(folder: Path, count: int) -> None:
    """Parquet files of `PER_TAR` rows."""
    folder.mkdir()
    for split, some in (("train", count), ("test", HELD_OUT)):
        waiting = pictures(some)
        for start in range(0, some, PER_TAR):
            rows = [{"bytes": content, "path": name} for name, content in islice(waiting, PER_TAR)]
            table = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
            table.to_parquet(folder / f"{split}-{start // PER_TAR:06d}.parquet")


WRITERS = {"tars": write_tars, "folders": write_folder, "tables": write_tables}


def main() -> None:
    """Prints a row for each kind and number of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="+", type=int)
    parser.add_argument("--work", type=Path, help="Where to make the pictures.")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    print(f"{'pictures':>9} {'in':>7} {'processor s':>12} {'per 1000':>9} {'peak MB':>8} {'above start MB':>15}")
    for kind, write in WRITERS.items():
        for count in options.counts:
            with tempfile.TemporaryDirectory(dir=options.work) as work:
                row = measured(Path(work), write, count)
            figures = f"{row['seconds']:12.1f} {row['seconds'] / count * 1000:9.3f} {row['peak'] / 1e6:8.0f}"
            print(f"{row['count']:9,} {kind:>7} {figures} {(row['peak'] - row['before']) / 1e6:15.0f}", flush=True)


def measured(work: Path, write, count: int) -> dict:
    """What a new process with an empty cache says of encoding."""
    torch.manual_seed(0)
    sizes = {"image_height": SIDE, "image_width": SIDE, "image_channels": 3, "codebook_size": 64, "embedding_dim": 4}
    chainrule.save(chainrule.create("vqvae", width=8, residual_width=4, num_blocks=1, **sizes), work / "tokenizer")
    write(work / "pictures", count)
    environment = os.environ | {"CHAINRULE_CACHE": str(work / "cache")}
    command = [sys.executable, "-c", ENCODE, str(work / "pictures"), str(work / "tokenizer")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
