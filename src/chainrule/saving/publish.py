"""Models on the Hugging Face hub: the card that is shown there, and the upload."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..network import hub_answers, why_no_hub
from .model import SavedModel, read_model

PATTERNS = "*.yaml", "*.safetensors", "*.json", "*.txt"
PICTURE = "samples.png"
HINT = {
    "pipeline": "images = model.sample({arguments})                # uint8 (4, C, H, W)",
    "tokenizer": "codes = model.encode(images)                   # images: uint8 (B, C, H, W)",
    "reranker": 'scores = model.for_texts(["a text"])(images)   # images: uint8 (1, C, H, W)',
    "classifier": "scores = model.for_labels([0])(images)         # images: uint8 (1, C, H, W)",
    "upscaler": "larger = model.upscale(images)                 # images: uint8 (B, C, H, W)",
}


def push(
    folder: Path, repo_id: str, *, private: bool = False, token: str | None = None, picture: bytes | None = None
) -> str:
    """Uploads the folder of a saved model with a card, in one commit; the repository is made if there is none.

    Args:
        folder: of a saved model; other files in it stay behind.
        repo_id: as "user/name".
        private: whether a new repository is.
        token: of the hub; None: the one of `hf auth login` or of the variable HF_TOKEN.
        picture: a PNG file of samples, shown on the card.

    Returns:
        The URL of the repository.

    Raises:
        ValueError: no saved model, a wrong name, or a hub that refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    saved = read_model(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"the name on the hub must be as user/name, got {repo_id!r}")
    if not hub_answers():
        raise ValueError(f"{repo_id} is not uploaded: {why_no_hub()}")
    with tempfile.TemporaryDirectory(prefix="chainrule-") as temporary:
        whole = Path(temporary)
        for path in sorted({path for pattern in PATTERNS for path in folder.glob(pattern)}):
            shutil.copy(path, whole)
        (whole / "README.md").write_text(card(saved, repo_id, picture is not None), encoding="utf-8")
        if picture is not None:
            (whole / PICTURE).write_bytes(picture)
        api = HfApi(token=token)
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=whole, commit_message=f"A {saved.kind} of chainrule")
        except (HfHubHTTPError, HFValidationError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            why = {401: "the token is wrong or missing", 403: "the token may not write there"}.get(
                status, "no name that it allows" if status is None else f"its answer is {status}"
            )
            raise ValueError(f"the hub refuses {repo_id}: {why}") from error
    return str(url)


def card(saved: SavedModel, repo_id: str, has_picture: bool) -> str:
    """The text of README.md: facts for the hub, what the model is, figures, licence, and how to use it."""
    about, part = saved.card, saved.prior or saved.tokenizer
    system = saved.kind if part is None else part.name
    data = ((about.get("recipe") or {}).get("data") or {}).get("source")
    lines = ["---", yaml.safe_dump(_facts(saved, system, data), sort_keys=False, allow_unicode=True).strip(), "---", ""]
    lines += [
        f"# {repo_id.split('/')[1]}",
        "",
        f"A {saved.kind} of the Python package chainrule: {system}.",
    ]
    if has_picture:
        lines += ["", f"![samples]({PICTURE})"]
    arguments = "4"
    if saved.class_names:
        arguments += f", {saved.class_names[0]!r}"
    elif saved.text_tokenizer is not None:
        arguments += ', text="a text"'
    hint = HINT[saved.kind].format(arguments=arguments)
    lines += ["", "```python", "import chainrule", "", f'model = chainrule.load("{repo_id}")', hint, "```", ""]
    rows = {
        "data": data, "licence of the data": about.get("data_licence"),
        "licence of the weights": about.get("weights_licence"), "steps": about.get("steps"),
        "minutes of training": about.get("minutes"), "known faults": about.get("known_faults"),
    }  # fmt: skip
    rows |= {name: _value(figure) for name, figure in (about.get("figures") or {}).items()}
    known = {name: value for name, value in rows.items() if value is not None}
    if known:
        lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in known.items()), ""]
    if saved.class_names:
        lines += [f"Classes: {', '.join(saved.class_names)}.", ""]
    return "\n".join(lines)


def _facts(saved: SavedModel, system: str, data: str | None) -> dict[str, Any]:
    """The YAML at the head of a card."""
    facts: dict[str, Any] = {"library_name": "chainrule", "tags": ["chainrule", "autoregressive", saved.kind, system]}
    licence = saved.card.get("weights_licence")
    if licence is not None:
        facts["license"] = str(licence).lower()
    if saved.kind == "pipeline":
        text = saved.text_tokenizer is not None
        facts["pipeline_tag"] = "text-to-image" if text else "unconditional-image-generation"
    if data is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", data):
        facts["datasets"] = [data]
    return facts


def _value(figure: Any) -> str:
    """A figure, which is a number or a mapping with `value` and perhaps `standard_error`."""
    figure = figure if isinstance(figure, Mapping) else {"value": figure}
    error = figure.get("standard_error")
    return str(figure.get("value")) + ("" if error is None else f" ± {error}")


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
