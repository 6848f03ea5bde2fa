"""`chainrule compare`: the figures of papers for two sets of images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import check_device, read_texts
from .options import Device, Force, Json
from .output import check_file, print_json, print_table

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison

Generated = Annotated[Path, typer.Argument(metavar="GENERATED", help="A folder of images, or a .npz file.")]
Reference = Annotated[Path, typer.Argument(metavar="REFERENCE", help="The same, or a .npz file of statistics.")]
Weights = Annotated[
    Path | None, typer.Option(help="The file of weights of Inception-V3.", show_default="downloaded once")
]
Statistics = Annotated[
    Path | None, typer.Option(help="Write the statistics of REFERENCE to this .npz file, to be compared with again.")
]
Clip = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Take the features of a public CLIP: a hub id, or a folder of transformers."),
]
Texts = Annotated[
    Path | None,
    typer.Option(help="With --clip: a text file, one line for each image of GENERATED, for the CLIP score."),
]


def compare(
    generated: Generated, reference: Reference, weights: Weights = None, clip: Clip = None, texts: Texts = None,
    statistics: Statistics = None, force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Compare two sets of images by FID, sFID, Inception Score, precision, recall and KID.

    The network is that of these figures in papers. A .npz file has the format of ADM: arr_0 holds the images, uint8
    (N, H, W, 3), and mu, sigma, mu_s and sigma_s the statistics. FID depends on the number of images.

    \b
    Examples:
      chainrule compare samples real
      chainrule compare samples.npz real --weights pt_inception-2015-12-05-6726825d.pth --statistics real.npz
      chainrule compare samples real.npz --json
      chainrule compare samples real --clip openai/clip-vit-base-patch32 --texts captions.txt
    """
    check_device(device)
    if statistics is not None:
        check_file(statistics, ".npz", force, "--statistics")

    from ..evaluation.comparison import compare as compare_sets

    lines = None if texts is None else read_texts(texts)
    result = compare_sets(generated, reference, weights, statistics, device, clip=clip, texts=lines)
    print_json(asdict(result)) if json else _print(result)


def _print(result: Comparison) -> None:
    figures = {
        "FID": result.fid, "sFID": result.sfid, "Inception Score": result.inception_score,
        "precision": result.precision, "recall": result.recall, "KID x 1000": _thousand(result.kid),
        "KID x 1000, deviation": _thousand(result.kid_std), "CLIP score": result.clip_score,
    }  # fmt: skip
    print_table(["figure", "value"], [[name, f"{value:.4f}"] for name, value in figures.items() if value is not None])
    counts = ("statistics" if count is None else f"{count:,}" for count in (result.num_generated, result.num_reference))
    print("{} generated images against {} of reference; {}, {}".format(*counts, result.features, result.resize))


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000 * value
