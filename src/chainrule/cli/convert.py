"""`chainrule convert`: a public release into a model of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Force, Json
from .output import print_json


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The folder of a release, or its checkpoint, the config beside it.")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Import a public checkpoint as a model of chainrule.

    It is recognised by its files; nothing in them is executed.  Mind the licence that is printed.

    \b
    Releases:
      CompVis/taming-transformers       VQGAN, Gumbel VQGAN, transformers over them
      CompVis/latent-diffusion          VQModel (VQ-regularized autoencoders)
      openai/DALL-E                     dVAE
      kakaobrain/rq-vae-transformer     RQ-VAE, RQ-Transformer
      kakaobrain/minDALL-E              VQGAN and transformer, with text tokenizer
      kuprel/min-dalle                  DALL-E Mini and Mega
      rosinality/vq-vae-2-pytorch       VQ-VAE-2, PixelSNAIL hierarchy
      thuanz123/enhancing-transformers  ViT-VQGAN
      pclucas14/pixel-cnn-pp            PixelCNN++

    \b
    Examples:
      chainrule convert downloads/vqgan_imagenet_f16_1024 models/vqgan
      chainrule convert downloads/dalle/encoder.pkl models/dvae --json
    """
    from ..official import check_apart
    from ..official import convert as convert_release
    from ..saving.model import check_replaceable

    check_apart(source, dest)
    check_replaceable(dest)
    if dest.exists() and not force and any(dest.iterdir()):
        raise ValueError(f"{dest} exists; add --force to replace the model in it, or choose another name")

    imported = convert_release(source, dest)
    parts = {"tokenizer": imported.tokenizer} | ({} if imported.prior is None else {"prior": imported.prior})
    if json:
        value = {"out": str(dest)} | {kind: part.name for kind, part in parts.items()}
        value |= {"origin": imported.origin, "licence": imported.licence, "non_commercial": imported.non_commercial}
        print_json(value | {"sha256": dict(imported.files), "notes": list(imported.notes)})
        return
    counts = {kind: sum(parameter.numel() for parameter in part.parameters()) for kind, part in parts.items()}
    print(f"{dest}: " + ", ".join(f"{kind} {part.name}, {counts[kind]:,} parameters" for kind, part in parts.items()))
    for note in imported.notes:
        print(f"note: {note}")
    print(f"origin: {imported.origin}")
    print(f"licence: {imported.licence}")
    if imported.non_commercial:
        print("NON-COMMERCIAL: this licence forbids commercial use of these weights")
    for name, digest in imported.files.items():
        print(f"sha256 {digest}  {name}")
