"""Fills the tables of README.md, README.zh.md and docs from the records and the cards of bundled models.

    python scripts/tables.py            # rewrites every table
    python scripts/tables.py --check    # only names the pages whose tables are out of date; exit code 1 if any are

A table stands between `<!-- table: KIND NAME... -->` and `<!-- /table -->`. KIND is a key of TABLES; the names choose
the models. No figure in such a table is typed by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import chainrule
from chainrule.core import Tokenizer
from chainrule.recipe import find_recipe, recipe_names
from chainrule.saving.hub import find
from chainrule.saving.model import read_model
from chainrule.zoo import load_tokenizer, read_card

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records"
PAGES = (ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md")))
TABLE = re.compile(r"(<!-- table: ([^\n]*?) -->\n).*?(<!-- /table -->)", re.DOTALL)

Rows = list[list[str]]

SYSTEMS = (
    ("pixelrnn", "PixelRNN", 2016, "pixels", "diagonal_bilstm, row_lstm, multiscale_pixelrnn", "",
     "mnist_diagonal_bilstm", ""),
    ("pixelcnn", "PixelCNN", 2016, "pixels", "pixelcnn, gated_pixelcnn, pixelcnnpp", "", "mnist_pixelcnn",
     "pixel-cnn-pp"),
    ("vqvae", "VQ-VAE", 2017, "vqvae", "gated_pixelcnn", "emoji_vqvae", "emoji_gated_pixelcnn", ""),
    ("vqvae2", "VQ-VAE-2", 2019, "vqvae2", "hierarchical_pixelsnail", "emoji_vqvae2", "emoji_pixelsnail",
     "rosinality"),
    ("vqgan", "VQGAN", 2021, "vqgan, vqgan_gumbel", "gpt", "emoji_vqgan", "emoji_gpt", "taming-transformers"),
    ("rq_transformer", "RQ-Transformer", 2022, "rqvae", "rq_transformer", "emoji_rqvae", "emoji_rq_transformer",
     "kakaobrain"),
    ("dalle", "DALL-E", 2021, "dvae", "dalle", "emoji_dvae", "emoji_dalle", "OpenAI dVAE, minDALL-E"),
    ("parti", "Parti", 2022, "vit_vqgan", "parti, dalle_bart", "emoji_rqvae_depth1", "emoji_parti",
     "ViT-VQGAN, min-dalle"),
)  # fmt: skip
"""Page, name, year, tokenizers, priors, bundled tokenizer, bundled prior, official checkpoints."""

SYSTEMS_HEADER = {
    "en": ["system", "tokenizer", "bundled, PSNR in dB", "prior", "bundled, nats per image", "Fréchet distance",
           "official checkpoints"],
    "zh": ["系统", "分词器", "自带权重的 PSNR (dB)", "先验", "自带权重每幅图像的 nats", "Fréchet 距离", "可导入的权重"],
}  # fmt: skip
TIMES = "\N{MULTIPLICATION SIGN}"
SHOWN = ("temperature", "top_k", "top_p", "guidance")
"""The fields of `decoding.Sampling` that a table shows."""
NO_WEIGHTS = {"en": "no weights yet", "zh": "暂无权重"}
NONE_PUBLIC = {"en": "none are public", "zh": "没有公开的"}


def read(name: str) -> dict[str, Any]:
    """The record of a model on its test split."""
    return json.loads((RECORDS / f"{name}-test.json").read_text(encoding="utf-8"))


@cache
def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer of a bundled model."""
    return load_tokenizer(name)


@cache
def num_parameters(name: str) -> int:
    """Parameters of the prior of a bundled model, or of its tokenizer where it has no prior."""
    model = chainrule.load(name)
    part = model.prior if isinstance(model, chainrule.Pipeline) else model
    return sum(parameter.numel() for parameter in part.parameters())


def codes(name: str) -> str:
    """The grids of codes of a model, such as 8×8 and 16×16 of 256."""
    grids = [(grid.shape, grid.codebook_size) for grid in tokenizer_of(name).spec.grids]
    shapes = [TIMES.join(map(str, shape if shape[-1] > 1 else shape[:-1])) for shape, _ in grids]
    sizes = sorted({size for _, size in grids})
    return f"{' and '.join(shapes)} of {' and '.join(f'{size:,}' for size in sizes)}"


def nats(name: str) -> str:
    """Nats per image of a record, with the standard error."""
    likelihood = read(name)["likelihood"]
    return f"{likelihood['nats']:.2f} ± {likelihood['standard_error']:.2f}"


def quality(name: str) -> dict[str, Any] | None:
    """Quality of the samples of a record, where they were measured."""
    samples = read(name).get("samples")
    if samples is None:
        return None
    sampling = samples["settings"]["sampling"]
    drawn = ", ".join(f"{key.replace('_', '-')} {sampling[key]:g}" for key in SHOWN if sampling[key] is not None)
    return samples["quality"] | {"seconds": samples["seconds_per_image"], "drawn": drawn}


def code(words: str) -> str:
    return ", ".join(f"`{word}`" for word in words.split(", ")) if words else ""


def systems(language: str = "en", folder: str = "docs/systems") -> Rows:
    """The eight systems: what each consists of, and the figures of the bundled weights."""
    rows = [SYSTEMS_HEADER[language]]
    for page, name, year, tokenizers_, priors_, tokenizer, prior, official in SYSTEMS:
        psnr = f"{code(tokenizer)} {read(tokenizer)['tokenizer']['psnr']['value']:.2f}" if tokenizer else ""
        samples = quality(prior) if prior else None
        rows.append([
            f"[{name}]({folder}/{page}.md) {year}", code(tokenizers_), psnr, code(priors_),
            f"{code(prior)} {nats(prior)}" if prior else NO_WEIGHTS[language],
            f"{samples['frechet']:.1f}" if samples else "", official or NONE_PUBLIC[language],
        ])  # fmt: skip
    return rows


def training(*names: str) -> Rows:
    """How bundled models were trained."""
    rows = [["model", "codes", "parameters", "training steps", "minutes"]]
    for name in names:
        card = read_card(name)
        stages = [*earlier_stages(name), (card["steps"], card["minutes"])]
        rows.append([
            f"`{name}`", codes(name), f"{num_parameters(name):,}", " + ".join(f"{steps:,}" for steps, _ in stages),
            " + ".join(f"{minutes:.0f}" for _, minutes in stages),
        ])  # fmt: skip
    return rows


def earlier_stages(name: str) -> list[tuple[int, float]]:
    """Steps and minutes of the recipes of a model, but for its last stage, which the card describes."""
    stages = [recipe for recipe in recipe_names() if re.fullmatch(rf"{name}(_stage\d)?", recipe)]
    texts = [find_recipe(recipe).read_text(encoding="utf-8") for recipe in sorted(stages)[:-1]]
    return [
        (yaml.safe_load(text)["training"]["steps"], float(re.search(r"^# Minutes: *([\d.]+)", text, re.MULTILINE)[1]))
        for text in texts
    ]


def likelihoods(*names: str) -> Rows:
    """Likelihoods of models of pixels."""
    rows = [["model", "parameters", "test NLL, nats per image", "record"]]
    for name in names:
        rows.append([f"`{name}`", f"{num_parameters(name):,}", f"**{nats(name)}**", f"`{name}-test.json`"])
    return rows


def tokenizers(*names: str) -> Rows:
    """Quality of the reconstructions of tokenizers."""
    rows = [
        ["tokenizer", "PSNR, dB", "SSIM", "perceptual distance", "Fréchet distance", "codes used",
         "perplexity / codebook size", "bits per image", "seconds per 100 images, encode + decode"]
    ]  # fmt: skip
    for name in names:
        value = read(name)["tokenizer"]
        uses = [use for use in value["codebooks"] if use["depth"] is None]
        rows.append([
            f"`{name}`",
            f"{value['psnr']['value']:.2f}",
            f"{value['ssim']['value']:.4f}",
            f"{value['perceptual']['value']:.4f}",
            f"{value['frechet']:.2f}",
            " / ".join(f"{use['share_used']:.1%}" for use in uses),
            " / ".join(f"{use['perplexity_ratio']:.0%}" for use in uses),
            f"{value['bits_per_image']:,.0f}",
            f"{value['encode_seconds']:.2f} + {value['decode_seconds']:.2f}",
        ])  # fmt: skip
    return rows


def priors(*names: str) -> Rows:
    """Likelihoods of priors over codes, and the quality of their samples."""
    rows = [
        ["model", "codes of", "parameters", "test NLL, nats per image", "Fréchet distance", "of reconstructions",
         "precision", "recall", "seconds per sample", "drawn with"]
    ]  # fmt: skip
    for name in names:
        tokenizer, samples = read_model(find(name)).tokenizer, quality(name)
        figures = [f"{samples['frechet']:.1f}", f"{samples['floor']:.1f}", f"{samples['precision']:.2f}",
                   f"{samples['recall']:.2f}", f"{samples['seconds']:.2f}",
                   samples["drawn"]] if samples else [""] * 6  # fmt: skip
        rows.append([
            f"`{name}`",
            f"`{tokenizer.weights or tokenizer.name}`",
            f"{num_parameters(name):,}",
            f"**{nats(name)}**",
            *figures,
        ])  # fmt: skip
    return rows


def presets(*names: str) -> Rows:
    """The published sizes of models."""
    rows = [["model", "preset", "codes", "parameters"]]
    for found in (one for name in names for one in chainrule.presets(name)):
        grids = [TIMES.join(map(str, shape if shape[-1] > 1 else shape[:-1])) for *shape, _ in found.codes]
        codes = " and ".join(f"{grid} of {size:,}" for grid, (*_, size) in zip(grids, found.codes, strict=True))
        rows.append([f"`{found.model}`", f"`{found.preset}`", codes, f"{found.parameters:,}"])
    return rows


TABLES: dict[str, Callable[..., Rows]] = {
    "systems": systems, "training": training, "likelihoods": likelihoods, "tokenizers": tokenizers, "priors": priors,
    "presets": presets,
}  # fmt: skip


def filled(text: str) -> str:
    """A page with its tables as the records have them."""

    def table(match: re.Match[str]) -> str:
        kind, *names = match[2].split()
        rows = TABLES[kind](*names)
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        return match[1] + "".join(f"| {' | '.join(row)} |\n" for row in lines) + match[3]

    return TABLE.sub(table, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    stale = {page: text for page in PAGES if (text := filled(page.read_text("utf-8"))) != page.read_text("utf-8")}
    for page, text in stale.items():
        print(page.relative_to(ROOT))
        if not check:
            page.write_text(text, encoding="utf-8")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
