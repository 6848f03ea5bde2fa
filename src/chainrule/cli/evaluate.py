"""`chainrule evaluate`: the likelihood of a whole data set, recorded so that it can be repeated."""

from __future__ import annotations

import json as json_module
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Device, Force, Json, check_file, file_stem, open_model, print_json, progress

if TYPE_CHECKING:
    from ..data import DataConfig
    from ..pipeline import Pipeline
    from .record import Record


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
    seed: Annotated[int | None, typer.Option(min=0, help="The first of the seeds.", show_default="0")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once.", show_default="100")] = None,
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
    """Measure the likelihood of a whole split, and write a record of it.

    The figure is -log p per image in nats, with its standard error over images.

    \b
    Examples:
      chainrule evaluate mnist_pixelcnn
      chainrule evaluate mnist_pixelcnn --data ylecun/mnist --split test --binarize sample --seeds 5
      chainrule evaluate runs/mine --limit 500 --record quick.json --force
      chainrule evaluate --from mnist_pixelcnn-test.json
    """
    if source is not None:
        others = {
            "--split": split, "--size": size, "--binarize": binarize, "--limit": limit, "--seeds": seeds,
            "--seed": seed, "--batch-size": batch_size, "--strict": strict or None,
        }  # fmt: skip
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"{given[0]} would be ignored: --from repeats what the record says")
        _repeat(source, model, data, record, force, json, device)
        return
    if model is None:
        raise ValueError("a MODEL is missing; see chainrule evaluate --help")
    if record is not None:
        check_file(record, ".json", force, "--record")
    pipeline = open_model(model, device)
    config = _data_config(pipeline, model, data, split, size, binarize, strict)
    if record is None:
        name = f"{file_stem(Path(model).name)}-{file_stem(config.split)}.json"
        record = check_file(Path(name), ".json", force, "--record")
    if config.binarize == "sample":
        chosen = tuple(range(seed or 0, (seed or 0) + (seeds or 5)))
    elif seed is None and seeds is None:
        chosen = ()
    else:
        raise ValueError(f"seeds would be ignored: nothing is drawn with --binarize {config.binarize}")
    result = _measure(pipeline, model, config, limit, chosen, batch_size or 100)
    _write(record, result)
    if json:
        print_json(result.to_json() | {"record": str(record)})
    else:
        _print(result)
        print(f"{record}: the record")


def _repeat(
    source: Path, model: str | None, data: str | None, record: Path | None, force: bool, json: bool, device: str
) -> None:
    from .record import read_record

    old = read_record(source)
    if record is not None:
        check_file(record, ".json", force, "--record")
    config = old.data if data is None else replace(old.data, source=data)
    model = model or old.model
    new = _measure(open_model(model, device), model, config, old.limit, old.seeds, old.batch_size)
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


def _measure(
    pipeline: Pipeline, model: str, config: DataConfig, limit: int | None, seeds: tuple[int, ...], batch_size: int
) -> Record:
    from ..core import LearnedTokenizer
    from ..data import load
    from ..metrics import likelihood
    from ..pipeline import find
    from .record import Record, weights_sha256

    dataset = load(config)
    if limit is not None:
        dataset = dataset.slice(0, limit)
    if dataset.image_shape != pipeline.tokenizer.image_shape:
        (_, h0, w0), (_, h1, w1) = dataset.image_shape, pipeline.tokenizer.image_shape
        raise ValueError(
            f"the images of {dataset.name} are {h0}x{w0} but this model needs {h1}x{w1} (height x width); "
            f"add --size {h1}x{w1} to resize and crop them"
        )
    classes = pipeline.num_classes
    if classes and dataset.num_classes != classes:
        raise ValueError(
            f"this model needs labels of {classes} classes, but {dataset.name} has {dataset.num_classes or 0}"
        )
    with progress("Evaluating", len(dataset) * max(1, len(seeds)), "images") as done:
        result = likelihood(
            lambda batch: pipeline.log_prob(batch.images, batch.labels if classes else None),
            dataset, config.binarize, seeds or (0,), batch_size, done,
        )  # fmt: skip
    bits = pipeline.bits_per_dim
    error = result.standard_error
    learned = isinstance(pipeline.tokenizer, LearnedTokenizer)
    return Record(
        likelihood=result,
        bits_per_dim=bits(result.nats),
        bits_per_dim_standard_error=None if error is None else bits(error),
        command=_command(model, config, limit, seeds, batch_size),
        model=model,
        model_sha256=weights_sha256(find(model)),
        data=config,
        data_name=dataset.name,
        fingerprint=dataset.fingerprint,
        limit=limit,
        seeds=seeds,
        batch_size=batch_size,
        dtype=str(next(pipeline.prior.parameters()).dtype).removeprefix("torch."),
        nats_per_code=result.nats_per_code(pipeline.prior.spec.num_codes) if learned else None,
        bits_per_image=result.bits_per_image if learned else None,
    )


def _data_config(
    pipeline: Pipeline, model: str, source: str | None, split: str | None, size: str | None, binarize: str | None,
    strict: bool,
) -> DataConfig:  # fmt: skip
    """The images to evaluate on: as the model's recipe has them, but for what the options say."""
    from ..config import build_dataclass
    from ..data import DataConfig

    recipe = pipeline.card.get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    values: dict[str, Any] = dict(recipe.get("data") or {})
    if source is not None:
        if source != values.get("source"):  # the columns are those of another table
            values |= {"image_column": None, "label_column": None, "text_column": None}
        values["source"] = source
    if "source" not in values:
        raise ValueError(f"{model} does not say what it was trained on; give --data")
    channels, height, width = pipeline.tokenizer.image_shape
    if size is not None:
        values["size"] = _size(size)
    elif values["source"] == "shapes":
        values["size"] = [height, width]
    values |= {
        "split": split or (recipe.get("evaluation") or {}).get("split") or "test",
        "channels": channels,
        "flip": False,
        "strict": strict,
    }
    if binarize is not None:
        values["binarize"] = binarize
    return build_dataclass(DataConfig, values, "evaluate")


def _size(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split("x")]
        height, width = numbers * 2 if len(numbers) == 1 else numbers
    except ValueError:
        raise ValueError(f"--size must be a number such as 28, or height x width such as 28x32, got {text!r}") from None
    return [height, width]


def _command(model: str, config: DataConfig, limit: int | None, seeds: tuple[int, ...], batch_size: int) -> str:
    words = ["chainrule", "evaluate", model, "--data", config.source, "--split", config.split]
    if config.size is not None:
        words += ["--size", "{}x{}".format(*config.height_width)]
    words += ["--binarize", config.binarize]
    if limit is not None:
        words += ["--limit", str(limit)]
    if seeds:
        words += ["--seeds", str(len(seeds)), "--seed", str(seeds[0])]
    return shlex.join([*words, "--batch-size", str(batch_size)])


def _write(path: Path, record: Record) -> None:
    from .pictures import write_bytes

    write_bytes(path, (json_module.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n").encode())


def _print(record: Record) -> None:
    result = record.likelihood
    print(f"{_with_error(result.nats, result.standard_error, 3)} nats per image")
    if record.nats_per_code is not None:
        print(f"{record.nats_per_code:.4f} nats per code, {record.bits_per_image:.1f} bits per image (of its codes)")
    print(f"{_with_error(record.bits_per_dim, record.bits_per_dim_standard_error, 4)} bits per dimension")
    print(f"{result.num_images:,} images of {record.data_name} {record.data.split}", end="")
    print("" if result.seed_std is None else f", mean over {len(record.seeds)} draws (deviation {result.seed_std:.3f})")


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
