"""`chainrule evaluate`: the figures of a model on a whole data set, recorded so that they can be repeated."""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Device,
    Features,
    Force,
    Json,
    TopK,
    TopP,
    check_file,
    file_stem,
    open_features,
    open_model,
    open_tokenizer,
    print_json,
    print_table,
)  # fmt: skip

if TYPE_CHECKING:
    from ..evaluation.records import LikelihoodRecord, Record, SampleSettings, TokenizerRecord


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A bundled model, a folder, or a hub id; --from knows it."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder, a hub data set, or shapes; without it, what the model was trained on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help='Such as "test" or "test[:1000]".', show_default="test")] = None,
    size: Annotated[str | None, typer.Option(help="Resize and crop to this, 28 or 28x32 (height x width).")] = None,
    binarize: Annotated[
        str | None, typer.Option(help="none, threshold or sample.", show_default="as in training")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With --binarize sample: mean over this many draws.", show_default="5")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The first of the seeds, and that of --samples.", show_default="0")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Of a model with a prior: draw this many images and compare them with the data.")
    ] = 0,
    against: Annotated[
        str | None,
        typer.Option(help="With --samples: the split to compare with, such as train.", show_default="those evaluated"),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="With --samples, as in chainrule sample.", show_default="1.0")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="The same.", show_default="1.0")] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the weights in sampling, as in chainrule sample.", show_default="float32")
    ] = None,
    features: Features = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once.", show_default="100, for a tokenizer 32")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data with an image that cannot be read.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Where to write the record.", show_default="MODEL-SPLIT.json")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Repeat this record: agrees (exit code 0) or differs (1).")
    ] = None,
    force: Force = False,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Measure a model on a whole split, and write a record of it.

    The figure of a model with a prior is -log p per image in nats, with its standard error over images; --samples adds
    Fréchet distance, precision and recall of images drawn with the labels or captions of the data.  Those of a
    tokenizer alone are PSNR, SSIM, perceptual and Fréchet distance of its reconstructions, the use of its codes,
    bits per image, and seconds.

    \b
    Examples:
      chainrule evaluate mnist_pixelcnn
      chainrule evaluate runs/vqgan --data emoji --split test
      chainrule evaluate mnist_pixelcnn --data ylecun/mnist --split test --binarize sample --seeds 5
      chainrule evaluate runs/mine --limit 500 --record quick.json --force
      chainrule evaluate runs/mine --samples 2000 --against train --guidance 3 --precision int8
      chainrule evaluate --from mnist_pixelcnn-test.json
    """
    drawing = {
        "--against": against, "--guidance": guidance, "--temperature": temperature, "--top-k": top_k,
        "--top-p": top_p, "--precision": precision,
    }  # fmt: skip
    if source is not None:
        others = {
            "--split": split, "--size": size, "--binarize": binarize, "--limit": limit, "--seeds": seeds,
            "--seed": seed, "--batch-size": batch_size, "--strict": strict or None, "--features": features,
            "--samples": samples or None, **drawing,
        }  # fmt: skip
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"{given[0]} would be ignored: --from repeats what the record says")
        _repeat(source, model, data, record, force, json, device)
        return
    if model is None:
        raise ValueError("a MODEL is missing; see chainrule evaluate --help")
    if record is not None:
        check_file(record, ".json", force, "--record")
    from ..evaluation.measure import data_config, measure_likelihood, measure_tokenizer
    from ..zoo import has_prior

    result: Record
    if has_prior(model):
        settings = _sample_settings(samples, seed, features, drawing)
        pipeline = open_model(model, device)
        config = data_config(model, pipeline.tokenizer.image_shape, data, split, size, binarize, strict)
        record = record or _free_record(model, config.split, force)
        if config.binarize == "sample":
            chosen = tuple(range(seed or 0, (seed or 0) + (seeds or 5)))
        elif seeds is None and (seed is None or samples):
            chosen = ()
        else:
            raise ValueError(f"seeds would be ignored: nothing is drawn with --binarize {config.binarize}")
        result = measure_likelihood(pipeline, model, config, limit, chosen, batch_size or 100, settings)
    else:
        others = {
            "--binarize": binarize, "--seeds": seeds, "--seed": seed, "--samples": samples or None, **drawing
        }  # fmt: skip
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"{given[0]} would be ignored: {model} is a tokenizer without a prior")
        tokenizer = open_tokenizer(model, device)
        config = data_config(model, tokenizer.image_shape, data, split, size, "none", strict)
        record = record or _free_record(model, config.split, force)
        if features is None:
            features = "efficientnet_lite0" if open_features(None) is not None else "none"
        result = measure_tokenizer(tokenizer, model, config, limit, features, batch_size or 32, device)
    _write(record, result)
    if json:
        print_json(result.to_json() | {"record": str(record)})
    else:
        _print(result)
        print(f"{record}: the record")


def _sample_settings(
    samples: int, seed: int | None, features: str | None, drawing: dict[str, Any]
) -> SampleSettings | None:
    """How to draw images, if that was asked for; `drawing` are options by name, None where they were not given."""
    from ..evaluation.records import SampleSettings

    given = {name.removeprefix("--").replace("-", "_"): value for name, value in drawing.items() if value is not None}
    if samples:
        if features == "none":
            raise ValueError("--features none leaves nothing to compare samples by; leave out --samples or --features")
        return SampleSettings(count=samples, seed=seed or 0, features=features or "efficientnet_lite0", **given)
    for name, value in (drawing | {"--features": features}).items():
        if value is not None:
            raise ValueError(
                f"{name} would be ignored: the figure of a model with a prior is its likelihood; with --samples images "
                "are drawn and compared"
            )
    return None


def _free_record(model: str, split: str, force: bool) -> Path:
    return check_file(Path(f"{file_stem(Path(model).name)}-{file_stem(split)}.json"), ".json", force, "--record")


def _repeat(
    source: Path, model: str | None, data: str | None, record: Path | None, force: bool, json: bool, device: str
) -> None:
    from ..evaluation.measure import measure_likelihood, measure_tokenizer
    from ..evaluation.records import LikelihoodRecord, read_record
    from ..zoo import has_prior

    old = read_record(source)
    if record is not None:
        check_file(record, ".json", force, "--record")
    config = old.data if data is None else replace(old.data, source=data)
    model = model or old.model
    new: Record
    if isinstance(old, LikelihoodRecord):
        settings = None if old.samples is None else old.samples.settings
        pipeline = open_model(model, device)
        new = measure_likelihood(pipeline, model, config, old.limit, old.seeds, old.batch_size, settings)
    else:
        if has_prior(model):
            raise ValueError(f"{source} is the record of a tokenizer, but {model} has a prior")
        tokenizer = open_tokenizer(model, device)
        new = measure_tokenizer(tokenizer, model, config, old.limit, old.features, old.batch_size, device)
    differences = old.differences(new)
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
    from .pictures import write_bytes

    write_bytes(path, (json_module.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n").encode())


def _print(record: Record) -> None:
    from ..evaluation.records import LikelihoodRecord

    _print_likelihood(record) if isinstance(record, LikelihoodRecord) else _print_tokenizer(record)


def _print_likelihood(record: LikelihoodRecord) -> None:
    result = record.likelihood
    print(f"{_with_error(result.nats, result.standard_error, 3)} nats per image")
    if record.nats_per_code is not None:
        print(f"{record.nats_per_code:.4f} nats per code, {record.bits_per_image:.1f} bits per image (of its codes)")
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
        print(f"{quality.frechet:.3f} Fréchet distance, {quality.features} features")
    rows = [
        [str(use.grid), "all" if use.depth is None else str(use.depth), f"{use.codebook_size:,}",
         f"{100 * use.share_used:.1f}", f"{100 * use.perplexity_ratio:.1f}"]
        for use in quality.codebooks
    ]  # fmt: skip
    print_table(["grid", "depth", "codes", "% used", "perplexity, % of codes"], rows)
    print(f"{quality.bits_per_image:,.0f} bits per image")
    print(f"{quality.encode_seconds:.2f} + {quality.decode_seconds:.2f} s per 100 images, to encode and to decode")
    print(f"{quality.num_images:,} images of {record.data_name} {record.data.split}")


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
