"""Prints the tables of docs from the records: nothing in them is typed by hand.

python scripts/tables.py tokenizers     # docs/experiments/tokenizers.md
python scripts/tables.py priors         # README.md
"""

import argparse
import json
from pathlib import Path
from typing import Any

import chainrule
from chainrule.saving.folder import read_config
from chainrule.saving.hub import find

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "records"
PRIORS = ("emoji_pixelsnail", "emoji_gpt", "emoji_rq_transformer", "emoji_parti", "shapes_parti", "shapes_dalle")
TOKENIZERS = ("vqvae", "vqvae2", "vqgan", "rqvae", "dvae", "vit_vqgan", "rqvae_depth1")


def read(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}-test.json").read_text(encoding="utf-8"))


def tokenizers() -> list[list[str]]:
    rows = [
        ["tokenizer", "PSNR, dB", "SSIM", "perceptual", "Fréchet", "codes used", "perplexity / size", "bits per image",
         "s per 100 images, encode + decode"]
    ]  # fmt: skip
    for name in TOKENIZERS:
        if not (RECORDS / f"emoji_{name}-test.json").exists():
            continue
        quality = read(f"emoji_{name}")["tokenizer"]
        uses = [use for use in quality["codebooks"] if use["depth"] is None]
        rows.append([
            f"`emoji_{name}`",
            f"{quality['psnr']['value']:.2f}",
            f"{quality['ssim']['value']:.4f}",
            f"{quality['perceptual']['value']:.4f}",
            f"{quality['frechet']:.2f}",
            " / ".join(f"{use['share_used']:.1%}" for use in uses),
            " / ".join(f"{use['perplexity_ratio']:.0%}" for use in uses),
            f"{quality['bits_per_image']:,.0f}",
            f"{quality['encode_seconds']:.2f} + {quality['decode_seconds']:.2f}",
        ])  # fmt: skip
    return rows


def priors() -> list[list[str]]:
    rows = [
        ["model", "of", "parameters", "steps", "minutes, one core", "test images: nats each", "Fréchet",
         "of reconstructions", "precision, recall", "s per image"]
    ]  # fmt: skip
    for name in PRIORS:
        if name not in chainrule.models():
            continue
        record, config = read(name), read_config(find(name))
        card, samples = config["card"], record.get("samples")
        quality = samples["quality"] if samples else None
        likelihood = record["likelihood"]
        rows.append([
            f"`{name}`",
            f"`{config['tokenizer'].get('weights') or config['tokenizer']['name']}`",
            f"{sum(parameter.numel() for parameter in chainrule.load(name).prior.parameters()):,}",
            f"{card['steps']:,}",
            f"{card['minutes']:.0f}",
            f"**{likelihood['nats']:.2f} ± {likelihood['standard_error']:.2f}**",
            f"{quality['frechet']:.1f}" if quality else "",
            f"{quality['floor']:.1f}" if quality else "",
            f"{quality['precision']:.2f}, {quality['recall']:.2f}" if quality else "",
            f"{samples['seconds_per_image']:.2f}" if quality else "",
        ])  # fmt: skip
    return rows


TABLES = {"tokenizers": tokenizers, "priors": priors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    rows = TABLES[parser.parse_args().table]()
    for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
