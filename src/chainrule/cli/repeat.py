"""`chainrule repeat`: draw a picture again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress
from .options import Force, Json
from .output import check_file, print_json

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A .png file that chainrule has drawn.")]
Out = Annotated[Path | None, typer.Option(help="A .png file for the picture drawn again.", show_default="none")]
Device = Annotated[str | None, typer.Option(help="Where to compute.", show_default="as the picture was drawn")]


def repeat(picture: Picture, out: Out = None, force: Force = False, json: Json = False, device: Device = None) -> None:
    """Draw a picture again from what its file says, and compare all pixels.

    Leaves with code 0 if all pixels are equal, and with code 1 otherwise; then it says what differs.

    \b
    Examples:
      chainrule repeat samples.png
      chainrule repeat samples.png --out again.png --json
    """
    if out is not None:
        check_file(out, ".png", force)

    from ..drawing import read_origin, text_chunks
    from ..drawing import repeat as draw_again
    from ..pictures import write_png
    from ..strict import to_plain

    origin = read_origin(picture)
    count = len(getattr(origin, "seeds", ()))
    with progress("Drawing", None, "codes") as done:
        again = draw_again(picture, device, lambda num_known, _: done(count * num_known))
    if out is not None:
        write_png(out, again.picture, text_chunks(again.drawing))
    if json:
        print_json(
            {"equal": not again.differences, "differences": again.differences, "origin": to_plain(again.drawing)}
        )
    elif again.differences:
        print(f"{picture} cannot be drawn again: {'; '.join(again.differences)}")
    else:
        images = "1 image" if count == 1 else f"{count} images"
        print(f"{picture}: drawn again, all pixels are equal ({images} by {again.drawing.model.name})")
    if again.differences:
        raise typer.Exit(1)
