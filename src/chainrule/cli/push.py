"""`chainrule push`: a model on the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Model

RepoId = Annotated[str, typer.Argument(metavar="USER/NAME", help="Its name on the hub.")]
Private = Annotated[bool, typer.Option("--private", help="Only you can see it, if it is new.")]
Token = Annotated[
    str | None,
    typer.Option(help="Of the hub, with the right to write.", show_default="of `hf auth login`, or of HF_TOKEN"),
]


def push(model: Model, repo_id: RepoId, private: Private = False, token: Token = None) -> None:
    """Upload a model to the Hugging Face hub, with a card: data, licence, figures, pictures, how to use it.

    \b
    Examples:
      chainrule push runs/mine user/mine
      chainrule push runs/mine user/mine --private
    """
    from ..zoo import push as upload

    print(upload(model, repo_id, private=private, token=token))
