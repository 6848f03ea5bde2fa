"""Importers of the public releases: one file each, found by its functions `matches` and `load`.

    chainrule convert vqgan_imagenet_f16_1024/ my_tokenizer/

A release's file says in which files it comes, how its config and tensor names map to ours, under which licence it
stands and where it is from.  `sources` finds the files, `reader` opens them and executes nothing of what they say, and
`weights` takes the tensors out of what they are wrapped in.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..core import Prior, Tokenizer
from ..pipeline import Pipeline
from ..text.bpe import TextTokenizer
from ..zoo import save
from .reader import foreign, read_checkpoint
from .sources import accepts, checkpoints, config_files, folder_of, has_mark, read_config


@dataclass(frozen=True)
class Imported:
    """A foreign release as our models.

    tokenizer:      with the release's weights
    origin:         the release and where it is published
    licence:        its licence, as far as known
    non_commercial: whether that licence forbids commercial use; said aloud wherever the model is shown
    files:          the sha256 of every file read, by its name inside the source
    prior:          over the tokenizer's codes, where the release has one
    text_tokenizer: of the texts that the prior reads, where it reads any
    notes:          what was chosen, unwrapped or not found, a sentence each
    """

    tokenizer: Tokenizer
    origin: str
    licence: str
    non_commercial: bool
    files: Mapping[str, str]
    prior: Prior | None = None
    text_tokenizer: TextTokenizer | None = None
    notes: tuple[str, ...] = ()


def importers() -> dict[str, ModuleType]:
    """The releases that can be imported, by name: every module here with `matches(source)` and `load(source)`."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        importer = importlib.import_module(f"{__name__}.{module.name}")
        if hasattr(importer, "matches") and hasattr(importer, "load"):
            found[module.name] = importer
    return found


def import_release(source: str | os.PathLike) -> Imported:
    """Recognises a release by its files and imports it.

    Args:
        source: the folder of a release, or its checkpoint with the config beside it.

    Raises:
        ValueError: no release is recognised, or its files are damaged, hostile, or do not fit one another.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    known = importers()
    for importer in known.values():
        if importer.matches(source):
            return importer.load(source)
    raise ValueError(
        f"{source} is none of the releases that can be imported ({', '.join(known)}): {_reason(source, known)}; give "
        "the folder of a release, or its checkpoint with the config beside it"
    )


def _reason(source: Path, known: Mapping[str, ModuleType]) -> str:
    """Why no release was recognised: what the files are, and what is missing beside them."""
    if source.suffix in (".yaml", ".yml"):
        return "it is a config, not a checkpoint"
    files = [source] if source.is_file() else checkpoints(source)
    if not files:
        return "it holds no checkpoint"
    configs = config_files(source)
    for path in [*files, *configs]:
        if what := foreign(path):
            return f"{path.name} is {what}"
    if source.is_file():
        read_checkpoint(source)  # a damaged or hostile file is called that
    for path in configs:
        try:
            config = read_config(path)
        except (ValueError, OSError) as error:
            return str(error)
        model = config.get("model", config.get("arch"))
        kind = model.get("target", model.get("type")) if isinstance(model, Mapping) else None
        return f"{path.name} describes {kind or 'no model'}, which is not among them"
    like = [name for name, one in known.items() if hasattr(one, "is_config") and has_mark(files[-1], one.MARK)]
    if not like:
        return f"no tensor of {files[-1].name} is called as one of theirs"
    folder = folder_of(source)
    nearby = [path for place in (folder, folder.parent) for path in place.glob("*/*.y*ml")]
    nearby = [path for path in nearby if any(accepts(path, known[name].is_config) for name in like)]
    hint = f", and {nearby[0]} is one: copy it there" if nearby else ""
    return f"{files[-1].name} looks like {' or '.join(like)}, but no config (.yaml) lies beside it{hint}"


def check_apart(source: str | os.PathLike, dest: str | os.PathLike) -> None:
    """Raises ValueError if a release would be lost, or mixed with a model, when it is converted into `dest`."""
    release, model = Path(source).resolve(), Path(dest).resolve()
    inside = release.is_dir() and model.is_relative_to(release)
    if inside or release.is_relative_to(model):
        raise ValueError(f"{dest} would be written where the release {source} is; choose a folder outside of it")


def convert(source: str | os.PathLike, dest: str | os.PathLike) -> Imported:
    """Imports a release and writes it as a saved model, its card with origin, licence and sha256 of the files.

    A release with a prior becomes a pipeline, one without a tokenizer.

    Args:
        source: as in `import_release`.
        dest: folder to write; replaced if it is a saved model.

    Returns:
        what was imported; say `non_commercial` aloud.

    Raises:
        ValueError: as in `import_release`, or `dest` holds other things, as the release.
    """
    check_apart(source, dest)
    imported = import_release(source)
    card = {
        "origin": imported.origin,
        "licence": imported.licence,
        "non_commercial": imported.non_commercial,
        "sha256": dict(imported.files),
    }
    model: Tokenizer | Pipeline = imported.tokenizer
    if imported.prior is not None:
        model = Pipeline(imported.tokenizer, imported.prior, text_tokenizer=imported.text_tokenizer)
    save(model, dest, card)
    return imported
