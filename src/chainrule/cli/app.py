"""The commands, and what becomes of their errors: one sentence and an exit code.

Exit codes: 0 done, 1 a record that is not confirmed, 2 a mistake of the user, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .codes import decode, encode
from .compare import compare
from .complete import complete
from .compress import compress, decompress
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .fit import fit
from .models import info, models, presets, recipes
from .plan import plan
from .push import push
from .reconstruct import reconstruct
from .repeat import repeat
from .sample import sample
from .score import score
from .serve import serve
from .timeline import timeline
from .train import train
from .vary import vary

LONG_WORD = re.compile(r"(\S{150})\S{200,}(\S{50})")
"""What nobody reads to its end, such as a number of a thousand digits; the middle is left out."""
NO_MEMORY = re.compile("out of memory|not enough memory|allocate memory|size calculation overflowed", re.IGNORECASE)
OF_DEVICE = re.compile(r"cuda|mps|xpu|nvidia|driver|device", re.IGNORECASE)


class Group(TyperGroup):
    """Commands whose errors are printed as one sentence."""

    def main(
        self, args: Any = None, prog_name: str | None = None, complete_var: str | None = None, *_: Any, **extra: Any
    ) -> NoReturn:
        """Runs a command and leaves with its exit code; `--debug`, before or after the command, shows tracebacks."""
        extra["standalone_mode"] = False
        words = list(sys.argv[1:] if args is None else args)
        args = [word for word in words if word != "--debug"]
        code: Any
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                code = super().main(args, "chainrule", complete_var, **extra)
        except typer.Abort:  # Ctrl-C
            print("Stopped.", file=sys.stderr)
            code = 130
        except Exception as error:
            if "--debug" in words:
                raise
            print(f"Error: {_sentence(error)}", file=sys.stderr)
            code = 2
        sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    """An error in one sentence."""
    if hasattr(error, "format_message"):  # of typer: a wrong option or argument
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "chainrule"
        text = f"{error.format_message().rstrip('.')}; see {where} --help"
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    elif isinstance(error, UnicodeError):
        text = f"a text is not in UTF-8, or holds half a character; {_place(error)}"
    elif isinstance(error, (OSError, ValueError)):
        text = str(error)
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        text = "there is not enough memory; work on fewer images at once, or on smaller ones"
    elif isinstance(error, RuntimeError) and OF_DEVICE.search(str(error)):
        text = f"PyTorch cannot do this on the device: {str(error).splitlines()[0]}; {_place(error)}"
    else:
        text = f"this is a fault in chainrule: {_place(error)}, and report what it shows"
    return LONG_WORD.sub(r"\1…\2", " ".join(text.split()))


def _place(error: Exception) -> str:
    """What the last lines of a traceback would say."""
    package = str(Path(__file__).parents[1])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(package)]
    where = f" in {Path(frames[-1].filename).relative_to(package)}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}; add --debug to see all"


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning) or not isinstance(message, Warning):
        print(f"Warning: {' '.join(str(message).split())}", file=sys.stderr)


app = typer.Typer(
    cls=Group, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(__version__)
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors; also understood after a command.")]


@app.callback(invoke_without_command=True)
def _about(context: typer.Context, version: Version = False, debug: Debug = False) -> None:
    """Autoregressive image generation: train, sample, complete, score.

    \b
    Examples:
      chainrule models
      chainrule sample mnist_diagonal_bilstm -n 16
      chainrule COMMAND --help

    A MODEL is the name of a bundled model, a folder, or a hub id such as user/model.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


PICTURES = sample, complete, vary, repeat, score, reconstruct, encode, decode, compress, decompress
TRAINING = fit, plan, train, evaluate, compare, timeline, recipes, presets
for command in (models, info, *PICTURES, *TRAINING, convert, push, serve, demo):
    app.command()(command)


def keep_freed_memory() -> None:
    """Has the C library of Linux keep what is freed: where large blocks are given back, as is usual, each new one costs
    a page fault per 4 kB, which was more than half of the time of some convolutions."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, value)


def main() -> None:
    """The entry point; what a terminal cannot show is escaped."""
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(130)
