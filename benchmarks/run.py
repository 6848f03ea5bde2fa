"""Speed on this machine, ours beside PyTorch's own settings and beside running the network again for each code.

    python benchmarks/run.py                     # everything: about a quarter of an hour on two cores
    python benchmarks/run.py tokenizers codes    # some sections

The sections are written into `--out`, a page with one part for each CPU (and number of threads); what else the page has
is kept.  What is compared runs in one process, in turn, and the best of
`--rounds` counts, since other programs can only slow down; what a row means is told by the script that it names.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import decoding  # of this folder, as all below
import rq_transformer
import sampling
import tokenizer
import torch
import training

from chainrule.core import Context
from chainrule.files import read_text, write_file
from chainrule.kernels.native import has_bfloat16

PAGE = Path(__file__).parents[1] / "docs" / "experiments" / "benchmark.md"
PLAIN = "plain bfloat16" if has_bfloat16(torch.device("cpu")) else "plain float32"
"""PyTorch's setting for transformers, of the ways of `decoding`."""
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
HEADER = "| work | unit | ours | PyTorch | again | ours / PyTorch | ours / again |\n|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    work, unit:    what was measured
    ours:          the rate, or the time where `unit` is seconds
    library:       PyTorch's
    again:         of running the network again for each code
    """

    work: str
    unit: str
    ours: float
    library: float | None = None
    again: float | None = None

    def line(self) -> str:
        """The row in Markdown; a ratio above 1 means that ours is faster."""
        others = (self.library, self.again)
        ratios = [None if other is None else other / self.ours if self.unit == "s" else self.ours / other
                  for other in others]  # fmt: skip
        cells = [self.work, self.unit, *map(_number, (self.ours, *others)), *map(_number, ratios)]
        return f"| {' | '.join(cells)} |\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def codes(rounds: int) -> Iterator[Row]:
    """GPT of 12 layers x 768, 256 codes (`benchmarks/decoding.py`)."""
    prior = decoding.model("gpt")
    plain = decoding.packed(prior, PLAIN)
    compiled = {precision: decoding.packed(prior, f"compiled {precision}") for precision in ("bfloat16", "int8")}
    for batch in (1, 8, 64):

        def rate(runner, batch=batch) -> float:
            return max(decoding.codes_per_second(runner, Context(), batch) for _ in range(rounds))

        library = rate(plain)
        again = batch * prior.spec.length / sampling.seconds_rerun(prior, batch, 1)
        for precision, runner in compiled.items():
            yield Row(f"GPT 12x768, {precision}, batch {batch}", "codes/s", rate(runner), library, again)


def residual_codes(rounds: int) -> Iterator[Row]:
    """RQ-Transformer of 12 + 4 layers x 768, 8x8x4 codes, and a GPT of equal size (`benchmarks/rq_transformer.py`).

    The last rows compare the two: in the column of PyTorch stands the GPT, by our code.
    """
    models = rq_transformer.models()
    runners = {name: prior.runner("int8") for name, prior in models.items()}
    plain = decoding.packed(models["rq_transformer"], PLAIN)
    equal = []
    for batch in (1, 8):

        def rate(runner, batch=batch) -> float:
            seconds = min(rq_transformer.seconds(runner, batch) for _ in range(rounds))
            return batch * runner.prior.spec.length / seconds

        ours, flat = rate(runners["rq_transformer"]), rate(runners["gpt"])
        yield Row(f"RQ 12+4x768, int8, batch {batch}", "codes/s", ours, rate(plain))
        equal.append(Row(f"RQ, against a GPT of equal size, int8, batch {batch}", "codes/s", ours, flat))
    yield from equal


def tokenizers(rounds: int) -> Iterator[Row]:
    """VQGAN f16 at 256x256 (`benchmarks/tokenizer.py`), packed; PyTorch in its fastest setting."""
    vqgan = tokenizer.random_tokenizer()
    ways = {name: tokenizer.way(vqgan, name) for name in (*tokenizer.LIBRARY, "packed")}
    for batch in (1, 8):
        found = tokenizer.compare(vqgan, ways, batch, rounds)
        for task in ("encode", "decode"):
            rates = found[f"{task}, images per second"]
            library = max(rates[name] for name in tokenizer.LIBRARY)
            yield Row(f"VQGAN f16 256x256, {task}, batch {batch}", "images/s", rates["packed"], library)


def trainings(rounds: int) -> Iterator[Row]:
    """Steps of training (`benchmarks/training.py`), against eager float32."""
    for system in training.SYSTEMS:
        found = training.compare(system, False, 48, rounds)
        ours, library = found["best_images_per_second"], found["plain_images_per_second"]
        yield Row(f"training {system.replace('_', ' ')}", "images/s", ours, library)


def pixels(rounds: int) -> Iterator[Row]:
    """Gated PixelCNN of 10 layers x 128, 28x28 (`benchmarks/sampling.py`)."""
    prior = sampling.model(28, 28)
    for batch in (1, 16):
        ours = min(sampling.seconds_cached(prior, batch) for _ in range(rounds))
        again = min(sampling.seconds_rerun(prior, batch, 2) for _ in range(rounds))
        yield Row(f"gated PixelCNN 28x28, batch {batch}", "images/s", batch / ours, None, batch / again)


def start(rounds: int) -> Iterator[Row]:
    """From the call of a program to its end, files cached; in the column of PyTorch stands `import torch` alone."""

    def seconds(*words: str) -> float:
        since = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return time.perf_counter() - since

    with tempfile.TemporaryDirectory() as folder:
        words = ("-m", "chainrule", "sample", "mnist_pixelcnn", "-n", "16", "--out", f"{folder}/digits.png", "--force")
        ours = min(seconds(*words) for _ in range(rounds + 1))
        yield Row(
            "`chainrule sample mnist_pixelcnn -n 16`", "s", ours, min(seconds("-c", "import torch") for _ in "ab")
        )


SECTIONS: dict[str, tuple[str, Callable[[int], Iterator[Row]]]] = {
    "codes": ("Codes", codes),
    "residual_codes": ("Residual codes", residual_codes),
    "tokenizers": ("Tokenizers", tokenizers),
    "trainings": ("Training", trainings),
    "pixels": ("Pixels", pixels),
    "start": ("Start", start),
}


def machine() -> str:
    """The CPU, its features on which speed depends, and the threads."""
    try:
        lines = read_text("/proc/cpuinfo").splitlines()
        fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
    except OSError:
        fields = {}
    model = f", family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    has = [name for name in FEATURES if name in fields.get("flags", "").split()]
    name = fields.get("model name", "unknown CPU") + model
    return (
        f"{name}; {', '.join(has) or 'features unknown'}; {torch.get_num_threads()} threads; torch {torch.__version__}"
    )


HEAD = """# Benchmark

Written by `python benchmarks/run.py`, one part for each CPU. Ours stands beside PyTorch's own setting and beside
running the network again for each code. Ratios above 1 mean that ours is faster.
"""


def page(parts: dict[str, dict[str, str]]) -> str:
    """The whole page, from the text of each section, by machine and title."""
    text = HEAD
    for machine, sections in parts.items():
        titles = [title for title, _ in SECTIONS.values() if title in sections]
        text += f"\n## {machine}\n" + "".join(f"\n### {title}\n\n{sections[title].strip()}\n" for title in titles)
    return text


def kept(path: Path) -> dict[str, dict[str, str]]:
    """The sections of a page, by machine and title; none where there is no page."""
    text = read_text(path) if path.exists() else ""
    parts = [part.split("\n### ") for part in text.split("\n## ")[1:]]
    return {head.strip(): dict(section.split("\n", 1) for section in sections) for head, *sections in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if wrong := [name for name in arguments.sections if name not in SECTIONS]:
        parser.error(f"no section {wrong[0]!r}; there are: {', '.join(SECTIONS)}")
    for name in arguments.sections:
        title, measure = SECTIONS[name]
        text = " ".join((measure.__doc__ or "").split()) + "\n\n" + HEADER
        for row in measure(arguments.rounds):
            print(row.line(), end="", flush=True)
            text += row.line()
        parts = kept(arguments.out)
        parts.setdefault(machine(), {})[title] = text
        write_file(arguments.out, page(parts))


if __name__ == "__main__":
    main()
