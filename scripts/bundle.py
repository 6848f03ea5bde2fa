"""Bundles a finished training run with the package, and puts its figures on the card.

    python scripts/bundle.py runs/mnist_pixelcnn mnist_pixelcnn --faults "..."
    chainrule evaluate mnist_pixelcnn --record docs/records/mnist_pixelcnn-test.json
    python scripts/bundle.py --figures mnist_pixelcnn docs/records/mnist_pixelcnn-test.json

A run is one of a prior, of a tokenizer, of a reranker or of an upscaler; the last two have the figures of their own
evaluation.  With --dtype bfloat16 the weights take half the bytes, with int8 a quarter.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

import chainrule
from chainrule.core import LearnedTokenizer
from chainrule.saving.hub import PRETRAINED, find
from chainrule.saving.model import tokenizer_hash, write_config
from chainrule.saving.weights import weights_sha256
from chainrule.strict import read_yaml
from chainrule.zoo import kind_of, read_card

LICENCES = Path(__file__).resolve().parents[1] / "docs" / "licences.md"
MAX_BYTES = 8_000_000


def bundle(run: str, name: str, faults: str, dtype: torch.dtype | None) -> None:
    card = read_card(run)
    source = card["recipe"]["data"]["source"]
    if source not in licences():
        raise SystemExit(f"{source} has no row in {LICENCES}")
    data_licence, weights_licence = licences()[source]
    card |= {"data_licence": data_licence, "weights_licence": weights_licence, "known_faults": faults}
    card |= {"parents": parents(card["recipe"])} | minutes_before(card["recipe"], kind_of(run))
    if kind_of(run) not in ("pipeline", "tokenizer"):
        card["figures"] = {figure: round(value, 3) for figure, value in card.pop("metrics").items()}
    chainrule.save(chainrule.load(run), PRETRAINED / name, card, dtype)
    if kind_of(run) == "pipeline":
        share_tokenizer(name)
    size = sum(path.stat().st_size for path in (PRETRAINED / name).iterdir())
    if size > MAX_BYTES:
        raise SystemExit(f"{name} has {size:,} bytes, more than {MAX_BYTES:,}")
    print(f"{PRETRAINED / name}: {size:,} bytes")


def licences() -> dict[str, tuple[str, str]]:
    """For each data source of docs/licences.md the licence of the data and of weights trained on it."""
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", LICENCES.read_text(encoding="utf-8"), re.MULTILINE)
    return {source: (data, weights) for source, data, weights in rows}


def minutes_before(recipe: dict[str, Any], kind: str) -> dict[str, float]:
    """Minutes of the earlier stages of a training that goes on from a model."""
    path = (recipe.get("prior" if kind == "pipeline" else "tokenizer") or {}).get("path")
    before = read_card(path) if path else {}
    return {"minutes_before": before["minutes"] + before.get("minutes_before", 0)} if path else {}


def parents(recipe: dict[str, Any]) -> list[dict[str, str]]:
    """Path and hash of the models that a recipe starts from: a tokenizer, or the prior of an earlier stage."""
    paths = [recipe[section]["path"] for section in ("tokenizer", "prior") if "path" in (recipe.get(section) or {})]
    return [{"name": path, "sha256": weights_sha256(find(path))} for path in paths]


def share_tokenizer(name: str) -> None:
    """Refers to a bundled tokenizer instead of holding a copy of its weights, if there is one of the same hash."""
    wanted = chainrule.load(name).tokenizer
    if not isinstance(wanted, LearnedTokenizer):
        return
    for other in chainrule.models():
        if kind_of(other) == "tokenizer" and tokenizer_hash(chainrule.load(other)) == tokenizer_hash(wanted):
            config = read_yaml(PRETRAINED / name / "config.yaml")
            config["tokenizer"]["weights"] = other
            write_config(PRETRAINED / name, config)
            (PRETRAINED / name / "tokenizer.safetensors").unlink()
            return


def add_figures(name: str, record: Path) -> None:
    value = json.loads(record.read_text(encoding="utf-8"))
    figures = of_likelihood(value["likelihood"]) if "likelihood" in value else of_tokenizer(value["tokenizer"])
    card = read_card(name) | {"figures": figures, "record": record.as_posix()}
    card.pop("metrics", None)  # of a part of the images, while training
    write_config(PRETRAINED / name, read_yaml(PRETRAINED / name / "config.yaml") | {"card": card})


def of_likelihood(likelihood: dict[str, Any]) -> dict[str, Any]:
    return {"nats": {"value": round(likelihood["nats"], 3), "standard_error": round(likelihood["standard_error"], 3)}}


def of_tokenizer(quality: dict[str, Any]) -> dict[str, Any]:
    uses = [use for use in quality["codebooks"] if use["depth"] is None]
    figures = {"psnr": quality["psnr"]["value"], "ssim": quality["ssim"]["value"], "frechet": quality["frechet"]}
    figures |= {"share_used": min(use["share_used"] for use in uses), "bits_per_image": quality["bits_per_image"]}
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", action="store_true", help="put a record's figures on the card: NAME RECORD")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--faults", default="none known")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], default="float32")
    arguments = parser.parse_args()
    if arguments.figures:
        add_figures(arguments.source, Path(arguments.target))
    else:
        dtype = None if arguments.dtype == "float32" else getattr(torch, arguments.dtype)
        bundle(arguments.source, arguments.target, arguments.faults, dtype)


if __name__ == "__main__":
    main()
