"""Many images drawn batch by batch and written as they come: into a .npz file, or into a folder of PNG files.

Memory does not grow with their number.  Image k depends on its own seed alone, so the batches change nothing: a run
that was killed draws what is missing when it is repeated, and under torchrun the processes draw every W-th batch each.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from torch import Tensor

from .decoding import Scorer
from .drawing import Drawing, text_chunks
from .files import check_space, owned, parse_json, read_text, write_file
from .pictures import write_png
from .pipeline import BATCH, Pipeline
from .processes import joined
from .strict import to_plain


class Target(ABC):
    """Where images go.

    Attributes:
        folder: that holds the finished batches, and the file `.drawing.json` until all are there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def note(self) -> Path:
        """The file that says what is being drawn."""
        return self.folder / ".drawing.json"

    def is_begun(self) -> bool:
        """Whether a run was stopped before its end."""
        return self.note.is_file()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keeps other processes out; a folder without an image is removed at the end."""
        try:
            with owned(self.folder):
                yield
        finally:
            if self.is_begun() and list(self.folder.iterdir()) == [self.note]:
                self.note.unlink()
                self.folder.rmdir()

    def begin(self, drawing: Drawing, force: bool) -> None:
        """Prepares the folder, and keeps what an earlier run of the same drawing has finished.

        Raises:
            ValueError: the folder holds the beginning of another drawing, without `force`.
        """
        digest = hashlib.sha256(json.dumps(to_plain(drawing), sort_keys=True).encode()).hexdigest()
        wanted = {"images": len(drawing.seeds), "sha256": digest}
        if self.is_begun():
            if parse_json(read_text(self.note), str(self.note)) == wanted:
                return
            if not force:
                raise ValueError(
                    f"{self.folder} holds the beginning of other images: another model, seed, number, option or "
                    "version; add --force to begin anew, or choose another name"
                )
        self.clear(len(drawing.seeds))
        write_file(self.note, json.dumps(wanted))

    @abstractmethod
    def clear(self, count: int) -> None:
        """Removes what `count` images would replace."""

    @abstractmethod
    def missing(self, numbers: range) -> list[int]:
        """Those of a batch that are not written yet."""

    @abstractmethod
    def write(self, numbers: Sequence[int], drawing: Drawing, images: Tensor) -> None:
        """Writes the images of these numbers, uint8 (B, C, H, W); each file is complete or not there."""

    @abstractmethod
    def finish(self, drawing: Drawing) -> None:
        """Completes the output when all images are there."""


class Npz(Target):
    """A file as the evaluations of diffusion models read it (Dhariwal and Nichol 2021, arXiv:2105.05233): `arr_0`, the
    images uint8 (N, H, W, 3), grey ones with three equal channels, and `arr_1`, the labels int64 (N,), if any.

    Until all images are there, the batches lie in the folder PATH.parts.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.with_name(f"{path.name}.parts"))
        self.path = path

    def clear(self, count: int) -> None:
        for part in self.folder.glob("*.npy"):
            part.unlink()

    def missing(self, numbers: range) -> list[int]:
        return [] if self._part(numbers[0]).is_file() else list(numbers)

    def write(self, numbers: Sequence[int], drawing: Drawing, images: Tensor) -> None:
        array = images.cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        write_file(self._part(numbers[0]), lambda path: _save(path, array))

    def finish(self, drawing: Drawing) -> None:
        parts = sorted(self.folder.glob("*.npy"))
        first = np.load(parts[0], mmap_mode="r")
        shape = len(drawing.seeds), *first.shape[1:]
        check_space(self.folder, int(np.prod(shape)))

        def content(path: Path) -> None:
            with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for part in parts:
                        file.write(np.load(part).tobytes())
                if drawing.labels is not None:
                    with archive.open("arr_1.npy", "w") as file:
                        np.lib.format.write_array(file, np.array(drawing.labels, np.int64))

        write_file(self.path, content)
        shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:07d}.npy"


class Pictures(Target):
    """A folder of PNG files: 000.png, 001.png and so on.  Their text chunks say how they were drawn.

    Args:
        folder: made if need be.
        count: number of images, for the digits of names.
        metadata: whether files say how they were drawn.
    """

    def __init__(self, folder: Path, count: int, metadata: bool = True) -> None:
        super().__init__(folder)
        self.digits, self.metadata = len(str(count - 1)), metadata

    def clear(self, count: int) -> None:
        for number in range(count):
            self._file(number).unlink(missing_ok=True)

    def missing(self, numbers: range) -> list[int]:
        return [number for number in numbers if not self._file(number).is_file()]

    def write(self, numbers: Sequence[int], drawing: Drawing, images: Tensor) -> None:
        for index, number in enumerate(numbers):
            one = drawing.only(index)
            picture = one.picture(images[index : index + 1], lambda images: images)
            write_png(self._file(number), picture, text_chunks(one if self.metadata else None))

    def finish(self, drawing: Drawing) -> None:
        self.note.unlink()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:0{self.digits}d}.png"


def draw_many(
    drawing: Drawing, pipeline: Pipeline, target: Target, *, judge: Callable[[Drawing], Scorer] | None = None,
    upscale: Callable[[Tensor], Tensor] = lambda images: images, force: bool = False,
    on_codes: Callable[[int], object] = lambda count: None,
) -> int:  # fmt: skip
    """Draws the images that are missing in a target, and completes it.

    Args:
        drawing: of all images.
        pipeline: see `Drawing.draw`.
        target: where the images go.
        judge: of the `best_of` candidates, made for the images of each batch; None: the model itself.
        upscale: applied to each batch.
        force: whether the beginning of another drawing is removed.
        on_codes: is told the number of codes drawn since its last call.

    Returns:
        The number of images that this process has drawn.

    Raises:
        ValueError: see `Target.begin`, or another process draws into the same folder.
        OSError: the output cannot be written.
    """
    drawn = 0
    with joined() as (rank, world, wait), target.reserved() if rank == 0 else nullcontext():
        if rank == 0:
            target.begin(drawing, force)
        wait()
        for numbers in batches(len(drawing.seeds))[rank::world]:
            if not (missing := target.missing(numbers)):
                continue
            part = drawing.only(*missing)
            images = part.draw(
                pipeline, None if judge is None else judge(part), lambda *_, count=len(missing): on_codes(count)
            )
            target.write(missing, part, upscale(images))
            drawn += len(missing)
        wait()
        if rank == 0:
            target.finish(drawing)
        wait()
    return drawn


def batches(count: int) -> list[range]:
    """The numbers of the images of each batch."""
    return [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
