"""Picture files: PNG and GIF, complete or not at all; maps of surprise; pictures that grow."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from .core import CodeSpec
from .files import write_file
from .images import grid, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)
"""From no surprise to the greatest: the colours of "inferno" (matplotlib) at 0, 1/4, 1/2, 3/4, 1."""


def png(picture: Image, chunks: Mapping[str, str] | None = None) -> bytes:
    """A PNG file with text chunks, by keyword."""
    from PIL.PngImagePlugin import PngInfo

    buffer, info = io.BytesIO(), PngInfo()
    for keyword, text in (chunks or {}).items():
        info.add_text(keyword, text)
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def write_png(path: Path, picture: Image, chunks: Mapping[str, str] | None = None) -> None:
    """Writes a PNG file, see `png`."""
    write_file(path, png(picture, chunks))


def write_grid(
    path: Path, images: Tensor, scale: int | None, columns: int | None = None, chunks: Mapping[str, str] | None = None
) -> None:
    """Images uint8 (B, C, H, W) side by side in one file, each about 128 pixels wide if no scale is given."""
    write_png(path, grid(images, columns, scale or automatic_scale(images.shape[-1])), chunks)


def write_each(
    folder: Path, stems: Sequence[str], images: Tensor, chunks: Mapping[str, str] | None = None
) -> list[Path]:
    """A file of each image uint8 (B, C, H, W), called after its stem, with -2, -3, … added where that name is taken;
    returns the files."""
    files = [folder / f"{name}.png" for name in _different(stems)]
    for path, picture in zip(files, to_pil(images), strict=True):
        write_png(path, picture, chunks)
    return files


def _different(names: Sequence[str]) -> list[str]:
    """Names that differ also where a disk takes capital and small letters, or two codes of one letter, for the same."""
    found: dict[str, str] = {}
    count: Counter[str] = Counter()
    for name in names:
        new = name
        while (key := normalize("NFC", new).casefold()) in found:
            count[name] += 1
            new = f"{name}-{count[name] + 1}"
        found[key] = new
    return list(found.values())


def write_gif(path: Path, frames: Iterable[Image], milliseconds: int = 40, hold: int = 2000) -> None:
    """An endless film; the last frame is held for `hold` milliseconds."""
    frames = [frame.quantize(256) for frame in frames]
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    write_file(path, buffer.getvalue())


def captioned(images: Tensor, captions: Sequence[str], scale: int) -> Image:
    """Images uint8 (B, C, H, W) in one picture, each above its caption, which is broken into lines of its width.

    Characters that the font has not are drawn as empty boxes.  B captions, as many as there are images.
    """
    from PIL import Image, ImageDraw, ImageFont

    size, margin = 12, 4
    font = ImageFont.load_default(size)
    pictures = to_pil(enlarge(images, scale))
    width, height = max(pictures[0].width, 96) + 2 * margin, pictures[0].height
    texts = ["\n".join(_lines(caption, font, width - 2 * margin)) for caption in captions]
    room = (size + 4) * max(text.count("\n") + 1 for text in texts)
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + room + 2 * margin)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = index % columns * width, index // columns * (height + room + 2 * margin) + margin
        sheet.paste(picture, (left + (width - picture.width) // 2, top))
        draw.multiline_text((left + margin, top + height + margin), text, fill="black", font=font, spacing=2)
    return sheet


def _lines(caption: str, font: Any, width: int, most: int = 4) -> list[str]:
    """A caption in lines of at most `width` pixels; what does not go into the `most` lines ends in an ellipsis."""
    clean = "".join(c if c.isprintable() else " " for c in caption)
    lines = [""]
    for word in clean.encode("utf-8", "replace").decode("utf-8").split():
        for part in _parts(word, font, width):
            longer = f"{lines[-1]} {part}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip() + "…"]
    return lines


def _parts(word: str, font: Any, width: int) -> list[str]:
    """A word in parts of at most `width` pixels each."""
    parts = [""]
    for character in word:
        if parts[-1] and font.getlength(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def automatic_scale(width: int) -> int:
    """The zoom that makes small images about 128 pixels wide."""
    return max(1, 128 // width)


def enlarge(images: Tensor, scale: int) -> Tensor:
    """(B, C, H, W) -> (B, C, scale * H, scale * W), each pixel repeated."""
    return images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def stretch(grid: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) -> (..., height, width), each pixel taking the value of the position it falls in."""
    rows = torch.arange(height) * grid.shape[-2] // height
    columns = torch.arange(width) * grid.shape[-1] // width
    return grid[..., rows[:, None], columns]


def hide(images: Tensor, shown: Tensor) -> Tensor:
    """Images uint8 (B, C, H, W) with grey where `shown`, bool (H, W), is False."""
    return torch.where(shown, images.cpu(), torch.tensor(128, dtype=torch.uint8))


def drawn(spec: CodeSpec, num_known: int, height: int, width: int) -> Tensor:
    """Where an image is complete after its first codes: bool (height, width), by the finest grid."""
    finest = spec.grids[-1]
    done = (num_known - (spec.length - finest.num_positions)) // finest.depth
    grid = torch.arange(finest.height * finest.width).view(finest.height, finest.width) < done
    return stretch(grid, height, width)


def heat(surprise: Tensor, greatest: float) -> Tensor:
    """Surprise in nats, or error, (B, H, W) -> uint8 (B, 3, H, W), dark at 0, light at `greatest`."""
    share = (surprise.cpu().double() / max(greatest, 1e-9)).clamp(0, 1).numpy()
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(share, places, HEAT[:, channel]) for channel in range(3)], axis=1)
    return torch.from_numpy(colours.round().astype(np.uint8))
