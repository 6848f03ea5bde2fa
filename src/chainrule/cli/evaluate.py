"""`chainrule evaluate`: the figures of a model on a whole data set, recorded so that they can be repeated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import check_device, size_of
from .options import MAX_IMAGES, MAX_SEED, Device, Features, Force, Json, with_sampling
from .output import check_file, file_stem, print_json, print_table, to_json

if TYPE_CHECKING:
    from ..evaluation.records import LikelihoodRecord, Record, TokenizerRecord

ModelName = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A bundled model, a folder, or a hub id; not needed with --from.")
]
Data = Annotated[
    str | None, typer.Option(help="A folder, a hub data set, or shapes; without it, the model's training data.")
]
Split = Annotated[str | None, typer.Option(help='Such as "test" or "test[:1000]".', show_default="test")]
Size = Annotated[str | None, typer.Option(help="Resize and crop to this, 28 or 28x32 (height x width).")]
Binarize = Annotated[str | None, typer.Option(help="none, threshold or sample.", show_default="as in training")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only this many images, at equal distances.")]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="With --binarize sample: average over this many draws.", show_default="5"),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_SEED // 2, help="The first of the seeds, and the seed of --samples.", show_default="0"),
]
Samples = Annotated[
    int,
    typer.Option(
        min=0, max=MAX_IMAGES, help="For a model with a prior: draw this many images and compare them with the data."
    ),
]
Against = Annotated[
    str | None,
    typer.Option(help="With --samples: the split to compare with, such as train.", show_default="the images evaluated"),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images at once.", show_default="100, for a tokenizer 32")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse data with an image that cannot be read.")]
RecordFile = Annotated[Path | None, typer.Option(help="Where to write the record.", show_default="MODEL-SPLIT.json")]
Source = Annotated[Path | None, typer.Option("--from", help="Repeat this record: agrees (exit code 0) or differs (1).")]


@with_sampling
def evaluate(
    model: ModelName = None, data: Data = None, split: Split = None, size: Size = None, binarize: Binarize = None,
    limit: Limit = None, seeds: Seeds = None, seed: Seed = None, samples: Samples = 0, against: Against = None,
    *, sampling: dict[str, Any], features: Features = None, batch_size: BatchSize = None, strict: Strict = False,
    record: RecordFile = None, source: Source = None, force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Measure a model on a whole split, and write a record of it.

    The figure of a model with a prior is -log p per image in nats, with its standard error over images; --samples adds
    the Fréchet distance, precision and recall of images drawn with the labels or captions of the data.  A tokenizer
    alone is measured by PSNR, SSIM, perceptual and Fréchet distance of its reconstructions, the use of its codes, bits
    per image, and seconds.

    \b
    Examples:
      chainrule evaluate mnist_pixelcnn
      chainrule evaluate runs/vqgan --data emoji --split test
      chainrule evaluate mnist_pixelcnn --data ylecun/mnist --split test --binarize sample --seeds 5
      chainrule evaluate runs/mine --limit 500 --record quick.json --force
      chainrule evaluate runs/mine --samples 2000 --against train --guidance 3 --precision int8
      chainrule evaluate --from mnist_pixelcnn-test.json
      torchrun --nproc-per-node 4 -m chainrule evaluate runs/mine --samples 50000 --device cuda
    """
    options = {
        "split": split, "size": size_of(size), "binarize": binarize, "limit": limit, "seeds": seeds, "seed": seed,
        "samples": samples, "against": against, "sampling": sampling, "features": features, "batch_size": batch_size,
        "strict": strict,
    }  # fmt: skip
    if record is not None:
        check_file(record, ".json", force, "--record")
    from ..processes import joined, own_device

    device = own_device(device)
    check_device(device)
    if source is not None:
        _repeat(source, options, (model, data, device), record, json)
        return
    if model is None:
        raise ValueError("a MODEL is missing; see chainrule evaluate --help")

    from ..evaluation.measure import measure, plan

    planned = plan(model, device, data=data, **options)
    if record is None:
        stem = f"{file_stem(Path(model).name)}-{file_stem(planned.data.split)}"
        record = check_file(Path(f"{stem}.json"), ".json", force, "--record")
    with joined() as (rank, _, _):
        result = measure(planned)
    if rank > 0:
        return
    _write(record, result)
    if json:
        print_json(result.to_json() | {"record": str(record)})
    else:
        _print(result)
        print(f"{record}: the record")


def _repeat(
    source: Path, options: dict[str, Any], given: tuple[str | None, str | None, str], record: Path | None, json: bool
) -> None:
    """Measures again what a record says, with (model, data, device) as given."""
    from ..evaluation.measure import repeat
    from ..evaluation.plan import EvaluationSettings
    from ..evaluation.records import read_record
    from ..processes import joined

    for option in EvaluationSettings(**options).given():
        raise ValueError(f"--{option.replace('_', '-')} would be ignored: --from repeats what the record says")
    old = read_record(source)
    with joined() as (rank, _, _):
        new = repeat(old, *given)
    differences = old.differences(new)
    if rank == 0:
        if record is not None:
            _write(record, new)
        if json:
            print_json({"agrees": not differences, "differences": differences} | new.to_json())
        else:
            _print(new)
            print(f"differs: {'; '.join(differences)}" if differences else f"agrees with {source}")
    if differences:
        raise typer.Exit(1)


def _write(path: Path, record: Record) -> None:
    from ..files import write_file

    write_file(path, to_json(record.to_json()) + "\n")


def _print(record: Record) -> None:
    from ..evaluation.records import LikelihoodRecord

    _print_likelihood(record) if isinstance(record, LikelihoodRecord) else _print_tokenizer(record)


def _print_likelihood(record: LikelihoodRecord) -> None:
    result = record.likelihood
    print(f"{_with_error(result.nats, result.standard_error, 3)} nats per image")
    if record.nats_per_code is not None:
        print(f"{record.nats_per_code:.4f} nats per code, {record.bits_per_image:.1f} bits per image (of its codes)")
    if record.bits_per_dim is not None:
        print(f"{_with_error(record.bits_per_dim, record.bits_per_dim_standard_error, 4)} bits per dimension")
    print(f"{result.num_images:,} images of {record.data_name} {record.data.split}", end="")
    print("" if result.seed_std is None else f", mean over {len(record.seeds)} draws (deviation {result.seed_std:.3f})")
    if record.samples is not None:
        quality, settings = record.samples.quality, record.samples.settings
        print(f"{quality.frechet:.3f} Fréchet distance, {quality.features} features", end="")
        print(f" ({quality.floor:.3f} of the reconstructions)")
        print(f"{quality.precision:.3f} precision, {quality.recall:.3f} recall")
        split = record.data.split if settings.against is None else settings.against
        print(f"{quality.num_generated:,} samples against {quality.num_real:,} images of {record.data_name} {split}")
        print(f"{record.samples.seconds_per_image:.3f} s per sample")


def _print_tokenizer(record: TokenizerRecord) -> None:
    quality = record.tokenizer
    print(f"{_with_error(quality.psnr.value, quality.psnr.standard_error, 3)} dB PSNR")
    print(f"{_with_error(quality.ssim.value, quality.ssim.standard_error, 4)} SSIM")
    if quality.perceptual is not None:
        error = quality.perceptual.standard_error
        print(f"{_with_error(quality.perceptual.value, error, 4)} perceptual distance, {quality.features} features")
        distance = "no" if quality.frechet is None else f"{quality.frechet:.3f}"
        print(f"{distance} Fréchet distance, {quality.features} features", end="")
        print(" (it needs two images)" if quality.frechet is None else "")
    rows = [
        [str(use.grid), "all" if use.depth is None else str(use.depth), f"{use.codebook_size:,}",
         f"{100 * use.share_used:.1f}", f"{use.perplexity:,.1f}", f"{use.perplexity_ratio:.3f}"]
        for use in quality.codebooks
    ]  # fmt: skip
    print_table(["grid", "depth", "codebook size", "% used", "perplexity", "perplexity ratio"], rows)
    print(f"{quality.bits_per_image:,.0f} bits per image")
    print(f"{quality.encode_seconds:.2f} + {quality.decode_seconds:.2f} s per 100 images, to encode and to decode")
    print(f"{quality.num_images:,} images of {record.data_name} {record.data.split}")


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
