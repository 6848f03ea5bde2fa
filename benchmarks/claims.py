"""What papers on tokenizers claim, on emoji at 64x64: pairs of the same widths, of which the second should win in PSNR.

    python benchmarks/claims.py vqvae2 --out runs/claims     # as many bits in 32x32 codes and in levels
    python benchmarks/claims.py rq --out runs/claims         # residual codes: depth 4 against depth 1 on the same grid

Each pair is trained one after the other as the papers say, without `spread`, by the squared error alone, and goes on
where it was stopped; the PSNR is that of all test images.
"""

import argparse
import json
from pathlib import Path

import torch

import chainrule
from chainrule.evaluation import bits_per_image
from chainrule.training import train

FINE = ("tokenizer.spread=0", "tokenizer.downsampling=2")
RQ = ("emoji_rqvae", "losses.perceptual=null")
CLAIMS = {
    "vqvae2": (
        ("emoji_vqvae", *FINE, "tokenizer.codebook_size=4"),
        ("emoji_vqvae2", *FINE, "tokenizer.num_levels=3", "tokenizer.codebook_size=[4096,2,2]"),
    ),
    "rq": ((*RQ, "tokenizer.depth=1"), RQ),
}


def trained(recipe: str, overrides: list[str], folder: Path) -> dict:
    result = train(recipe, folder, overrides)
    if result.interrupted:
        raise SystemExit(130)
    tokenizer = chainrule.load(folder)
    codes = tokenizer.encode(torch.zeros(1, *tokenizer.image_shape, dtype=torch.uint8))
    bits = bits_per_image(tokenizer.spec, codes)
    return {"recipe": recipe, "overrides": overrides, "bits_per_image": round(bits), "psnr": result.metrics["psnr"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=list(CLAIMS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    for claim in arguments.claims:
        pair = [
            trained(recipe, [*overrides, f"training.steps={arguments.steps}"], arguments.out / f"{claim}-{index}")
            for index, (recipe, *overrides) in enumerate(CLAIMS[claim])
        ]
        gain = pair[1]["psnr"] - pair[0]["psnr"]
        print(json.dumps({"claim": claim, "steps": arguments.steps, "gain_db": gain, "models": pair}), flush=True)


if __name__ == "__main__":
    main()
