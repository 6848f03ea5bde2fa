"""The arguments and options that commands share, each declared once with its help."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

MAX_SEED = 2**63 - 2
MAX_IMAGES, MAX_SCALE = 1_000_000, 256

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model, a folder, or a hub id.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")]

Label = Annotated[
    str | None,
    typer.Option(help="Class by number or name, for a model with classes; several, with commas, are taken in turn."),
]
Text = Annotated[str | None, typer.Option(help="What to draw, for a model that reads texts; an empty text is no text.")]
Negative = Annotated[str | None, typer.Option(help="With --guidance: a text to draw away from.", show_default="none")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="The same seed gives the same images.")]
Seeds = Annotated[
    str | None, typer.Option(help="One seed per image, with commas, as the file of each image names its own.")
]
Prefix = Annotated[
    Path | None,
    typer.Option(
        metavar="IMAGE",
        help="For a model that draws from an image: the image from which its grey, edges or low resolution are taken, "
        "resized and cropped.",
    ),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Write no text into PNG files that says how they were made.")
]
Upscale = Annotated[
    list[str] | None,
    typer.Option(metavar="MODEL", help="An upscaler, for twice the image size; give it twice for four times the size."),
]
Resize = Annotated[bool, typer.Option("--resize", help="Resize and crop images to the size the model needs.")]
TokenizerPrecision = Annotated[
    str,
    typer.Option(
        "--precision", help="float32, or bfloat16 for a network (faster where the CPU has it, a few other codes)."
    ),
]
Features = Annotated[
    str | None,
    typer.Option(
        help="Network of the perceptual and the Fréchet distance: efficientnet_lite0, vgg16_lpips or inception "
        "(downloaded), a .pth file of inception, or none.",
        show_default="efficientnet_lite0",
    ),
]
Png = Annotated[Path | None, typer.Option("--out", help="The .png file to write.", show_default="a free name")]
Scale = Annotated[
    int | None, typer.Option(min=1, max=MAX_SCALE, help="Zoom of a pixel.", show_default="about 128 pixels per image")
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]

SAMPLING: dict[str, Any] = {
    "temperature": Annotated[
        float | None,
        typer.Option(help="Below 1 draws more probable images; 0 takes the most probable codes.", show_default="1.0"),
    ],
    "top_k": Annotated[int | None, typer.Option(help="Draw each code among the k most probable.")],
    "top_p": Annotated[float | None, typer.Option(help="Draw each code among the fewest that reach this probability.")],
    "guidance": Annotated[
        float | None,
        typer.Option(
            help="Above 1 draws towards the label or text; 3 is a start. The model must have been trained with "
            "label_dropout or caption_dropout.",
            show_default="1.0",
        ),
    ],
    "precision": Annotated[
        str | None,
        typer.Option(
            help="Precision of the prior's weights: float32; transformers also take bfloat16 and int8 (faster).",
            show_default="float32",
        ),
    ],
}
"""The options of sampling, by name."""


def with_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `SAMPLING` in the place of its parameter `sampling`, which becomes a dict of the
    options that the user gave."""

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        chosen = {name: value for name in SAMPLING if (value := values.pop(name)) is not None}
        command(**values, sampling=chosen)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        options = SAMPLING.items() if parameter.name == "sampling" else ()
        added = [parameter.replace(name=name, default=None, annotation=option) for name, option in options]
        parameters += added or [parameter]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options
